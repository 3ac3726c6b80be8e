"""One picture: a bundled one by name, your own file by its path, or the bytes of an upload.

>>> x = transform_of(spec)(open_picture("holiday.jpg"))          # (3,H,W) in [0,1], as the network wants it
"""

import io
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError
from .photographs import BUNDLED, photographs, rgb
from .sample import UNREADABLE


def open_picture(source: str | Path | bytes) -> Image.Image:
    """A picture as RGB and upright, as its camera noted it; `source`: a name in BUNDLED, a path, or a file's bytes.

    Raises InputError where there is no such file or it is not a picture.
    """
    name = "that was uploaded" if isinstance(source, bytes) else repr(str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else _file(source)) as opened:
            return rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise InputError(f"picture {name} can't be read: no format of pictures that Pillow knows") from error
    except UNREADABLE as error:
        raise InputError(f"picture {name} can't be read: {error}") from error


def _file(source: str | Path) -> Path:
    from torchvision.transforms.functional import pil_to_tensor

    bundled = {photo.name: photo.path for photo in photographs("bundled", len(BUNDLED), pil_to_tensor).files}
    file = Path(bundled.get(str(source)) or source).expanduser()
    if not file.is_file():
        raise InputError(f"picture {str(source)!r} is not a file; allowed: a path, or one of {', '.join(BUNDLED)}")
    return file
