"""One decoded image as an array: what modes and sizes are taken, what is made of them, and what is refused.

Not for opening files or tables. Images are Pillow's, which only extras install: they are ``Any`` here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import DataError

_GREY_MODES = {"1", "L", "LA"}
_DEEP_MODES = {"I", "I;16", "I;16B", "I;16L"}
_MODE_OF = {1: "L", 3: "RGB"}

# What a pixel of 8 bits is worth among those of 16: 255 becomes 65,535.
_DEEPER = 257


@dataclass(frozen=True)
class Form:
    """What a scenario asks images to be made; None is as they are found.

    Attributes
    ----------
    size
        Height and width.
    fit
        How an image of other proportions becomes that size: its middle is cut out ("crop"), or it is
        distorted ("stretch").
    channels
        1, grey, or 3, red, green and blue.
    bits
        Of a pixel's value, 8 or 16.
    """

    size: tuple[int, int] | None = None
    fit: Literal["crop", "stretch"] = "crop"
    channels: int | None = None
    bits: int | None = None

    def array(self, image: Any, channels: int, bits: int = 8) -> NDArray[Any]:
        """Return an image as (C, H, W) with 1 or 3 channels, uint8 or uint16, in this form's size."""
        if _is_deep(image):
            values = np.asarray(self._resized(_floats(image)))[None]
            pixels = _whole(values, np.uint16) if bits == 16 else _whole(values / _DEEPER, np.uint8)
        else:
            mode = _MODE_OF[channels]
            pixels = np.asarray(self._resized(image if image.mode == mode else image.convert(mode)))
            pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        made: NDArray[Any] = stored_as(pixels[None], channels, bits)[0]
        return made

    def arrays(self, pixels: NDArray[Any], where: str) -> NDArray[Any]:
        """Return images (N, C, H, W), uint8 or uint16, in this form; themselves where they have it.

        Raises
        ------
        DataError
            Where they would have to be resized and have neither 1 nor 3 channels.
        """
        channels, bits = self.channels or pixels.shape[1], self.bits or 8 * pixels.dtype.itemsize
        same_size = self.size in (None, pixels.shape[2:])
        if same_size and pixels.shape[1] in (1, channels):
            return stored_as(pixels, channels, bits)
        if pixels.shape[1] not in _MODE_OF:
            raise DataError(
                f"{where}: images have {pixels.shape[1]} channels, and those that are resized have 1 or 3"
            )
        if pixels.shape[1] == 3 and pixels.dtype == np.uint16:
            pixels = stored_as(pixels, 3, 8)  # Pillow has no colours of 16 bits.
        made = [self.array(_pillow(image), channels, bits) for image in pixels]
        return np.stack(made)

    def _resized(self, image: Any) -> Any:
        """Return an image of this form's size, bilinear, and smoothed where it becomes smaller."""
        from PIL import Image

        if self.size is None or (image.height, image.width) == self.size:
            return image
        (height, width), (tall, wide) = self.size, (image.height, image.width)
        box = (0.0, 0.0, float(wide), float(tall))
        if self.fit == "crop" and wide * height > tall * width:
            left = (wide - tall * width / height) / 2
            box = (left, 0.0, wide - left, float(tall))
        elif self.fit == "crop":
            top = (tall - wide * height / width) / 2
            box = (0.0, top, float(wide), tall - top)
        return image.resize((width, height), Image.Resampling.BILINEAR, box)


AS_FOUND = Form()


def _is_deep(image: Any) -> bool:
    return image.mode in _DEEP_MODES


def _image(values: NDArray[Any]) -> Any:
    from PIL import Image

    return Image.fromarray(values)


def _floats(image: Any) -> Any:
    """Return a grey image of 16 bits as one of floats, which Pillow resizes."""
    return _image(np.asarray(image).astype(np.float32))


def _pillow(pixels: NDArray[Any]) -> Any:
    """Return the Pillow image of an array (C, H, W) with 1 or 3 channels."""
    return _image(np.ascontiguousarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))


def _whole(values: Any, dtype: type) -> NDArray[Any]:
    clipped: NDArray[Any] = np.clip(np.rint(np.asarray(values)), 0, np.iinfo(dtype).max)
    return clipped.astype(dtype)


def kind(image: Any, what: str) -> tuple[int, int]:
    """Return how many channels an image has, 1 if it is grey, else 3, and how many bits a value of it has.

    Raises
    ------
    DataError
        Where its values are no whole numbers from 0 to 255 or 65,535; ``what`` names the image.
    """
    if image.mode == "F" or (
        image.mode == "I" and not 0 <= image.getextrema()[0] <= image.getextrema()[1] < 2**16
    ):
        raise DataError(f"{what} has values beyond 8 or 16 bits a channel ({image.mode}): convert it first")
    if _is_deep(image):
        return 1, 16
    return (1 if image.mode in _GREY_MODES else 3), 8


def is_image(encoded: bytes) -> bool:
    """Say whether bytes begin as an image does."""
    from PIL import Image

    try:
        with Image.open(BytesIO(encoded)):
            return True
    except (OSError, ValueError, SyntaxError):
        return False


def why_unreadable(error: BaseException) -> str:
    """Return why Pillow cannot read an image, in a few words that name no object of its own."""
    text = str(error).strip().splitlines()
    if not text or "<_io." in text[0]:
        return "it is none of the formats that Pillow knows, or damaged"
    return text[0]


def check(image: Any, shape: tuple[int, int, int], bits: int, form: Form, what: str) -> None:
    """Refuse an image that does not become what a scenario expects, unless the scenario's form says how.

    A header is enough but for rare modes: nothing is decoded.

    Parameters
    ----------
    image
        A Pillow image.
    shape, bits
        (C, H, W) and bits of a value that are expected.
    form
        What the scenario asks images to be made.
    what
        Names the image.

    Raises
    ------
    DataError
        Where its size is another, it has too many channels, or more bits.
    """
    expected, height, width = shape
    if expected not in _MODE_OF:
        raise DataError(f"{what}: the scenario's images have {expected} channels, and files hold 1 or 3")
    if form.size is None and (image.height, image.width) != (height, width):
        raise DataError(
            f"{what} is {image.height}x{image.width} (height x width), and the scenario's images are "
            f"{height}x{width}: data.resize: [{height}, {width}] makes them so"
        )
    found, deep = kind(image, what)
    if found > expected and form.channels is None:
        raise DataError(
            f"{what} is coloured, and the scenario's images are grey: data.channels: 1 makes them so"
        )
    if deep > bits and form.bits is None:
        raise DataError(f"{what} has {deep} bits a channel ({image.mode}): write data.bits: 8 or 16")


class Growing:
    """Arrays of images that are decoded one by one, until the last of which it is open how they are stored.

    Grey images become coloured where one is coloured. Values have 16 bits where one has, and all are grey.

    Parameters
    ----------
    counts
        How many images each array has.
    form
        What they are made.
    """

    def __init__(self, counts: Iterable[int], form: Form) -> None:
        self.arrays: list[NDArray[Any]] = [np.empty((count, 1, 0, 0), np.uint8) for count in counts]
        self._form = form
        self._found = (1, 8)
        self._size: tuple[int, int] | None = form.size

    @property
    def stored(self) -> tuple[int, int]:
        """Channels and bits of the images that were seen so far, as they are stored."""
        channels, bits = self._found
        return self._form.channels or channels, self._form.bits or bits

    def see(self, image: Any, what: str) -> bool:
        """Take an image into account; return whether no further one can change how images are stored.

        Raises
        ------
        DataError
            Where it has another size than the first, and the form says none.
        """
        if self._size is None:
            self._size = (image.height, image.width)
        if self._form.size is None and (image.height, image.width) != self._size:
            height, width = self._size
            raise DataError(
                f"{what} is {image.height}x{image.width} and the first is {height}x{width}: all must have "
                f"one size; data.resize: [{height}, {width}] makes them so"
            )
        channels, bits = kind(image, what)
        if channels == 3 or self._found[0] == 3:
            self._found = (3, 8)
        else:
            self._found = (1, max(bits, self._found[1]))
        told = self._form.channels is not None and self._form.bits is not None
        return told or self._found[0] == 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images as they are stored."""
        height, width = self._size or (0, 0)
        return self.stored[0], height, width

    def put(self, part: int, number: int, image: Any, what: str) -> None:
        """Store image ``number`` of an array."""
        self.see(image, what)
        channels, bits = self.stored
        first = self.arrays[part].shape[2:] != self.shape[1:]
        if first:
            dtype = np.uint8 if bits == 8 else np.uint16
            self.arrays = [np.empty((len(array), *self.shape), dtype) for array in self.arrays]
        else:
            self.arrays = [stored_as(array, channels, bits) for array in self.arrays]
        self.arrays[part][number] = self._form.array(image, channels, bits)


def stored_as(pixels: NDArray[Any], channels: int, bits: int) -> NDArray[Any]:
    """Return pixels, (N, C, H, W), with more channels or other bits; themselves where they have these."""
    if pixels.dtype == np.uint8 and bits == 16:
        pixels = pixels.astype(np.uint16) * np.uint16(_DEEPER)
    elif pixels.dtype == np.uint16 and bits == 8:
        pixels = _whole(pixels / _DEEPER, np.uint8)
    return pixels if pixels.shape[1] == channels else np.repeat(pixels, channels, axis=1)
