"""Data-dependent initialisation: the statistics that it promises."""

import pytest
import torch
from torch import nn

from refinecam_lib.networks import zoo
from refinecam_lib.training.initialisation import set_by_images
from refinecam_lib.training.loop import fit
from refinecam_lib.training.recipe import Recipe


def _seen(model: nn.Module, images: torch.Tensor, kinds: tuple[type, ...]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda module, inputs, output, name=name: found.update({name: output}))
    with torch.no_grad():
        model(images)
    return found


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_tiny"])
def test_every_channel_has_mean_0_and_its_standard_deviation_over_the_images(name):
    images = torch.randn(48, 3, 56, 56, generator=torch.Generator().manual_seed(0)).cumsum(3).mul(0.2)
    torch.manual_seed(0)
    model = set_by_images(zoo.spec_of(name).learner(6), images)
    seen = _seen(model, images, (nn.LayerNorm, nn.Linear))
    assert len(seen) > 50
    outputs = list(seen.items())[:-1]  # the classifier stays unchanged
    for layer, output in outputs:
        axis = 1 if output.ndim == 4 and output.shape[1] == model.get_submodule(layer).weight.shape[0] else -1
        channels = output.movedim(axis, -1).flatten(0, -2)
        deviation = torch.tensor(0.2 if layer.endswith((".proj", ".fc2")) else 1.0)
        if layer.endswith(".qkv"):
            deviation = torch.tensor([0.5, 0.5, 1.0]).repeat_interleave(channels.shape[1] // 3)
        assert (channels.std(0) / deviation - 1).abs().max() < 0.05, layer
        if model.get_submodule(layer).bias is not None:
            assert channels.mean(0).abs().max() < 0.05, layer


def test_every_attention_head_first_looks_at_one_neighbour():
    images = torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    model = set_by_images(zoo.spec_of("swin_tiny").learner(6), images)
    seen: list[int] = []
    for layer in model.layers:
        for block in layer.blocks:
            attention = block.attn._get_rel_pos_bias()[0].softmax(-1)[:, 24]  # of the central token of 7x7, per head
            assert (attention.max(-1).values > 0.5).all()
            seen += attention.argmax(-1).tolist()
    assert len(seen) == 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24
    assert {seen.count(place) for place in (16, 17, 18, 23, 25, 30, 31, 32)} <= {len(seen) // 8, len(seen) // 8 + 1}


def test_the_first_convolution_whitens_patches_with_both_signs():
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)).cumsum(2).cumsum(3).mul(9)
    model = set_by_images(zoo.spec_of("convnext_tiny").learner(6), images)
    found = _seen(model, images, (nn.Conv2d,))["features.0.0"].movedim(1, -1).flatten(0, -2)
    assert torch.allclose(found[:, :48], -found[:, 48:], atol=1e-3)
    assert torch.allclose(torch.cov(found[:, :48].T), torch.eye(48), atol=0.1)


def test_fit_initialises_a_network_with_layer_norms_by_images(tmp_path):
    recipe = Recipe("convnext_tiny", weights="none", freeze=False, images=4, batch=2, stages=((32, 1.0),), validation=2)
    model, record = fit(recipe, "cpu", 0, tmp_path, progress=False)
    first = model.features[0][0].weight.detach()
    assert record["step"] == 2 and (first[:48] + first[48:]).abs().max() < 0.1 < first.abs().max()
