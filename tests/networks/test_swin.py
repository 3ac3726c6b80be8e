"""Swin on small windows compared with timm's own attention under a mask."""

import copy

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch.nn import functional

from refinecam_lib.networks.swin import fit_windows


@pytest.fixture(scope="module")
def networks():
    """Return timm's Swin with random weights, and the same with windows that fit."""
    torch.manual_seed(0)
    plain = SwinTransformer(
        embed_dim=24, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), num_classes=6, strict_img_size=False
    )
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return plain.eval(), fit_windows(copy.deepcopy(plain)).eval()


def test_whole_images_give_timms_outputs(networks):
    plain, fitted = networks
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(plain(images), fitted(images))
    assert not torch.allclose(plain(images[..., :56, :56]), fitted(images[..., :56, :56]), atol=1e-3)


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (3, 5)])
def test_tokens_attend_only_to_existing_tokens(networks, grid):
    plain, fitted = (network.layers[2].blocks[1] for network in networks)
    x = torch.randn(3, *grid, 96)
    filled = functional.pad(x, (0, 0, 0, 7 - grid[1], 0, 7 - grid[0]))
    there = torch.zeros(7, 7, dtype=torch.bool)
    there[: grid[0], : grid[1]] = True
    mask = torch.zeros(1, 49, 49).masked_fill(~there.flatten(), -torch.inf)  # for keys, in timm's own attention
    expected = plain.attn(filled.view(3, 49, 96), mask=mask).view(3, 7, 7, 96)[:, : grid[0], : grid[1]]
    torch.testing.assert_close(fitted._attn(x), expected)


def test_windows_of_56_px_train_all_weights(networks):
    fitted = copy.deepcopy(networks[1])
    fitted(torch.randn(2, 3, 56, 56)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in fitted.parameters())
