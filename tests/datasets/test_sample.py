"""Batches of samples, and samples that do not fit together."""

import pytest
import torch

from refinecam_lib.datasets.sample import Sample, batch_of
from refinecam_lib.errors import InputError


def sample(height=8, width=8, channels=3, mask=True):
    return Sample(
        torch.rand(channels, height, width), 2, "a", torch.ones(height, width, dtype=torch.bool) if mask else None
    )


def test_a_batch_keeps_images_targets_and_masks():
    samples = [sample(), sample()]
    images, target, masks = batch_of(samples)
    assert torch.equal(images[1], samples[1].image) and target.tolist() == [2, 2] and masks.shape == (2, 8, 8)
    assert batch_of([sample(), sample(mask=False)])[2] is None


@pytest.mark.parametrize(
    "samples, message",
    [
        ([sample(), sample(height=9)], r"in a batch, got \[\(3, 8, 8\), \(3, 9, 8\)\]"),
        ([sample(channels=1)], r"Expected images of one shape \(3, H, W\)"),
        ([Sample(torch.rand(3, 8, 8), 0, "b", torch.ones(4, 4, dtype=torch.bool))], "'b' has a mask"),
    ],
)
def test_images_of_different_sizes_or_channels_are_refused(samples, message):
    with pytest.raises(InputError, match=message):
        batch_of(samples)
