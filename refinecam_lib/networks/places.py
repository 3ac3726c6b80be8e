"""Find out whether tokens lie in raster order, from where they change when a part of the image changes."""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from .hooks import hooked, tensor_of
from .layout import layer_map

_PARTS = ((0, 2), (2, 0), (1, 3), (3, 1))
"""Row and column of image parts in a grid of 4 by 4, none on the diagonal."""


class Places(NamedTuple):
    """Where a layer's map changes with a part of the image. Both are 1 for a local layer in raster order."""

    right: float
    """The share of the most changed places that lie in the part. In another order it is about 1/16."""
    own: float
    """The change in the part, relative to that of the most changed places. Attention to the whole image gives 1, too."""

    @property
    def local(self) -> bool:
        """Whether a change appears mostly where it is."""
        return self.right >= 0.3

    @property
    def elsewhere(self) -> bool:
        """Whether a change appears mostly in another place."""
        return self.right < 0.3 and self.own < 0.5


def places_of(
    network: nn.Module, classify: Callable[[Tensor], Tensor], image: Tensor, layers: Sequence[str]
) -> dict[str, Places]:
    """Change four parts of an image, one at a time, and compare each layer's map with that of the whole image.

    Args:
        network: It is in evaluation mode, and comes back unchanged.
        classify: Runs the network.
        image: (1,C,H,W).
        layers: Names of layers.

    Returns:
        Layer -> where its map changes. Layers with less than 4 rows or columns are left out.
    """
    size, thread = (image.shape[2], image.shape[3]), threading.get_ident()
    parts = torch.zeros(len(_PARTS), *size)
    for part, (row, column) in zip(parts, _PARTS):
        part[_quarter(row, size[0]), _quarter(column, size[1])] = 1
    noise = torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(0))
    changes = 2 * noise * functional.pad(parts, (0, 0, 0, 0, 1, 0))[:, None]  # the first is 0
    found: dict[str, Places] = {}

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, returned: object) -> None:
            if threading.get_ident() != thread or (output := tensor_of(returned)) is None:
                return
            maps = layer_map(network, name, output.detach(), size).cpu()
            if min(maps.shape[2:]) < 4:
                return
            moved = (maps[1:] - maps[:1]).norm(dim=1).flatten(1)
            inside = functional.adaptive_max_pool2d(parts[:, None], (maps.shape[2], maps.shape[3])).flatten(1)
            most = [each.topk(int(part.sum())).indices for each, part in zip(moved, inside)]
            right = [part[places].mean() for part, places in zip(inside, most)]
            own = [each[part > 0].mean() / each[places].mean() for each, part, places in zip(moved, inside, most)]
            found[name] = Places(float(torch.stack(right).mean()), float(torch.stack(own).mean()))

        return hook

    with torch.no_grad(), hooked(network.get_submodule(name).register_forward_hook(watch(name)) for name in layers):
        classify(image + changes.to(image))
    return found


def _quarter(number: int, length: int) -> slice:
    return slice(round(number * length / 4), round((number + 1) * length / 4))


_in_order: WeakKeyDictionary[nn.Module, set] = WeakKeyDictionary()
"""Network -> the layers, with the image's size, that `check_order` has seen in order."""


def check_order(network: nn.Module, classify: Callable[[Tensor], Tensor], image: Tensor, layers: Sequence[str]) -> None:
    """Check that the tokens of layers lie in raster order. Arguments are those of `places_of`.

    Raises:
        InputError: They do not.
    """
    known, size = _in_order.setdefault(network, set()), image.shape[2:]
    unknown = [name for name in layers if (name, size) not in known]
    found = places_of(network, classify, image, unknown) if unknown else {}
    if lost := [name for name, places in found.items() if places.elsewhere]:
        raise InputError(
            f"The tokens of layers {lost} are not in raster order: a change in one part of the image moves other parts of "
            "the map most. Choose layers whose tokens lie row by row."
        )
    known.update((name, size) for name in unknown)
