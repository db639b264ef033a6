"""What a compressed update is written into and read from: bits, whole numbers and floats, entropy-coded.

A compressor says what is sent; how it becomes bytes, near their entropy, is the matter of this module and of
`fedprune.wire`. Whoever reads knows how much there is of everything, and asks for it in the same order.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import NotFiniteError
from fedprune.wire.bits import Reader, blob, decode_vectors, encode_vectors
from fedprune.wire.symbols import decode_symbols, encode_symbols

FloatType = Literal["float32", "float16", "bfloat16"]

#: The whole numbers of as many bits, by which the bytes of a float are got at.
_INTEGERS = {"float32": torch.int32, "float16": torch.int16, "bfloat16": torch.int16}
_BITS = {"float32": "<i4", "float16": "<i2", "bfloat16": "<i2"}


class Writer:
    """Takes the parts of an update, and gives their bytes.

    Parameters
    ----------
    floats : "float32" | "float16" | "bfloat16"
        How numbers travel: ``wire.values`` of the scenario.
    """

    def __init__(self, floats: FloatType = "float32") -> None:
        self._floats = floats
        self._parts: list[bytes] = []

    def bits(self, bits: Tensor) -> None:
        """Write a boolean tensor of shape (n,)."""
        self._parts.append(encode_vectors([bits.cpu().numpy()]))

    def symbols(self, symbols: Tensor, alphabet: int) -> None:
        """Write whole numbers of shape (n,), from 0 to ``alphabet - 1``; at most 2**16 different ones."""
        self._parts.append(encode_symbols(symbols.cpu().numpy(), alphabet))

    def floats(self, values: Tensor, kind: FloatType | None = None) -> None:
        """Write numbers of shape (n,), each rounded to the scenario's format, or to that of ``kind``.

        Signs and exponents of neighbours are alike, and are coded by themselves.

        Raises
        ------
        NotFiniteError
            For a value that is not finite, or not any more when it is rounded.
        """
        kind = kind or self._floats
        rounded = values.detach().cpu().reshape(-1).to(getattr(torch, kind)).contiguous()
        if not rounded.isfinite().all():
            raise NotFiniteError(f"an update has a value that is not finite as {kind}")
        whole = rounded.view(_INTEGERS[kind]).numpy().astype(_BITS[kind])
        planes = whole.view(np.uint8).reshape(len(whole), whole.itemsize).T
        self._parts += [blob(plane.tobytes()) for plane in planes]

    @property
    def payload(self) -> bytes:
        """All that was written."""
        return b"".join(self._parts)


class Source:
    """Gives back what a `Writer` took, in the same order.

    Every method raises a ``WireError`` where the payload does not hold what is asked for.

    Parameters
    ----------
    payload : bytes
        From outside.
    floats : "float32" | "float16" | "bfloat16"
        How numbers travel.
    """

    def __init__(self, payload: bytes, floats: FloatType = "float32") -> None:
        self._floats = floats
        self._reader = Reader(payload)

    def bits(self, count: int) -> Tensor:
        """Return the next boolean tensor of shape (count,)."""
        (bits,) = decode_vectors(self._reader, [count])
        return torch.from_numpy(bits)

    def symbols(self, count: int, alphabet: int) -> Tensor:
        """Return the next whole numbers, int64 of shape (count,)."""
        return torch.from_numpy(decode_symbols(self._reader, count, alphabet))

    def floats(self, count: int, kind: FloatType | None = None) -> Tensor:
        """Return the next numbers, float32 of shape (count,), all of them finite."""
        kind = kind or self._floats
        whole = np.empty(count, dtype=_BITS[kind])
        for plane in whole.view(np.uint8).reshape(count, whole.itemsize).T:
            plane[:] = np.frombuffer(self._reader.blob(count, count), dtype=np.uint8)
        values = (
            torch.from_numpy(whole.astype(whole.dtype.newbyteorder("="))).view(getattr(torch, kind)).float()
        )
        if not values.isfinite().all():
            raise NotFiniteError(f"an update has a value that is not finite as {kind}")
        return values

    def end(self) -> None:
        """Raise a ``WireError`` unless everything was read."""
        self._reader.end()
