"""Test the audit on planted rows, the defects against the published package, and the randomisation."""

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_grad_cam.metrics.perturbation_confidence import RemoveLeastRelevantFirst, RemoveMostRelevantFirst
from tiny_networks import LAYERS, batch, tiny_net

from refinecam_lib.analysis.audit import CLAIMS, Condition, Draw, _scored, audit, claims, under_every_convention
from refinecam_lib.analysis.statistics import correlation
from refinecam_lib.capture import Capture
from refinecam_lib.errors import InputError
from refinecam_lib.explanation import BASE, CAMS, OTHERS, REFINED, TRIVIAL, Variant, explain
from refinecam_lib.metrics import average_precision, measure, truth_covered
from refinecam_lib.refinement import AGGREGATES, inverse_exp_mean
from refinecam_lib.road import keep_masks, removal_order
from refinecam_lib.scoring import EVERY, scores
from refinecam_lib.sweeps import randomisation
from refinecam_lib.sweeps.experiments import EIGHTH_ROOT
from refinecam_lib.sweeps.published import instructions, inverse_exp_mean_published, keep_percentiles
from refinecam_lib.sweeps.randomisation import cascade, similarity


def planted(n=32, refined=0.2, trivial_keeps=1.0):
    """Return rows in which RefineCAM's ROAD is higher by `refined`, and trivial maps keep the masked probability."""
    generator, rows = np.random.default_rng(0), []
    for image in range(n):
        for method in [*CAMS, *OTHERS, *TRIVIAL, EIGHTH_ROOT]:
            for aggregate in ["none", *AGGREGATES] if method in CAMS else ["none"]:
                truth = generator.random()
                trivial = method in TRIVIAL
                road = 0.0 if trivial else 0.3 + 0.4 * truth + refined * (aggregate == "product")
                if method == EIGHTH_ROOT:
                    road = 0.5
                mean = 0.9 if method == EIGHTH_ROOT else 0.2
                rows.append(
                    {
                        "image": image,
                        "method": method,
                        "aggregate": aggregate,
                        "layer": 0,
                        "correct": True,
                        "status": "ok",
                    }
                    | {
                        "probability": 0.9,
                        "probability_masked": 0.9 * trivial_keeps if trivial else 0.3 * generator.random(),
                    }
                    | {"mean_activation": mean, "pearson": 0.8, "morf_20": 0.1, "lerf_20": 0.1 + road, "cosine": truth}
                )
    return pd.DataFrame(rows)


def verdicts(rows, convention="recommended"):
    return audit([Condition("x", rows, convention)], draws=60).set_index("claim")["verdict"]


def test_planted_claims_are_found_to_hold_and_their_opposites_to_fail():
    up, down = verdicts(planted()), verdicts(planted(refined=-0.2, trivial_keeps=0.0))
    gain, fooled = "RefineCAM beats Base in ARCC", "a trivial map beats the average CAM in Average Drop"
    assert (up[gain], down[gain]) == ("holds", "fails")
    assert (up[fooled], down[fooled]) == ("holds", "fails")
    assert up["no trivial map beats the average CAM in ARCC"] == "holds"
    assert up["the product beats the geometric mean"] == "holds"
    assert verdicts(planted(refined=0.0))[gain] == "undecided"


@pytest.mark.parametrize("n", [1, 29])
def test_few_images_give_no_verdict(n):
    table = audit([Condition("x", planted(n))], draws=10)
    known = table["value"].notna()
    assert known.any() and set(table["verdict"][known]) == {"too few images"}
    assert table[["low", "high"]].isna().all(axis=None) == (n == 1)


def test_the_table_is_one_family_of_tests():
    rows = planted()
    one, many = (audit([Condition("x", rows)] * times, draws=60) for times in (1, 20))
    assert (many["p_holm"][: len(one)] >= one["p_holm"]).all() and many["p"][: len(one)].equals(one["p"])
    assert (many["p_holm"][: len(one)] > one["p_holm"]).any()


def test_claims_are_summarised_over_networks_and_conventions():
    rows = pd.concat(
        [planted().assign(model="a"), planted().assign(model="b"), planted(refined=-0.2).assign(model="c")]
    )
    table = audit(under_every_convention(rows), draws=60)
    found = claims(table).loc["RefineCAM beats Base in ARCC"]
    assert found["shown in networks"] == "2 of 3 (opposite in 1)" and found["verdict"] == "reproduced"
    assert found["conventions under which it holds"] == f"{len(EVERY)} of {len(EVERY)}" and found["fewest images"] == 32
    flipped = table.assign(verdict=table["verdict"].where(table["condition"] != "paper", "fails"))
    assert claims(flipped).loc["RefineCAM beats Base in ARCC", "verdict"] == "depends on the convention"
    alone = claims(table[table["model"] == "c"]).loc["RefineCAM beats Base in ARCC"]
    assert alone["verdict"] == "not reproduced" and alone["shown in networks"] == "0 of 1 (opposite in 1)"


def test_agreements_are_scipys():
    rows = planted()
    values, series, _ = _scored(Condition("x", rows))
    draw = Draw(values, series, np.arange(len(values["arcc"])))
    base = rows[(rows["aggregate"] == "none") & rows["method"].isin([*CAMS, *OTHERS])].reset_index(drop=True)
    expected = correlation(scores(base)["arcc"], base["cosine"], "spearman")
    assert draw.agreements["arcc"] == pytest.approx(expected, abs=1e-12)


def test_a_claim_without_measurements_has_no_value():
    rows = planted()
    found = verdicts(rows[~rows["aggregate"].isin(["product"])])
    assert found["RefineCAM beats Base in ARCC"] == "no value"
    assert set(found.index) == set(CLAIMS)


def test_undefined_scores_are_counted_under_the_papers_convention():
    rows = planted()
    table = audit([Condition(c, rows, c) for c in ("recommended", "paper")], draws=5)
    undefined = table.groupby("condition")["undefined"].first()
    assert undefined["recommended"] == 0
    assert undefined["paper"] == pytest.approx(rows["method"].isin(TRIVIAL).mean())  # those with a ROAD of 0


def test_percentile_masks_are_those_of_the_published_code():
    maps = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0))
    maps[1][maps[1] < 0.7] = 0  # ties
    ours = keep_percentiles(maps, [0, 1], (0.2, 0.6))

    def theirs(remover, fraction, heat):
        kept = []
        remover(100 * (1 - fraction), lambda image, mask: kept.append(mask))(torch.zeros(3, 12, 12), heat)
        return kept[0].bool()

    for i, heat in enumerate(maps):
        for k, fraction in enumerate((0.2, 0.6)):
            assert torch.equal(ours[i, k], theirs(RemoveMostRelevantFirst, fraction, heat))
            assert torch.equal(ours[i, 2 + k], theirs(RemoveLeastRelevantFirst, fraction, heat))
    assert not ours[1, 1].any()  # the map with ties loses every pixel, not 60 %
    exact = keep_masks(removal_order(maps, [0, 1]), (0.2, 0.6))
    assert (~exact[1, 1]).sum() == round(0.6 * 144)


def test_each_defect_changes_only_its_own_columns():
    inputs, target = batch(4)
    capture = Capture(tiny_net(), inputs, target, LAYERS)

    def rows(method, variant, *defects):
        keep, again = instructions(defects)
        return measure(explain(capture, method, variant), keep=keep, again=again)

    ours, theirs = rows("LayerCAM", REFINED), rows("LayerCAM", REFINED, "deep_maps_unmasked")
    assert (ours["pearson"] - theirs["pearson"]).abs().max() > 0.01
    pd.testing.assert_frame_equal(ours.drop(columns="pearson"), theirs.drop(columns="pearson"))
    pd.testing.assert_frame_equal(rows("LayerCAM", BASE), rows("LayerCAM", BASE, "deep_maps_unmasked"))
    noise = scores(rows("RandomCAM", BASE))["coherency"], scores(rows("RandomCAM", BASE, "one_seed"))["coherency"]
    assert abs(noise[0].mean() - 0.5) < 0.1 and noise[1].min() > 0.999
    with pytest.raises(InputError, match="unknown defect 'one_sed'. Did you mean 'one_seed'"):
        rows("RandomCAM", BASE, "one_sed")


def test_the_published_inverse_exp_mean_loses_small_values():
    maps = torch.tensor([[0.5, 0.011], [0.5, 0.9]], dtype=torch.double)[:, None, None]
    ours, theirs = inverse_exp_mean(maps).flatten(), inverse_exp_mean_published(maps).flatten()
    assert ours[0] == pytest.approx(float(theirs[0]), rel=1e-5)
    assert ours[1] > 0.01 and theirs[1] == 0
    inputs, target = batch(1)
    capture = Capture(tiny_net(), inputs, target, LAYERS)
    assert explain(capture, "LayerCAM", Variant(0, "inverse_exp_mean_published")).maps.max() == 1


def test_average_precision_and_the_truth_covered():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[:, :2] = True
    maps = torch.stack([masks[0].float(), 1 - masks[0].float()])
    assert average_precision(maps, masks).tolist() == pytest.approx([1.0, 0.5])
    assert average_precision(maps, torch.zeros_like(masks)).isnan().all()
    half = torch.full((1, 4, 4), 0.25)
    assert truth_covered(torch.cat([maps[:1], half]), masks).tolist() == [1.0, 0.25]


def test_the_cascade_randomises_from_the_output_down():
    model = tiny_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    changed = []
    for _, network in cascade(model, batch(4)[0], LAYERS):
        moved = {n.split(".")[0] for n, p in network.named_parameters() if not torch.equal(p, before[n])}
        changed.append(moved)
    assert changed[0] == {"fc"} and changed[1] == {"fc", "layer4"} and changed[-1] == {"fc", *LAYERS}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_map_that_ignores_the_network_survives_and_a_gradient_does_not():
    inputs, target = batch(3)
    networks = list(cascade(tiny_net(), inputs.double(), LAYERS))
    rows = similarity(tiny_net(), networks, inputs, target, LAYERS, ["GradCAM", "EdgeDetector"], [BASE])
    mean = rows.groupby(["method", "stage"])["spearman"].mean()
    assert mean["EdgeDetector"].min() > 0.999 and mean["GradCAM", 0] == pytest.approx(1)
    assert mean["GradCAM", 5] < 0.6
    assert set(rows["random"]) == {"nothing", "everything", *(f"above {layer}" for layer in LAYERS)}


def test_randomisation_is_computed_in_float64_and_leaves_the_model_as_it_was(monkeypatch):
    (inputs, target), model, seen = batch(2), tiny_net(), []
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def watched(network, few, *rest):
        seen.append((few.dtype, next(network.parameters()).dtype))
        return Capture(network, few, *rest)

    monkeypatch.setattr(randomisation, "Capture", watched)
    networks = list(cascade(model, inputs.double(), LAYERS))
    similarity(model, networks, inputs, target, LAYERS, ["GradCAM++"], [BASE])
    assert seen == [(torch.float64, torch.float64)] * 6
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
