"""ROAD: exact shares, imputation compared with independent solvers, and ROAD with the public implementation."""

import functools
import os
from unittest import mock

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from refinecam_lib.errors import InputError
from refinecam_lib.imputation import cpu
from refinecam_lib.imputation.batched import solve_batched
from refinecam_lib.imputation.cpu import solve_on_cpu
from refinecam_lib.road import FRACTIONS, impute, keep_masks, removal_order, road_noise, road_probabilities

SIZES = [(48, 48), (37, 53)]
MAP_TYPES = ["random", "blob", "70 % zeros", "20 % zeros", "constant", "dot"]


def a_map(kind: str, height: int, width: int) -> torch.Tensor:
    generator = np.random.default_rng(0)
    noise = generator.random((height, width))
    y, x = np.mgrid[:height, :width]
    blob = np.exp(-((y - 0.4 * height) ** 2 + (x - 0.6 * width) ** 2) / (0.05 * height * width))
    dot = np.zeros((height, width))
    dot[height // 2, width // 3] = 1
    maps = {
        "random": noise,
        "blob": blob,
        "70 % zeros": blob * (noise > np.quantile(noise, 0.7)),
        "20 % zeros": blob * (noise > np.quantile(noise, 0.2)),
        "constant": np.ones((height, width)),
        "dot": dot,
    }
    return torch.from_numpy(maps[kind]).float()


def some_images(n: int, height: int, width: int) -> torch.Tensor:
    """Return coarse structure plus pixel noise, in about the range of normalised photographs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    fine = torch.rand(n, 3, height, width, generator=generator)
    return 4 * nn.functional.interpolate(coarse, (height, width), mode="bilinear") + fine - 2.5


def the_masks(maps: torch.Tensor, fractions=FRACTIONS) -> torch.Tensor:
    return keep_masks(removal_order(maps, range(len(maps))), fractions)


def exact(image: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Solve the definition directly in float64: for each removed p, the sum of w (x_p - x_n) over neighbours is 0."""
    _, height, width = image.shape
    number = {tuple(p): k for k, p in enumerate(np.argwhere(~keep))}
    matrix, right = scipy.sparse.lil_matrix((len(number), len(number))), np.zeros((len(number), len(image)))
    for (i, j), k in number.items():
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                weight = {0: 0.0, 1: 1 / 6, 2: 1 / 12}[abs(di) + abs(dj)]
                neighbour = (i + di, j + dj)
                if weight == 0 or not (0 <= neighbour[0] < height and 0 <= neighbour[1] < width):
                    continue
                matrix[k, k] += weight
                if neighbour in number:
                    matrix[k, number[neighbour]] -= weight
                else:
                    right[k] += weight * image[:, *neighbour]
    filled = image.astype(np.float64)
    solution = scipy.sparse.linalg.spsolve(matrix.tocsc(), right).reshape(len(number), -1)
    for (i, j), k in number.items():
        filled[:, i, j] = solution[k]
    return filled


@functools.cache
def small_network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 5)).eval()
    with torch.no_grad():
        network[-1].weight *= 30  # so that probabilities change
    return network


def road(maps, inputs, target, seeds, **options):
    morf, lerf = road_probabilities(small_network(), inputs, target, maps, seeds, **options)
    return (lerf - morf).mean(1)


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("kind", MAP_TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_exact_shares_are_removed_even_if_the_map_has_ties(kind, size):
    keep = the_masks(a_map(kind, *size)[None])[0]
    removed = [round(k * size[0] * size[1]) for k in FRACTIONS]
    assert (~keep).sum((1, 2)).tolist() == 2 * removed


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(2, 9),
    levels=st.integers(1, 5),
    fractions=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4),
    seed=st.integers(0, 2**40),
)
def test_masks_are_exact_ordered_nested_and_reversed(height, width, levels, fractions, seed):
    values = np.random.default_rng(seed).integers(0, levels, (2, height, width))
    maps, size = torch.from_numpy(values).float(), height * width
    ranks = removal_order(maps, [seed, seed + 1])
    for one, order in zip(maps, ranks, strict=True):
        assert sorted(order.flatten().tolist()) == list(range(size))
        by_rank = one.flatten()[order.flatten().argsort()]
        assert bool((by_rank[:-1] >= by_rank[1:]).all())
    keep = keep_masks(ranks, fractions)
    morf, lerf = keep.chunk(2, 1)
    for k, fraction in enumerate(fractions):
        removed = round(fraction * size)
        assert (~morf[:, k]).sum((1, 2)).tolist() == (~lerf[:, k]).sum((1, 2)).tolist() == [removed] * 2
        # The exact reverse: the last `removed` pixels of MoRF's order are LeRF's first.
        assert torch.equal(~lerf[:, k], ranks >= size - removed)
        assert torch.equal(~morf[:, k], ranks < removed)


def test_ties_are_broken_by_the_seed_alone():
    constant = torch.zeros(2, 20, 20)
    same, other = removal_order(constant, [3, 3]), removal_order(constant, [3, 4])
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], other[0]) and not torch.equal(other[0], other[1])
    # A constant map gives a random order, so ranks do not follow the position.
    assert abs(np.corrcoef(same[0].flatten(), np.arange(400))[0, 1]) < 0.2
    distinct = torch.randperm(400, generator=torch.Generator().manual_seed(0)).view(1, 20, 20).float()
    assert torch.equal(removal_order(distinct, [0]), removal_order(distinct, [1]))


@given(
    st.lists(st.sampled_from([-2.5, -1e-45, -0.0, 0.0, 1e-45, 0.3, 1.0]), min_size=6, max_size=60), st.integers(0, 99)
)
def test_the_order_of_any_values_is_stable_in_float32_and_float64(values, seed):
    maps = torch.tensor(values[: len(values) // 6 * 6]).view(1, 6, -1)
    exact = removal_order(maps.double(), [seed])
    assert torch.equal(removal_order(maps, [seed]), exact)
    assert torch.equal(maps.flatten()[exact.flatten().argsort()], maps.flatten().sort(descending=True).values)


# -------------------------------------------------------------------------------------------------------- imputation


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # the public code calls numpy on tensors
@pytest.mark.parametrize("kind", MAP_TYPES)
@pytest.mark.parametrize("size", SIZES)
def test_imputation_agrees_with_the_public_solver(kind, size):
    road = pytest.importorskip("pytorch_grad_cam.metrics.road")
    image, keep = some_images(1, *size), the_masks(a_map(kind, *size)[None])
    public = torch.stack([road.NoisyLinearImputer(noise=0.0)(image[0], one.float()) for one in keep[0]])
    torch.testing.assert_close(impute(image, keep)[0], public, rtol=0, atol=1e-3)


@pytest.mark.parametrize("solver", ["compiled", "batched"])
@pytest.mark.parametrize("kind", MAP_TYPES)
def test_float64_imputation_is_the_direct_solution(kind, solver):
    image, keep = some_images(1, 21, 34).double(), the_masks(a_map(kind, 21, 34)[None], (0.2, 0.5, 0.9, 0.99))
    solve = impute if solver == "compiled" else solve_batched
    for filled, one in zip(solve(image, keep)[0], keep[0], strict=True):
        np.testing.assert_allclose(filled, exact(image[0].numpy(), one.numpy()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(112, 112), (63, 130), (1, 12), (2, 3)])
def test_batched_and_compiled_solvers_agree(size, monkeypatch):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = some_images(2, *size)
    maps = torch.stack([a_map("blob", *size), a_map("random", *size)])
    keep = the_masks(maps)
    compiled, compiled_double = impute(images, keep), impute(images.double(), keep)
    monkeypatch.setattr(cpu, "solve_on_cpu", solve_batched)
    batched = impute(images.to(device), keep.to(device))
    assert batched.device.type == device
    torch.testing.assert_close(compiled, batched.cpu(), rtol=0, atol=1e-3)
    batched = impute(images.to(device).double(), keep.to(device))
    torch.testing.assert_close(compiled_double, batched.cpu(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", [solve_on_cpu, solve_batched])
@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 3)])
def test_a_line_of_pixels_is_filled_linearly_between_known_ones_and_constant_outside(monkeypatch, shape, solver):
    monkeypatch.setattr(cpu, "solve_on_cpu", solver)
    line = some_images(1, 1, max(shape)).double().flatten(2)
    ends, half = torch.zeros(2, max(shape), dtype=torch.bool)
    ends[[0, -1]] = True
    half[: max(shape) // 2] = True
    between = line[..., :1] + (line[..., -1:] - line[..., :1]) * torch.linspace(0, 1, max(shape), dtype=torch.float64)
    beyond = torch.where(half, line, line[..., max(shape) // 2 - 1 :][..., :1])
    filled = impute(line.view(1, 3, *shape), torch.stack([ends, half]).view(1, 2, *shape), torch.zeros(1, 3, *shape))
    torch.testing.assert_close(filled.flatten(3), torch.stack([between, beyond], 1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", [impute, solve_batched])
def test_a_mask_that_keeps_nothing_gives_the_mean_colour_and_one_kept_pixel_its_own(solver, dtype):
    images = some_images(1, 40, 41).to(dtype)
    keep = torch.zeros(1, 3, 40, 41, dtype=torch.bool)
    keep[0, 1, 7, 30] = True
    keep[0, 2] = True
    filled = solver(images, keep)
    assert filled.dtype == dtype
    assert torch.equal(filled[0, 0], torch.zeros_like(images[0]))
    torch.testing.assert_close(filled[0, 1], images[0, :, 7, 30, None, None].expand(3, 40, 41), rtol=0, atol=1e-6)
    assert torch.equal(filled[0, 2], images[0])


def test_an_isolated_removed_pixel_is_the_weighted_mean_of_its_neighbours():
    images = some_images(1, 5, 5)
    keep = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    keep[0, 0, 2, 2] = keep[0, 0, 0, 4] = False
    filled = impute(images, keep)[0, 0]
    around = torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
    torch.testing.assert_close(filled[:, 2, 2], (images[0, :, 1:4, 1:4] * around).sum((1, 2)), rtol=0, atol=1e-5)
    corner = (2 * images[0, :, 0, 3] + 2 * images[0, :, 1, 4] + images[0, :, 1, 3]) / 5
    torch.testing.assert_close(filled[:, 0, 4], corner, rtol=0, atol=1e-5)


def test_noise_is_added_to_removed_pixels_only_and_shared_by_an_images_masks():
    images, keep = some_images(2, 30, 30), the_masks(torch.stack([a_map(k, 30, 30) for k in ("random", "blob")]))
    noise = road_noise([5, 6], (3, 30, 30))
    difference = impute(images, keep, noise) - impute(images, keep)
    expected = noise[:, None] * ~keep[:, :, None]
    torch.testing.assert_close(difference, expected, rtol=0, atol=1e-6)
    assert torch.equal(road_noise([6], (3, 30, 30))[0], noise[1])
    assert 0.0095 < float(road_noise([5], (3, 100, 100)).std()) < 0.0105


def test_imputation_does_not_depend_on_batch_masks_or_threads():
    images = some_images(3, 33, 46)
    keep = the_masks(torch.stack([a_map(k, 33, 46) for k in ("random", "blob", "70 % zeros")]))
    whole, threads = impute(images, keep), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(impute(images, keep), whole)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat([impute(images[i : i + 1], keep[i : i + 1]) for i in range(3)]), whole)
    assert torch.equal(impute(images, keep[:, 2:5]), whole[:, 2:5])
    batched = solve_batched(images, keep)
    alone = solve_batched(images[1:2], keep[1:2, 3:4])
    torch.testing.assert_close(batched[1:2, 3:4], alone, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- ROAD


@pytest.mark.filterwarnings("ignore:__array_wrap__")
def test_road_is_twice_the_public_one(monkeypatch):
    public = pytest.importorskip("pytorch_grad_cam.metrics.road")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    # Its noise is fixed in the code. Another seed moves ROAD by .0025.
    monkeypatch.setattr(public.NoisyLinearImputer.__init__, "__defaults__", (0.0, public.neighbors_weights))
    monkeypatch.setattr("refinecam_lib.road.road_noise", lambda seeds, shape: torch.zeros(len(seeds), *shape))
    inputs, target = some_images(3, 60, 60), torch.tensor([0, 3, 1])
    order = torch.stack([torch.randperm(3600, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    # No ties, and values at which 1 - map keeps the order in float32.
    maps = (order.float() / 4096).view(3, 60, 60)
    ours = road(maps, inputs, target, [0, 1, 2])
    theirs = [
        public.ROADCombined([20, 40, 60, 80])(
            inputs[i : i + 1],
            maps[i : i + 1].numpy(),
            [targets.ClassifierOutputSoftmaxTarget(int(target[i]))],
            small_network(),
        )
        for i in range(3)
    ]
    assert ours.abs().max() > 0.01  # otherwise the comparison is of zeros
    np.testing.assert_allclose(ours, 2 * np.concatenate(theirs), atol=1e-3)


def test_road_within_2e_4_of_the_exact_solver_on_every_map_type(monkeypatch):
    inputs, target, seeds = some_images(1, 32, 32).repeat(6, 1, 1, 1), torch.full((6,), 2), list(range(6))
    maps = torch.stack([a_map(kind, 32, 32) for kind in MAP_TYPES])
    ours = road(maps, inputs, target, seeds)

    def exact_imputation(images, keep, noise):
        filled = [
            torch.stack([torch.from_numpy(exact(image.numpy(), one.numpy())).float() for one in ones])
            for image, ones in zip(images, keep, strict=True)
        ]
        return torch.stack(filled) + noise[:, None] * ~keep[:, :, None]

    monkeypatch.setattr("refinecam_lib.road.impute", exact_imputation)
    reference = road(maps, inputs, target, seeds)
    torch.testing.assert_close(ours, reference, rtol=0, atol=2e-4)
    assert reference.abs().max() > 0.01


def test_road_depends_only_on_the_order_so_a_power_does_not_change_it():
    maps = (torch.randperm(40 * 40, generator=torch.Generator().manual_seed(0)).view(1, 40, 40) + 1).double() / 1600
    inputs, target = some_images(1, 40, 40), torch.tensor([1])
    assert torch.equal(road(maps, inputs, target, [7]), road(maps ** (1 / 8), inputs, target, [7]))


def test_road_of_a_batch_equals_batches_of_one_for_any_chunk():
    maps = torch.stack([a_map(kind, 40, 44) for kind in MAP_TYPES])
    inputs, target, seeds = some_images(6, 40, 44), torch.arange(6) % 5, list(range(10, 16))
    whole = road(maps, inputs, target, seeds)
    alone = [road(maps[i, None], inputs[i, None], target[i, None], seeds[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(road(maps, inputs, target, seeds, chunk=3), whole, rtol=0, atol=1e-6)


def test_road_probabilities_are_the_networks_own():
    maps, inputs = a_map("blob", 40, 40)[None], some_images(1, 40, 40)
    morf, lerf = road_probabilities(small_network(), inputs, torch.tensor([4]), maps, [9], fractions=(0.3, 0.6))
    keep = keep_masks(removal_order(maps, [9]), (0.3, 0.6))
    filled = impute(inputs, keep, road_noise([9], (3, 40, 40)))[0]
    expected = small_network()(filled).softmax(1)[:, 4]
    torch.testing.assert_close(torch.cat([morf[0], lerf[0]]), expected, rtol=0, atol=1e-6)
    assert not morf.requires_grad and not morf.is_inference()


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_maps_and_images_that_are_not_finite_are_refused(bad):
    maps, images = torch.rand(1, 6, 6), torch.rand(1, 3, 6, 6)
    maps[0, 2, 2] = images[0, 0, 1, 1] = bad
    with pytest.raises(InputError, match="NaN"):
        removal_order(maps, [0])
    with pytest.raises(InputError, match="NaN"):
        impute(images, torch.ones(1, 1, 6, 6, dtype=torch.bool))


@pytest.mark.parametrize("fractions", [(0.2, 1.0), (0.0,), (-0.1,), (), (float("nan"),)])
def test_fractions_outside_0_to_1_are_refused(fractions):
    with pytest.raises(InputError, match="fractions"):
        keep_masks(removal_order(torch.rand(1, 6, 6), [0]), fractions)
    with pytest.raises(InputError, match="fractions"):
        road_probabilities(nn.Flatten(), torch.rand(1, 3, 6, 6), torch.tensor([0]), torch.rand(1, 6, 6), [0], fractions)


def test_wrong_shapes_and_types_are_refused():
    images, keep = torch.rand(1, 3, 6, 6), torch.ones(1, 2, 6, 6, dtype=torch.bool)
    for wrong in (
        lambda: impute(images[0], keep),
        lambda: impute(images, keep[..., :5]),
        lambda: impute(images, keep.float()),
        lambda: impute(images.half(), keep),
        lambda: impute(images, keep, torch.zeros(1, 1, 6, 6)),
        lambda: removal_order(torch.rand(6, 6), [0]),
        lambda: removal_order(torch.rand(2, 6, 6), [0]),
        lambda: road_probabilities(nn.Flatten(), images, torch.tensor([0, 1]), torch.rand(1, 6, 6), [0]),
    ):
        with pytest.raises(InputError, match="allowed|Expected"):
            wrong()


def test_exact_removal_shows_what_lies_behind():
    seen = []

    class Net(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.mean((2, 3))

    inputs, without = torch.ones(2, 3, 10, 10), torch.zeros(2, 3, 10, 10)
    maps = torch.arange(200.0).view(2, 10, 10)
    with mock.patch.dict(os.environ, {"REFINECAM_ENGINE": "torch"}):
        morf, lerf = road_probabilities(Net(), inputs, torch.tensor([0, 1]), maps, [0, 1], [0.1], without=without)
    first, last = torch.cat(seen)[:2, 0]
    assert first[9].eq(0).all() and first[:9].eq(1).all(), "the most relevant tenth is the last row"
    assert last[0].eq(0).all() and last[1:].eq(1).all()
    assert morf.shape == lerf.shape == (2, 1)
