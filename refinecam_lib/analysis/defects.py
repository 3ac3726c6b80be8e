"""Measure what single defects of the published code change, and read the paper's own tables."""

import warnings
from functools import partial
from typing import cast

import pandas as pd
from captum.attr import GuidedGradCam
from torch import Tensor, nn

from ..baselines.captum_methods import guided_grad_cam
from ..cams import grad_cam_pp
from ..capture import Capture
from ..datasets.sample import Sample, batch_of
from ..explanation import CAMS, explain
from ..metrics import average_precision, pearson
from ..networks.loading import normalise
from ..networks.zoo import ModelSpec
from .plots import title_of
from .statistics import correlations
from .tables import intervals, paper_table, scored, shallow_base


def shifted_truth(placed: pd.DataFrame, shifted: pd.DataFrame, draws: int) -> pd.DataFrame:
    """Correlate scores with the ground truth in its place, and with one that a crop has shifted (D11).

    Args:
        placed: Rows measured with the truth in its place.
        shifted: Rows measured with the shifted truth.
        draws: Draws of the bootstrap over images.

    Returns:
        Spearman's correlation over explanations with its interval, as text: one row per score. Both columns use the
        methods that `shifted` has.
    """
    methods = [m for m in (*CAMS, "DeepLift", "InputXGradient") if m in set(shifted["method"])]
    compared, columns = ["arcc", "road", "coherency", "adcc"], {}
    for label, rows in {"truth in its place": placed, "truth shifted": shifted}.items():
        own = scored(shallow_base(rows[rows["method"].isin(methods)]))
        table = correlations(own, compared, draws=draws)
        table = table[(table["level"] == "explanation") & (table["kind"] == "spearman")].set_index("score")
        columns[label] = intervals(table.loc[compared], "value")
    return pd.DataFrame(columns).rename(index=title_of).rename_axis("score")


def small_number(network: nn.Module, spec: ModelSpec, samples: list[Sample]) -> pd.DataFrame:
    """Correlate GradCAM++'s maps for 1e-6 in the denominator with those for 1e-12 and 0.

    Args:
        network: The network in float64. In float32 rounding would decide the maps.
        spec: Its specification.
        samples: The images.
    """
    images, target, _ = batch_of(samples)
    capture = Capture(network, normalise(images, spec).double(), target, spec.layers)
    usual = explain(capture, grad_cam_pp).maps
    records = {}
    for eps in (1e-12, 0.0):
        r = pearson(explain(capture, partial(grad_cam_pp, eps=eps)).maps.nan_to_num(), usual)
        known = r[~r.isnan()]
        records[f"{eps:g}"] = [r.nanmean().item(), known.min().item(), known.max().item()]
    table = pd.DataFrame.from_dict(records, orient="index", columns=["mean r with 1e-6", "lowest", "highest"])
    return table.rename_axis("added to the denominator")


def channels_last(network: nn.Module, spec: ModelSpec, samples: list[Sample]) -> pd.DataFrame:
    """Compare our GuidedGradCAM with captum's on a network that keeps channels last (D12). captum's sums the wrong axis.

    Returns:
        One row per layer: the correlation with ours, the average precision of both against the ground-truth mask, and
        that of a random order.
    """
    images, target, truth = batch_of(samples)
    inputs, masks, records = normalise(images, spec).requires_grad_(), cast(Tensor, truth), []
    capture = Capture(network, inputs.detach(), target, spec.layers)
    warnings.filterwarnings("ignore", "Setting backward hooks")  # captum removes them again
    for layer, ours in zip(spec.layers, capture.maps(guided_grad_cam)):
        by_captum = GuidedGradCam(network, network.get_submodule(layer)).attribute(inputs, target)
        theirs = by_captum.detach().sum(1).abs()
        precision = [average_precision(maps, masks).mean().item() for maps in (ours, theirs)]
        records.append([layer, pearson(theirs, ours).nanmean().item(), *precision, masks.float().mean().item()])
    columns = ["layer", "mean r with ours", "average precision, ours", "published code", "a random order"]
    return pd.DataFrame(records, columns=columns)


def paper_gap() -> pd.DataFrame:
    """Compare the paper's Table 2 (product) with the mean of its Table 1 (OURS), which should be the same quantity."""
    table1, table2 = paper_table("table1"), paper_table("table2").set_index("method")
    product = table2[table2["aggregate"] == "product"]
    ours = table1[table1["aggregate"] == "product"].groupby("method")["mean"].mean()
    table = pd.DataFrame({"Table 2, product": product["mean"], "Table 1, OURS, mean of 4": ours})
    table["gap"] = table.iloc[:, 0] - table.iloc[:, 1]
    return table.assign(**{"standard error": product["std"] / 400**0.5})  # 100 images, four networks pooled


def paper_counts() -> pd.Series:
    """Count in the paper's own tables how often RefineCAM and the product are best."""
    table1, table2 = paper_table("table1"), paper_table("table2")
    wide = table1.pivot(index=["model", "method"], columns="aggregate", values="mean").dropna()
    best_cam = table1[table1["method"].isin(CAMS)].sort_values("mean").groupby("model").tail(1)
    best = table1.sort_values("mean").groupby("model").tail(1)
    best2 = table2.sort_values("mean").groupby("method").tail(1)
    models, methods = table1["model"].nunique(), table2["method"].nunique()
    counts = {
        "OURS above Base, cells of Table 1": f"{(wide['product'] > wide['none']).sum()} of {len(wide)}",
        "OURS best of the CAMs, networks": f"{(best_cam['aggregate'] == 'product').sum()} of {models}",
        "OURS best of all, networks": f"{(best['aggregate'] == 'product').sum()} of {models}",
        "product best, methods of Table 2": f"{(best2['aggregate'] == 'product').sum()} of {methods}",
    }
    return pd.Series(counts, name="in the paper's own tables")
