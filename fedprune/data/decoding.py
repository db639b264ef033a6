"""One decoded image as an array: what modes and sizes are taken, and what is said of the others.

Not for opening files or tables. Images are Pillow's, which only extras install: they are ``Any`` here.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import DataError

_GREY_MODES = {"1", "L", "LA"}
_DEEP_MODES = {"I", "I;16", "I;16B", "I;16L", "F"}
_MODE_OF = {1: "L", 3: "RGB"}


def channels(image: Any, what: str) -> int:
    """Return how many channels an image has as an array: 1 if it is grey, else 3.

    Raises
    ------
    DataError
        Where it has more than 8 bits a channel; ``what`` names the image.
    """
    if image.mode in _DEEP_MODES:
        raise DataError(f"{what} has more than 8 bits a channel ({image.mode}): convert it first")
    return 1 if image.mode in _GREY_MODES else 3


def is_image(encoded: bytes) -> bool:
    """Say whether bytes begin as an image does."""
    from PIL import Image

    try:
        with Image.open(BytesIO(encoded)):
            return True
    except (OSError, ValueError, SyntaxError):
        return False


def array(image: Any, count: int) -> NDArray[np.uint8]:
    """Return an image as uint8 (C, H, W) with ``count`` channels, 1 or 3."""
    mode = _MODE_OF[count]
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def check(image: Any, shape: tuple[int, int, int], what: str) -> None:
    """Refuse an image that does not become ``shape``, (C, H, W), without being resized or losing its colour.

    A header is enough: nothing is decoded.

    Raises
    ------
    DataError
        Where its size is another, it has too many channels, or more than 8 bits in one.
    """
    expected, height, width = shape
    found = channels(image, what)
    if expected not in _MODE_OF:
        raise DataError(f"{what}: the scenario's images have {expected} channels, and files hold 1 or 3")
    if (image.height, image.width) != (height, width):
        raise DataError(
            f"{what} is {image.height}x{image.width} (height x width), and the scenario's images are "
            f"{height}x{width}: resize it before, for instance with PIL.Image.resize"
        )
    if found > expected:
        raise DataError(f"{what} is coloured, and the scenario's images are grey: convert it before")
