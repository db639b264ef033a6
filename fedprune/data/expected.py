"""What a scenario expects of a device's own data, and what is said where that is something else.

Not for reading it: every format's reader asks here, from a header where there is one, before it reads more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.data import labels
from fedprune.data.dataset import DataInfo
from fedprune.data.decoding import AS_FOUND, Form
from fedprune.data.federated import bits_of, declared, form_of
from fedprune.data.sources import IMAGES, SOURCES
from fedprune.errors import DataError
from fedprune.scenario import Scenario
from fedprune.units import format_bytes


@dataclass(frozen=True)
class Expected:
    """What a client's images must be.

    Attributes
    ----------
    info
        What the model takes.
    min_examples
        The fewest training examples that a client needs.
    test_fraction
        Share of its images that a client tests on, unless it brings test images; 0: it never tests.
    image_column, label_column
        Names of a table's columns, where the scenario gives them.
    form
        What image files are made.
    """

    info: DataInfo
    min_examples: int = 1
    test_fraction: float = 0.0
    image_column: str | None = None
    label_column: str | None = None
    form: Form = AS_FOUND

    @property
    def bits(self) -> int:
        """Bits of a pixel's value."""
        return bits_of(self.info)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of pixels: uint8 or uint16."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    @classmethod
    def of(cls, scenario: Scenario) -> Expected:
        """Return what a scenario expects.

        Raises
        ------
        DataError
            Where the scenario alone does not say what images its model takes, or it takes none.
        """
        spec = scenario.data
        if spec.name in SOURCES.keys() - IMAGES.keys():
            raise DataError(
                f"data set {spec.name!r} has no images, and the scenario does not describe what it has "
                "(data.inputs, which `fedprune deploy init` writes); without `data` in its configuration, "
                f"the device takes its part of {spec.name!r}"
            )
        info = declared(spec)
        if info is None:
            raise DataError(
                f"a device with data of its own can't see data set {spec.name!r}: the scenario must say what "
                "its images are, data.input_shape: [channels, height, width], and what its classes are, "
                "data.classes: their number or their names"
            )
        return cls(
            info,
            max(spec.partition.min_examples, 1),
            spec.client_test_fraction,
            spec.image_column,
            spec.label_column,
            form_of(spec),
        )

    def check_count(self, examples: int, where: str) -> None:
        """Refuse fewer training images than the scenario allows a client, one at the least."""
        if examples < self.min_examples:
            asked = ", as data.partition.min_examples says" if self.min_examples > 1 else ""
            raise DataError(
                f"{where} has {examples} images, and a client needs {self.min_examples}{asked}: add images"
            )

    def check_pixels(self, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
        """Refuse an array, of which only this is known, that `pixels` can't take."""
        if dtype != self.dtype:
            top = 2**self.bits - 1
            hint = f" (from 0 to 1? numpy.rint({top} * pixels).astype('{self.dtype}'))"
            raise DataError(
                f"{where}: pixels are {dtype}, expected {self.dtype} from 0 to {top}"
                f"{hint if dtype.kind == 'f' else ''}"
            )
        channels, height, width = self.info.image_shape
        given = (1, *shape[1:]) if len(shape) == 3 else shape[1:]
        if given == (channels, height, width) or (channels == 3 and given == (1, height, width)):
            return
        if len(shape) == 4 and shape[1:] == (height, width, channels):
            hint = "its channels come last: save pixels.transpose(0, 3, 1, 2)"
        else:
            grey = f", or (N, {height}, {width}) grey" if channels in (1, 3) else ""
            hint = f"expected (N, {channels}, {height}, {width}){grey}: resize or convert them before"
        raise DataError(f"{where}: pixels have shape {shape}, {hint}")

    def pixels(self, array: NDArray[Any], where: str) -> NDArray[Any]:
        """Return pixels (N, C, H, W) or (N, H, W) as (N, C, H, W) with the channels of the model.

        C-contiguous, by a copy where they are not: PyTorch chooses by the strides of a batch how it sums, so
        that the same images otherwise gave other bits than in a simulation.

        Raises
        ------
        DataError
            Where it is of another type or shape. Grey images become coloured ones, and nothing is resized.
        """
        self.check_pixels(array.shape, array.dtype, where)
        channels, height, width = self.info.image_shape
        array = np.ascontiguousarray(array).reshape(len(array), -1, height, width)
        return array if array.shape[1] == channels else np.repeat(array, channels, axis=1)

    def labels(self, array: NDArray[Any], examples: int, where: str) -> NDArray[np.int64]:
        """Return class numbers as int64 (N,).

        They may be given as `fedprune.data.labels.numbers` takes them: as class numbers or, where these are
        text or the classes are called by numbers, as the classes' names.

        Raises
        ------
        DataError
            Where they are no labels, not one an image, or not among the scenario's classes.
        """
        if len(array) != examples or array.ndim not in (1, 2):
            raise DataError(f"{where}: labels have shape {array.shape}, expected ({examples},), one an image")
        return labels.numbers(labels.flat(array, where), self.info.class_names, where)

    def check_memory(self, examples: int, where: str) -> None:
        """Refuse to decode more images than this machine's memory holds."""
        needed = examples * int(np.prod(self.info.image_shape)) * self.dtype.itemsize
        if needed > (there := physical_memory()):
            raise DataError(
                f"{where} has {examples} images, {format_bytes(needed)} when decoded, and this machine has "
                f"{format_bytes(there)} of memory: take fewer, or an .npz file from numpy.savez, which is "
                "not read whole"
            )


def physical_memory() -> int:
    """Return this machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
