"""A client's images out of an ``.npz`` file: ``pixels``, ``labels`` and, if it has one, a test part.

``numpy.savez`` stores arrays as they are: their pixels are mapped, not read, so that a batch costs the pages
it touches. Those of ``numpy.savez_compressed`` are read whole. Nothing is unpickled.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedprune.data.dataset import Examples
from fedprune.data.expected import Expected, physical_memory
from fedprune.errors import DataError
from fedprune.units import format_bytes

_MAKE_ONE = "make one with numpy.savez(file, pixels=..., labels=...)"

# Bytes of the header that a zip file repeats before each member, and where in it the lengths of name and of
# extra field stand that follow it (PKWARE's APPNOTE, 4.3.7).
_LOCAL_HEADER = 30
_LENGTHS = 26

_READ_AT_ONCE = 1 << 20


def read(path: Path, expected: Expected) -> tuple[Examples, Examples | None]:
    """Return the training images and those to test on, where the file has them and clients test.

    Raises
    ------
    DataError
        Where the file is damaged, lacks an array, or holds something else than is expected.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if missing := [name for name in ("pixels", "labels") if name not in names]:
                found = f"it has {', '.join(map(repr, names))}" if names else "it is empty"
                raise DataError(f"{path} has no array {missing[0]!r} ({found}): {_MAKE_ONE}")
            tests = [name for name in ("test_pixels", "test_labels") if name in names]
            if len(tests) == 1:
                raise DataError(f"{path} has {tests[0]!r} alone: test images need pixels and labels")
            wanted = bool(tests) and expected.test_fraction > 0
            train = _images(path, archive, "", expected)
            return train, _images(path, archive, "test_", expected) if wanted else None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise DataError(f"{path} is no .npz file, or damaged ({error}): {_MAKE_ONE}") from error


def _images(path: Path, archive: zipfile.ZipFile, prefix: str, expected: Expected) -> Examples:
    pixels, labels = (_Array.find(path, archive, f"{prefix}{name}") for name in ("pixels", "labels"))
    expected.check_pixels(pixels.shape, pixels.dtype, f"{path}, {pixels.name}")
    examples = pixels.shape[0]
    if not prefix:
        expected.check_count(examples, str(path))
    elif not examples:
        raise DataError(f"{path}: {pixels.name} is empty: leave it out, or put images in")
    numbers = expected.labels(labels.read(archive), examples, f"{path}, {labels.name}")
    return Examples(expected.pixels(pixels.map_or_read(archive), f"{path}, {pixels.name}"), numbers)


@dataclass(frozen=True)
class _Array:
    """A member of an ``.npz`` file of which only the header is read; ``start`` is where its data begin."""

    path: Path
    name: str
    member: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    start: int

    @classmethod
    def find(cls, path: Path, archive: zipfile.ZipFile, name: str) -> _Array:
        """Read a header, and refuse one that claims another size than the file has."""
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as file:
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = header(file)
            start = file.tell()
        if dtype.hasobject:
            raise DataError(f"{path}: {name} are pickled Python objects, which are never loaded: {_MAKE_ONE}")
        claimed = math.prod(shape) * dtype.itemsize
        if claimed != member.file_size - start:
            raise DataError(
                f"{path} is damaged: {name} claims shape {shape}, {format_bytes(claimed)}, and holds "
                f"{format_bytes(member.file_size - start)}"
            )
        return cls(path, name, member, shape, dtype, fortran, start)

    @property
    def order(self) -> Any:
        """NumPy's name of the order in which the values lie."""
        return "F" if self.fortran else "C"

    def map_or_read(self, archive: zipfile.ZipFile) -> NDArray[Any]:
        """Return the array, mapped where it is stored as it is."""
        if self.member.compress_type != zipfile.ZIP_STORED:
            return self.read(archive)
        with self.path.open("rb") as file:
            file.seek(self.member.header_offset + _LENGTHS)
            lengths = file.read(_LOCAL_HEADER - _LENGTHS)
        name, extra = (int.from_bytes(length, "little") for length in (lengths[:2], lengths[2:]))
        start = self.member.header_offset + _LOCAL_HEADER + name + extra + self.start
        mapped = np.memmap(self.path, self.dtype, mode="r", offset=start, shape=self.shape, order=self.order)
        return np.asarray(mapped)

    def read(self, archive: zipfile.ZipFile) -> NDArray[Any]:
        """Return the array, read into memory piece by piece."""
        size = self.member.file_size - self.start
        if size > (there := physical_memory()):
            raise DataError(
                f"{self.path}: {self.name} takes {format_bytes(size)}, and this machine has "
                f"{format_bytes(there)} of memory: save it with numpy.savez, which need not be read whole"
            )
        values = np.empty(size, dtype=np.uint8)
        with archive.open(self.member) as file:
            file.read(self.start)
            for begin in range(0, size, _READ_AT_ONCE):
                piece = file.read(min(_READ_AT_ONCE, size - begin))
                values[begin : begin + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            file.read(1)  # The checksum is compared when the end is found, and not before.
        return values.view(self.dtype).reshape(self.shape, order=self.order)
