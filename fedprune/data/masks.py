"""Pictures with masks, a class for each pixel: folders ``images`` and ``masks`` with files of equal names.

Not for pictures with one label each: see ``tables``. Pillow is imported inside functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedprune.data.dataset import Examples
from fedprune.data.partition import choose, split_without_test
from fedprune.data.source import Request, Source, SourceOptions
from fedprune.errors import DataError

#: What a pixel without a class has as its target, see `fedprune.tasks`.
IGNORED = 255

_SUFFIXES = (".png", ".jpg", ".jpeg")

_EXPECTED = "expected images/NAME.png (or .jpg) and masks/NAME.png, of one size, or such in train/ and test/"


class MaskOptions(SourceOptions):
    """What ``data.options`` may say of pictures with masks."""

    classes: tuple[str, ...] = Field(
        default=(),
        description='Their names, in the order of the masks\' numbers; by default "0", "1", ... up to the '
        "highest in a training mask.",
    )
    ignored: int | None = Field(
        default=255, description="The number of pixels that have no class, such as 255: they count nowhere."
    )


def masks(request: Request) -> Source:
    """Pictures with a mask each, PNG files of class numbers: folders images/ and masks/."""
    options, root = request.read_options(MaskOptions), request.path
    if root is None or not root.exists():
        raise DataError(f"data set {request.name!r} needs data.path: {_EXPECTED}")
    if (root / "train").is_dir() and (root / "test").is_dir():
        splits = [_pairs(root / split) for split in ("train", "test")]
    else:
        pairs = _pairs(root)
        splits = [[pairs[place] for place in places] for places in split_without_test(len(pairs))]
    wanted = (request.train_examples, request.test_examples)
    chosen = [
        [pairs[place] for place in choose(np.arange(len(pairs)), count, request.seed, split)]
        for pairs, count, split in zip(splits, wanted, ("train", "test"), strict=True)
    ]
    size = _size(chosen[0][0][0])
    names = options.classes or _numbered(splits[0], options.ignored)
    if len(names) > IGNORED:
        raise DataError(f"data set {request.name!r} has {len(names)} classes: masks may have {IGNORED}")
    train, test = (_decoded(pairs, size, len(names), options.ignored) for pairs in chosen)
    return Source(train, test, names, task="segmentation")


def _numbered(pairs: Sequence[tuple[Path, Path]], ignored: int | None) -> tuple[str, ...]:
    """Return the names "0", "1", ... up to the highest number in a mask, also in one that is not chosen."""
    found = (_numbers(_opened(mask), mask) for _, mask in pairs)
    highest = max(int(numbers[numbers != ignored].max(initial=1)) for numbers in found)
    return tuple(map(str, range(highest + 1)))


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    """Return every picture with its mask, by name."""
    pictures, others = root / "images", root / "masks"
    if not (pictures.is_dir() and others.is_dir()):
        raise DataError(f"{root} has no images/ and masks/: {_EXPECTED}")
    found = []
    for picture in sorted(pictures.iterdir()):
        if picture.suffix.lower() not in _SUFFIXES:
            continue
        mask = others / f"{picture.stem}.png"
        if not mask.is_file():
            raise DataError(f"{picture} has no mask {mask}: {_EXPECTED}")
        found.append((picture, mask))
    if not found:
        raise DataError(f"{pictures} holds no pictures: {_EXPECTED}")
    return found


def _opened(file: Path) -> Any:
    """Return a picture, decoded."""
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            f'{file} needs Pillow, which is not installed: pip install "fedprune[images]"'
        ) from error
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{file} can't be read as an image ({error}): repair it or take it out") from error


def _size(file: Path) -> tuple[int, int]:
    picture = _opened(file)
    return picture.height, picture.width


def _decoded(
    pairs: Sequence[tuple[Path, Path]], size: tuple[int, int], classes: int, ignored: int | None
) -> Examples:
    """Return pictures, uint8 (N, 3, H, W), and masks, uint8 (N, H, W), `IGNORED` where there is no class."""
    pictures = np.empty((len(pairs), 3, *size), dtype=np.uint8)
    targets = np.full((len(pairs), *size), IGNORED, dtype=np.uint8)
    for number, (picture_file, mask_file) in enumerate(pairs):
        picture, mask = _opened(picture_file), _opened(mask_file)
        for each, file in ((picture, picture_file), (mask, mask_file)):
            if (each.height, each.width) != size:
                raise DataError(
                    f"{file} is {each.height}x{each.width} and the first picture {size[0]}x{size[1]} (height "
                    "x width): all must have one size; resize them before, masks without interpolation"
                )
        pictures[number] = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        numbers = _numbers(mask, mask_file)
        counts = numbers != ignored
        if (highest := numbers[counts].max(initial=0)) >= classes:
            raise DataError(
                f"{mask_file} has the number {highest}, and there are {classes} classes: name them in "
                "data.options.classes, or say which number has no class in data.options.ignored"
            )
        targets[number][counts] = numbers[counts]
    return Examples(pictures, targets)


def _numbers(mask: Any, file: Path) -> NDArray[np.int64]:
    """Return a mask's class numbers: grey values, or the places in its palette."""
    if mask.mode not in ("1", "L", "P", "I;16", "I"):
        raise DataError(
            f"{file} is coloured ({mask.mode}): a mask's pixels must be class numbers, grey or palette"
        )
    return np.asarray(mask).astype(np.int64)
