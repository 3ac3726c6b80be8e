"""Turn pictures into the normalised inputs of a network, and maps into pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import InputError

HEAT = "inferno"
"""The colours of maps."""


def inputs_of(model: nn.Module, images: Any) -> Tensor:
    """Return normalised inputs (B,C,H,W).

    Args:
        model: The network. Pictures go through its own preprocessing, which only networks of timm carry.
        images: Normalised inputs (B,C,H,W) or (C,H,W), as a tensor or a floating array; or one or several pictures,
            uint8 arrays (H,W,3) or paths.

    Raises:
        InputError: They are something else, or the network's preprocessing is not known.
    """
    if isinstance(images, np.ndarray) and images.dtype != np.uint8:
        images = torch.from_numpy(images)
    if isinstance(images, Tensor):
        return images[None] if images.ndim == 3 else images
    many = list(images) if isinstance(images, (list, tuple)) or np.ndim(images) == 4 else [images]
    transform = _transform_of(model)
    return torch.stack([transform(_picture(each)) for each in many])


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"Expected a uint8 array (H, W, 3), got {image.dtype} of shape {image.shape}.")
        return Image.fromarray(image)
    if isinstance(image, (str, Path)):
        from ..datasets.photographs import open_picture

        return open_picture(image)
    raise InputError(f"Expected a picture, a uint8 array or a path, got a {type(image).__name__}.")


def _transform_of(model: nn.Module) -> Any:
    core = next((m for m in model.modules() if isinstance(getattr(m, "pretrained_cfg", None), dict)), None)
    if core is None:
        raise InputError(
            f"The preprocessing of {type(model).__name__} is not known, so pictures cannot be prepared. Pass normalised "
            "inputs (B, C, H, W)."
        )
    import timm

    return timm.data.create_transform(**timm.data.resolve_model_data_config(core), is_training=False)


def overlay(picture: Any, maps: Any, number: int = 0, opacity: float = 0.9) -> Image.Image:
    """Lay a map over a picture: where the map is 0 the picture stays, where it is 1 the colour covers it most.

    Args:
        picture: A picture, a uint8 array (H,W,3) or a path.
        maps: An explanation, or maps (B,H,W) or (H,W) in [0,1].
        number: Which image of the batch.
        opacity: Of the colour where the map is 1, in [0,1].

    Returns:
        A picture of the size of `picture`.
    """
    photo = _picture(picture)
    heat = torch.as_tensor(getattr(maps, "maps", maps)).detach().float().cpu()
    heat = torch.nan_to_num(heat[number] if heat.ndim == 3 else heat)
    size = photo.size[1], photo.size[0]
    large = torch.nn.functional.interpolate(heat[None, None], size=size, mode="bilinear")[0, 0].clamp(0, 1).numpy()
    return Image.fromarray((255 * blend(np.asarray(photo) / 255, large, opacity)).round().astype(np.uint8))


def blend(pixels: np.ndarray, heat: np.ndarray, opacity: float | None) -> np.ndarray:
    """Draw a map (H,W) in [0,1] over pixels (H,W,3) in [0,1]. A pixel's opacity follows the map.

    opacity: Where the map is 1, in [0,1]. None draws the map without the picture.
    """
    import matplotlib

    alpha = 1 if opacity is None else opacity * heat[..., None]
    return (1 - alpha) * pixels + alpha * matplotlib.colormaps[HEAT](heat)[..., :3]
