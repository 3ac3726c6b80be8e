"""The scores of other papers compared with their definitions, and infidelity with captum's."""

import captum.metrics
import numpy as np
import pytest
import torch
from tiny_networks import LAYERS, batch, tiny_net
from torch import nn

from refinecam_lib.baselines.faithfulness import (
    GRID,
    PERTURBED,
    SUBSETS,
    blurred,
    drops_without,
    faithfulness,
    relevance_of,
    subsets_of,
)
from refinecam_lib.capture import Capture
from refinecam_lib.road import FRACTIONS

SIZE = 48


@pytest.fixture(scope="module")
def measured():
    """A capture, maps without ties, and their scores."""
    capture = Capture(tiny_net(), *batch(2), LAYERS, ids=["a", "b"])
    maps = torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    return capture, maps, faithfulness(capture, maps, drops_without(capture))


def probability(capture, i, image):
    with torch.no_grad():
        return float(capture.model(image[None]).softmax(1)[0, capture.target[i]])


def swapped(start, end, heat, share):
    """`start` with the most relevant pixels of `end`."""
    top = np.argsort(-heat.flatten().numpy())[: round(share * heat.numel())]
    mixed = start.clone().flatten(1)
    mixed[:, top] = end.flatten(1)[:, top]
    return mixed.view_as(start)


@pytest.mark.parametrize("score", ["deletion", "insertion", "srg"])
def test_areas_follow_their_definitions(measured, score):
    capture, maps, table = measured
    for i, (image, heat) in enumerate(zip(capture.inputs, maps)):
        grey = image.mean((1, 2), keepdim=True).expand_as(image)
        pairs = {"deletion": (image, grey), "insertion": (blurred(image[None])[0], image)}
        if score == "srg":
            differences = [
                probability(capture, i, swapped(image, grey, -heat, k))
                - probability(capture, i, swapped(image, grey, heat, k))
                for k in FRACTIONS
            ]
            assert float(table["srg"][i]) == pytest.approx(np.mean(differences), abs=1e-6)
        else:
            curve = [probability(capture, i, swapped(*pairs[score], heat, k)) for k in np.linspace(0, 1, 21)]
            assert float(table[score][i]) == pytest.approx(np.trapezoid(curve, dx=0.05), abs=1e-6)


def pixels(cells):
    """A mask of squares as a mask of pixels, one pixel at a time."""
    return torch.tensor([[bool(cells[r * GRID // SIZE, c * GRID // SIZE]) for c in range(SIZE)] for r in range(SIZE)])


def test_mu_fidelity_is_a_correlation_over_random_squares(measured):
    capture, maps, table = measured
    subsets = subsets_of(capture)
    assert subsets.shape == (2, SUBSETS, GRID, GRID) and (subsets.sum((2, 3)) == 16).all()
    assert len({tuple(each.flatten().tolist()) for each in subsets[0]}) > SUBSETS / 2
    for i, (image, heat) in enumerate(zip(capture.inputs, maps)):
        masks = [pixels(cells) for cells in subsets[i]]
        grey = image.mean((1, 2), keepdim=True)
        kept = [probability(capture, i, torch.where(mask, grey, image)) for mask in masks]
        relevance = [float(heat[mask].double().sum()) for mask in masks]
        assert np.allclose(relevance_of(maps, subsets)[i], relevance)
        assert float(table["mu_fidelity"][i]) == pytest.approx(-np.corrcoef(relevance, kept)[0, 1], abs=1e-4)


def test_infidelity_is_captums(measured):
    capture, maps, table = measured
    for i, (image, heat) in enumerate(zip(capture.inputs, maps)):
        masks = torch.stack([pixels(cells) for cells in subsets_of(capture)[i, :PERTURBED]])

        def perturb(inputs, masks=masks):
            change = torch.zeros_like(inputs)
            change[:, 0] = masks.float()  # the map counts once, not once per colour
            return change, torch.where(masks[:, None], inputs.mean((2, 3), keepdim=True), inputs)

        theirs = captum.metrics.infidelity(
            lambda x: capture.model(x).softmax(1), perturb, image[None], heat.expand(1, 3, SIZE, SIZE),
            target=int(capture.target[i]), n_perturb_samples=PERTURBED, normalize=True,
        )  # fmt: skip
        assert float(table["infidelity"][i]) == pytest.approx(float(theirs), rel=1e-3)


def test_a_confident_network_still_has_drops():
    model = tiny_net()
    model.fc.weight.data *= 12
    model.fc.bias.data *= 12
    inputs, _ = batch(2)
    capture = Capture(model, inputs, model(inputs).argmax(1), LAYERS)
    assert float(1 - capture.probability.max()) < 1e-6, "in float32 nothing is left of the difference to 1"
    table = faithfulness(capture, torch.rand(2, SIZE, SIZE), drops_without(capture))
    assert torch.isfinite(table["mu_fidelity"]).all() and (table["infidelity"] > 0).all()


class Corner(nn.Module):
    """A network that sees the mean of one corner alone."""

    def forward(self, images):
        seen = images[:, :, :16, :16].mean((1, 2, 3))
        return torch.stack([4 * seen, torch.zeros_like(seen)], 1)


def test_every_score_prefers_the_truth():
    inputs = torch.full((1, 3, SIZE, SIZE), -1.0)
    inputs[:, :, :16, :16] = 1
    capture = Capture(Corner(), inputs, [0], ())
    truth = torch.zeros(1, SIZE, SIZE)
    truth[:, :16, :16] = 1
    drops = drops_without(capture)
    good, bad = faithfulness(capture, truth, drops), faithfulness(capture, 1 - truth, drops)
    for name, sign in (("deletion", -1), ("insertion", 1), ("srg", 1), ("mu_fidelity", 1)):
        assert sign * (good[name] - bad[name]) > 0.01, name
    assert good["infidelity"] < bad["infidelity"] / 2


def test_maps_of_a_capture_share_the_passes_without_squares():
    capture, seen = Capture(tiny_net(), *batch(2), LAYERS), []
    assert capture.logits is not None
    handle = capture.model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    drops = drops_without(capture)
    assert sum(seen) == 2 * SUBSETS and drops.shape == (2, SUBSETS)
    for maps in torch.rand(3, 2, SIZE, SIZE):
        faithfulness(capture, maps, drops)
    handle.remove()
    assert sum(seen) == 2 * SUBSETS + 3 * 2 * 48
