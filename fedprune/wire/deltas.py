"""What has changed between two states of one layout, exactly: the receiver who holds one has the other.

Each value is taken as the whole number that its bits are, as it travels. Values that are the same are told
apart from those that are not, and of the latter the differences are coded byte by byte: the higher bytes of
small changes are mostly 0. Which state a receiver holds is for `fedprune.protocol.held_values`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import WireError
from fedprune.wire.bits import Reader, blob, decode_vectors, encode_vectors
from fedprune.wire.values import ValueType

_INTEGERS = {"float32": torch.int32, "float16": torch.int16, "bfloat16": torch.int16}


def encode_delta(values: Tensor, held: Tensor, kind: ValueType) -> bytes:
    """Return what has changed.

    Parameters
    ----------
    values, held : Tensor
        What the receiver is to hold and what it holds, float32 of shape (n,); both as they have travelled, so
        that they lose nothing in the format.
    kind : "float32" | "float16" | "bfloat16"
        The format in which values travel.
    """
    new, old = _bits(values, kind), _bits(held, kind)
    difference = new - old  # It wraps around, as the sum will.
    changed = difference != 0
    steps = difference[changed]
    folded = (steps << 1) ^ (steps >> (8 * steps.itemsize - 1))  # 0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ...
    planes = folded.astype(folded.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, folded.itemsize)
    return encode_vectors([changed]) + b"".join(blob(plane.tobytes()) for plane in planes.T)


def decode_delta(payload: bytes, held: Tensor, kind: ValueType) -> Tensor:
    """Return the values of whom `encode_delta` was given them: float32 of the shape of ``held``.

    Raises
    ------
    WireError
        For what is no delta of so many values, or leads to one that is not finite.
    """
    bits, reader = _bits(held, kind), Reader(payload)
    (changed,) = decode_vectors(reader, [len(bits)])
    count = int(np.count_nonzero(changed))
    folded = np.empty(count, dtype=bits.dtype.newbyteorder("<"))
    for plane in folded.view(np.uint8).reshape(count, folded.itemsize).T:
        plane[:] = np.frombuffer(reader.blob(count, count), dtype=np.uint8)
    reader.end()
    unsigned = folded.astype(bits.dtype).view(f"u{bits.itemsize}")
    bits = bits.copy()
    bits[changed] += (unsigned >> 1).view(bits.dtype) ^ -(folded.astype(bits.dtype) & 1)
    values = torch.from_numpy(bits).view(getattr(torch, kind)).float()
    if not values.isfinite().all():
        raise WireError("a delta leads to a value that is not finite")
    return values


def _bits(values: Tensor, kind: ValueType) -> NDArray[np.int16 | np.int32]:
    found: NDArray[np.int16 | np.int32] = (
        values.to(getattr(torch, kind)).contiguous().view(_INTEGERS[kind]).numpy()
    )
    return found
