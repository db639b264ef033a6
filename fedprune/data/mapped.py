"""Pages of mapped files that a process gives back: one that reads a file by and by need not hold all of it.

What is read of a mapped file counts as resident memory of the process until it is unmapped or given back: in
the end the whole file. Not for what is mapped to be written. On Linux; elsewhere nothing is given back, and
the system takes the pages when it needs them.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Bytes read until pages are given back, which takes some milliseconds: with what the system maps around them
# they can be ten times as many. And values read at a time.
_BYTES = 8 << 20
_AT_ONCE = 32


class MappedColumn:
    """A column of a ``datasets.Dataset``, of which little stays in memory where its files are mapped.

    Parameters
    ----------
    rows
        The table, such that rows come as tables of Arrow.
    column
        Its column.
    """

    def __init__(self, rows: Any, column: str) -> None:
        self._rows, self._column = rows, column
        self._seen: list[Any] = []

    def values(self, chosen: NDArray[np.int64]) -> Iterator[Any]:
        """Yield the values at ``chosen``, (N,), as Python has them."""
        for start in range(0, len(chosen), _AT_ONCE):
            found = self._rows[chosen[start : start + _AT_ONCE]][self._column]
            yield from found.to_pylist()
            self._seen.append(found)
            if sum(each.nbytes for each in self._seen) > _BYTES:
                self._give_back()

    def _give_back(self) -> None:
        buffers = (buffer for each in self._seen for chunk in each.chunks for buffer in chunk.buffers())
        give_back({buffer.address for buffer in buffers if buffer is not None})
        self._seen.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was seen: Arrow would send all that lies beside it."""
        return {**vars(self), "_seen": []}


def give_back(addresses: Iterable[int]) -> int:
    """Have the system take back pages of the files that are mapped at addresses; return of how many bytes.

    What is read there again is mapped again, as it is in the file. Memory of other kinds is left as it is.

    Parameters
    ----------
    addresses
        Where something lies that is held meanwhile, so that its file stays mapped.
    """
    given, wanted = 0, sorted(addresses)
    for start, end in _mapped_files():
        place = bisect_left(wanted, start)
        if place < len(wanted) and wanted[place] < end:
            failed = _madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
            given += 0 if failed else end - start
    return given


def _mapped_files() -> Iterator[tuple[int, int]]:
    """Yield start and end of what is mapped of files and cannot be written to; nothing but on Linux."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        addresses, permissions, _, _, inode, *_ = line.split()
        if permissions.startswith("r--") and inode != "0":
            start, end = addresses.split("-")
            yield int(start, 16), int(end, 16)


def _madvise(*arguments: Any) -> int:
    return int(ctypes.CDLL(None).madvise(*arguments))
