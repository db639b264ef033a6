"""Whole numbers of a small range, coded near their entropy: the levels of a quantiser, the bytes of floats.

A number is read bit by bit, the highest first. All bits at one place that come after the same higher bits
make one vector, which `fedprune.wire.bits` codes by its density. By the chain rule the entropies of these
vectors add up to that of the numbers, so nothing is lost by coding bits; and where a number is rare, so are
its vectors. What the numbers mean is for who codes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import WireError
from fedprune.wire.bits import Bits, Reader, decode_vectors, encode_vectors

Symbols = NDArray[np.integer[Any]]

#: Numbers are below 2**16: the vectors of a place may be as many as there are numbers below it.
LARGEST = 2**16


def encode_symbols(symbols: Symbols, alphabet: int) -> bytes:
    """Return the code of whole numbers of shape (n,), by which a receiver who knows n restores them.

    Parameters
    ----------
    symbols : ndarray
        Whole numbers from 0 to ``alphabet - 1``.
    alphabet : int
        At most 2**16; the receiver has to know it, too.

    Raises
    ------
    ValueError
        For a number out of its range.
    """
    places = _places(alphabet)
    if symbols.size and not 0 <= symbols.min() <= symbols.max() < alphabet:
        raise ValueError(f"symbols from {symbols.min()} to {symbols.max()}, expected 0 to {alphabet - 1}")
    numbers, parts = symbols.astype(np.int64), []
    for place in reversed(range(places)):
        order, ends = _groups(numbers >> (place + 1))
        bits = ((numbers >> place) & 1).astype(np.bool_)
        parts.append(encode_vectors(np.split(bits[order], ends)))
    return b"".join(parts)


def decode_symbols(reader: Reader, count: int, alphabet: int) -> NDArray[np.int64]:
    """Return the ``count`` whole numbers, int64, that `encode_symbols` coded.

    Raises
    ------
    WireError
        If what the reader holds next is not their code.
    """
    symbols = np.zeros(count, dtype=np.int64)
    for _ in range(_places(alphabet)):
        order, ends = _groups(symbols)
        lengths = np.diff(np.concatenate([[0], ends, [count]])).tolist()
        bits: Bits = np.concatenate(decode_vectors(reader, lengths))
        symbols <<= 1
        symbols[order] |= bits
    if count and symbols.max() >= alphabet:
        raise WireError(f"a symbol is {symbols.max()}, expected at most {alphabet - 1}")
    return symbols


def _places(alphabet: int) -> int:
    if not 1 <= alphabet <= LARGEST:
        raise ValueError(f"an alphabet of {alphabet} symbols, expected 1 to {LARGEST}")
    return (alphabet - 1).bit_length()


def _groups(prefixes: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the order in which equal numbers lie side by side, and where each but the last of them ends."""
    order = np.argsort(prefixes, kind="stable")
    return order, np.flatnonzero(np.diff(prefixes[order])) + 1
