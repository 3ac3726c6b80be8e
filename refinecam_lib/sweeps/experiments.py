"""What each notebook measures, and the command line that measures it ahead, on this machine or a cluster:

    python -m refinecam_lib.sweeps.status --profile standard --status
    python -m refinecam_lib.sweeps.status --profile paper --dask tcp://head:8786

A notebook calls its plan, and so does this command: the notebook then finds every row on disk.
Exit codes: 0 done; 1 stopped on the way; 2 bad input.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..datasets.photographs import SOURCES
from ..explanation import BASE, CAMS, CONTROLS, OTHERS, REFINED, SLOW, TRIVIAL, Variant
from ..networks.zoo import spec_of
from ..refinement import AGGREGATES
from .shard import NO_METHOD, Shard, plan

HAZE = "GradCAM++^0.125"
"""The map of Fig. 4: the same order of pixels, other values."""
POWERS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


def whole(models: Sequence[str], briefly: Sequence[str]) -> list[str]:
    """The networks that are measured as a whole: those that are not in `briefly`, or all where none is left."""
    return [model for model in models if model not in briefly] or list(models)


def paper_plan(
    models: Sequence[str],
    images: Mapping[str, int],
    seed: int = 0,
    dataset: str = "synthetic",
    briefly: Sequence[str] = (),
) -> list[Shard]:
    """The shards behind Fig. 1, Table 1 and Table 2, which so share their rows.

    images: method -> number of images, the cheap methods being worth more of them. Base and RefineCAM from every
    layer, and every aggregate from the shallowest; ScoreCAM, whose cost is in its channels, has the shallowest layer's
    variants and the deepest Base map alone, and so have all methods of the networks in `briefly`, which are not
    explained by methods in SLOW.
    """
    shards = []
    for model in briefly:
        spec_of(model)
    for model in models:
        deepest = len(spec_of(model).layers) - 1
        first = [Variant(0, aggregate) for aggregate in ("none", *AGGREGATES)] + [Variant(deepest)]
        others = [Variant(layer, aggregate) for layer in range(1, deepest) for aggregate in ("none", "product")]
        for method, n in images.items():
            if method in SLOW and model in briefly:
                continue
            variants = first if method == "ScoreCAM" or model in briefly else first + others
            size = 2 if method == "ScoreCAM" else 8
            shards += plan(model, [method], n, variants, dataset, size, seed)
    return shards


def fig1_plan(
    models: Sequence[str],
    n_images: int,
    n_score_cam: int,
    briefly: Sequence[str] = (),
    seed: int = 0,
    data: str = "synthetic",
) -> list[Shard]:
    """Fig. 1: three methods beside the trivial maps; ScoreCAM on images of a number of its own."""
    images = dict.fromkeys(("GradCAM++", "LayerCAM", "ScoreCAM", *TRIVIAL), n_images) | {"ScoreCAM": n_score_cam}
    return paper_plan(models, images, seed, data, briefly)


def stress_plan(
    models: Sequence[str], n_images: int, briefly: Sequence[str] = (), seed: int = 0, data: str = "synthetic"
) -> list[Shard]:
    """The stress test beside Fig. 1: controls, those with the truth where it is known, and powers of GradCAM++."""
    known = data not in SOURCES
    controls = [name for name in CONTROLS if known or not name.endswith("Truth")]
    return [
        shard
        for model in whole(models, briefly)
        for shard in plan(model, [*controls, HAZE, "GradCAM++^8"], n_images, dataset=data, seed=seed)
    ]


def fig4_plan(model: str, method: str, layer: int, n_images: int, seed: int = 0) -> list[Shard]:
    """Fig. 4: a method's maps raised to powers from 1/8 to 8, called `GradCAM++^0.125` and so on."""
    return plan(model, [f"{method}^{power:g}" for power in POWERS], n_images, [Variant(layer)], seed=seed)


def table1_plan(
    models: Sequence[str],
    n_images: int,
    n_score_cam: int,
    n_captum: int,
    briefly: Sequence[str] = (),
    seed: int = 0,
    data: str = "synthetic",
    methods: Sequence[str] | None = None,
) -> list[Shard]:
    """Table 1 and Fig. 3: the five CAM methods, and five without layers on `n_captum` images; or those of `methods`."""
    images = dict.fromkeys(CAMS, n_images) | {"ScoreCAM": n_score_cam} | dict.fromkeys(OTHERS, n_captum)
    if methods is not None:
        images = {method: images.get(method, n_images) for method in methods}
    return paper_plan(models, images, seed, data, briefly)


def table2_plan(
    models: Sequence[str],
    n_images: int,
    n_score_cam: int,
    briefly: Sequence[str] = (),
    seed: int = 0,
    data: str = "synthetic",
) -> list[Shard]:
    """Table 2: the five CAM methods, whose rows hold every aggregate."""
    images = dict.fromkeys(CAMS, n_images) | {"ScoreCAM": n_score_cam}
    return paper_plan(models, images, seed, data, briefly)


def birds_plan(
    bird_models: Sequence[str], n_birds: int, n_birds_score_cam: int, n_birds_captum: int, seed: int = 0
) -> list[Shard]:
    """Fig. 3b: the ten methods and the trivial maps on birds; CAM methods from the shallowest layer and the deepest."""
    images = dict.fromkeys([*CAMS, *TRIVIAL], n_birds) | {"ScoreCAM": n_birds_score_cam}
    images |= dict.fromkeys(OTHERS, n_birds_captum)
    return [
        shard
        for model in bird_models
        for method, n in images.items()
        for shard in plan(
            model,
            [method],
            n,
            [BASE, REFINED, Variant(len(spec_of(model).layers) - 1)],
            "birds",
            2 if method == "ScoreCAM" else 8,
            seed,
        )
    ]


def audit_plan(
    model: str, n_images: int, n_score_cam: int, n_captum: int, n_defects: int, seed: int = 0
) -> dict[str, list[Shard]]:
    """The audit: "ours", the rows of Tables 1 and 2, Fig. 1 and Fig. 4, and what each defect measures anew.

    Each defect costs a measurement of its own on `n_defects` images, `n_images` at most; ScoreCAM and slow methods are
    left out there.
    """
    ours = table1_plan([model], n_images, n_score_cam, n_captum, seed=seed)
    ours += paper_plan([model], dict.fromkeys(["GradCAM", *TRIVIAL], n_images), seed)
    ours += plan(model, [HAZE], n_images, seed=seed)
    cheap = [method for method in CAMS if method != "ScoreCAM"]
    whole = [*cheap, "InputXGradient", "DeepLift", *TRIVIAL, HAZE]
    refined = [Variant(0, aggregate) for aggregate in AGGREGATES]
    few, every = partial(plan, model, images=min(n_defects, n_images), seed=seed), [Variant(), *refined]
    return {
        "ours": ours,
        "D1": few(whole, variants=every, dataset="synthetic_leaked"),
        "D4": few(whole, variants=every, defects=("percentiles",)),
        "D11": few(whole, variants=every, dataset="synthetic_shifted"),
        "D13": few(["RandomCAM"], defects=("one_seed",)),
        "deep maps": few(cheap, variants=refined, defects=("deep_maps_unmasked",)),
        "fp32": few(cheap, variants=[Variant(0, "inverse_exp_mean_published")]),
    }


def accuracy_plan(models: Sequence[str], n_images: int) -> list[Shard]:
    """The predictions of the shapes' networks on test images, each on raw and on imputed backgrounds."""
    return [
        shard
        for model in models
        for dataset in ("synthetic_raw", "synthetic_imputed")
        for shard in plan(model, [NO_METHOD], n_images, dataset=dataset, size=50, measurement="predictions")
    ]


def bird_accuracy_plan(bird_models: Sequence[str], n_birds: int) -> list[Shard]:
    """The predictions of the birds' networks on test birds."""
    return [
        shard
        for model in bird_models
        for shard in plan(model, [NO_METHOD], n_birds, dataset="birds_labelled", size=50, measurement="predictions")
    ]


def fig5_plan(model: str, methods: Sequence[str], n_images: int, data: str = "synthetic") -> list[Shard]:
    """Fig. 5: the maps of every layer."""
    layers = [Variant(layer) for layer in range(len(spec_of(model).layers))]
    return plan(model, methods, n_images, layers, data, size=1, measurement="maps")


def randomisation_plan(model: str, methods: Sequence[str], n_images: int, seed: int = 0) -> list[Shard]:
    """The model-randomisation check: Base and RefineCAM from the shallowest layer."""
    return plan(model, methods, n_images, [BASE, REFINED], seed=seed, measurement="randomisation")


def rounding_plan(model: str, networks: Sequence[str], n_rounding: int, seed: int = 0) -> list[Shard]:
    """Which rows rounding decides: methods on several networks, Base and RefineCAM; slow ones on `model` alone."""
    methods = [method for method in (*CAMS, *OTHERS) if method != "ScoreCAM"]
    return [
        shard
        for network in networks
        for method in methods
        if network == model or method not in SLOW
        for shard in plan(network, [method], n_rounding, [BASE, REFINED], size=4, seed=seed, measurement="rounding")
    ]


PLANS: dict[str, Sequence[Callable[..., list[Shard] | dict[str, list[Shard]]]]] = {
    "02_train_models": (accuracy_plan, bird_accuracy_plan),
    "03_trivial_cams": (fig1_plan, stress_plan),
    "04_metric_correlation": (table1_plan, birds_plan),
    "05_rank_vs_magnitude": (fig4_plan,),
    "06_refinecam_qualitative": (fig5_plan,),
    "07_refinecam_benchmark": (table1_plan,),
    "08_aggregation_ablation": (table2_plan,),
    "09_conventions_audit": (audit_plan, birds_plan, rounding_plan),
    "10_model_randomisation": (randomisation_plan,),
}
"""Notebook -> the plans that it sweeps; a plan's arguments are parameters of the notebook, by the same names."""


def planned(plan: Callable[..., list[Shard] | dict[str, list[Shard]]], values: Mapping[str, object]) -> list[Shard]:
    """The shards of a plan whose arguments are parameters of a notebook."""
    found = plan(**{name: values[name] for name in inspect.signature(plan).parameters if name in values})
    return [s for part in found.values() for s in part] if isinstance(found, dict) else found


def plan_of(book: str, values: Mapping[str, object]) -> list[Shard]:
    """The shards that a notebook measures with the parameters `values`; none where it sweeps nothing."""
    return list(dict.fromkeys(shard for plan in PLANS.get(book, ()) for shard in planned(plan, values)))
