"""Vectors of bits, coded near their entropy: what masks, their changes and sign masks are made of.

A vector of mostly equal bits is coded by the gaps between its ones (or zeros), any other by its
bitmap. A gap is split as in a Golomb-Rice code (Golomb 1966, Rice 1979): its low bits are as good as
uniform and are written as they are, its high part is a byte for zstandard's Huffman coder. Vectors
of similar density share a stream, because one Huffman table suits them all. What the bits mean is
for `fedprune.wire.masks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import WireError

Bits = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

_NONE, _ALL = 0, 1  # classes of vectors; all others are 2 * octave + inverted, octave >= 1
_BITMAP, _GAPS = 0, 1  # the byte before a stream; _GAPS + k for gaps with k low bits
_SPILL = 255  # a byte of a gap's high part that says: add 255 and read on


def encode_bits(bits: Tensor) -> bytes:
    """Return the code of a boolean tensor of shape (n,), by which a receiver who knows n restores it."""
    if bits.dtype != torch.bool:
        raise TypeError(f"bits have dtype {bits.dtype}, expected torch.bool")
    return encode_vectors([bits.cpu().reshape(-1).numpy()])


def decode_bits(payload: bytes, count: int) -> Tensor:
    """Return the boolean tensor of shape (count,) that `encode_bits` coded.

    Raises
    ------
    WireError
        If the payload is not the code of ``count`` bits.
    """
    reader = Reader(payload)
    (bits,) = decode_vectors(reader, [count])
    reader.end()
    return torch.from_numpy(bits)


def encode_vectors(vectors: Sequence[Bits]) -> bytes:
    """Return the code of several boolean vectors, to be decoded by who knows their lengths."""
    classes = np.array([_class_of(vector) for vector in vectors], dtype=np.uint8)
    parts = [blob(classes.tobytes())]
    for kind in np.unique(classes[classes > _ALL]):
        members = [vector for vector, its_kind in zip(vectors, classes, strict=True) if its_kind == kind]
        group = np.concatenate(members) if len(members) > 1 else members[0]
        parts.append(_encode_group(~group if kind & 1 else group, int(kind) >> 1))
    return b"".join(parts)


def decode_vectors(reader: Reader, counts: Sequence[int]) -> list[Bits]:
    """Return the vectors, ``counts[i]`` bits in the i-th, each with memory of its own.

    Raises
    ------
    WireError
        If what the reader holds next is not their code.
    """
    classes = np.frombuffer(reader.blob(len(counts), len(counts)), dtype=np.uint8)
    vectors: dict[int, Bits] = {}
    for kind in np.unique(classes):
        members = np.flatnonzero(classes == kind).tolist()
        lengths = [counts[index] for index in members]
        group = _decode_group(reader, sum(lengths), int(kind) >> 1, bool(kind & 1))
        parts = np.split(group, np.cumsum(lengths)[:-1])
        vectors |= {index: part.copy() for index, part in zip(members, parts, strict=True)}
    return [vectors[index] for index in range(len(counts))]


class Reader:
    """Reads a payload from its start and never past its end."""

    def __init__(self, payload: bytes) -> None:
        self._data = bytes(payload)
        self._at = 0

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        if count > len(self._data) - self._at:
            raise WireError(f"the payload ends {count - len(self._data) + self._at} bytes too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def varint(self) -> int:
        """Return the next integer, as `varint` wrote it."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise WireError("a length in the payload has more than 63 bits")

    def blob(self, shortest: int, longest: int) -> bytes:
        """Return the next bytes, as `blob` wrote them, of a length within the bounds."""
        length = self.varint()
        data = self.take(length >> 1)
        size = len(data)
        if length & 1:
            try:
                size = zstandard.frame_content_size(data)
            except zstandard.ZstdError as error:
                raise WireError(f"a part of the payload is no zstandard frame: {error}") from error
        if not shortest <= size <= longest:
            raise WireError(f"a part of the payload has {size} bytes, expected {shortest} to {longest}")
        if not length & 1:
            return data
        try:
            # The frame's own word for its size was checked: it bounds what is allocated.
            return zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise WireError(f"a part of the payload does not decompress: {error}") from error

    def end(self) -> None:
        """Raise a ``WireError`` unless everything was read."""
        if self._at != len(self._data):
            raise WireError(f"the payload has {len(self._data) - self._at} bytes too many")


def varint(value: int) -> bytes:
    """Return a non-negative integer in groups of 7 bits, the lowest first."""
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def blob(data: bytes) -> bytes:
    """Return bytes behind their length, compressed where that is shorter."""
    packed = zstandard.ZstdCompressor(level=1).compress(data)
    if len(packed) < len(data):
        return varint(len(packed) << 1 | 1) + packed
    return varint(len(data) << 1) + data


def _class_of(bits: Bits) -> int:
    ones = int(np.count_nonzero(bits))
    if ones in (0, len(bits)):
        return _ALL if ones else _NONE
    inverted = 2 * ones > len(bits)
    rare = len(bits) - ones if inverted else ones
    return 2 * ((len(bits) // rare).bit_length() - 1) + inverted


def _encode_group(bits: Bits, octave: int) -> bytes:
    bitmap = bytes([_BITMAP]) + blob(np.packbits(bits).tobytes())
    # From one in four on, gaps take more than a bitmap of such bits.
    return bitmap if octave == 1 else min(bitmap, _encode_gaps(bits), key=len)


def _decode_group(reader: Reader, count: int, octave: int, inverted: bool) -> Bits:
    if octave == 0:
        return np.full(count, inverted)
    kind = reader.take(1)[0]
    if kind == _BITMAP:
        length = (count + 7) // 8
        packed = np.frombuffer(reader.blob(length, length), dtype=np.uint8)
        bits = np.unpackbits(packed, count=count).view(np.bool_)
    else:
        bits = _decode_gaps(reader, count, octave, kind - _GAPS)
    return np.logical_not(bits, out=bits) if inverted else bits


def _encode_gaps(bits: Bits) -> bytes:
    positions = np.flatnonzero(bits).astype(_index_type(len(bits)))
    gaps = np.diff(positions, prepend=positions.dtype.type(-1))
    gaps -= 1
    k = _low_bits(len(bits), len(positions))
    high = gaps >> k
    spills = high // _SPILL
    high -= spills * _SPILL
    stream = high.astype(np.uint8)
    if spills.any():
        ends = np.cumsum(spills + 1) - 1
        stream, lasts = np.full(int(ends[-1]) + 1, _SPILL, dtype=np.uint8), stream
        stream[ends] = lasts
    low = b"".join(np.packbits(gaps & (1 << bit)).tobytes() for bit in range(k))
    return bytes([_GAPS + k]) + blob(stream.tobytes()) + low


def _decode_gaps(reader: Reader, count: int, octave: int, k: int) -> Bits:
    if count >> k == 0:
        raise WireError(f"gaps between {count} positions have {k} low bits")
    most = count >> octave  # ones in a group whose vectors have at most one in 2**octave
    stream = np.frombuffer(reader.blob(1, most + (count >> k) // _SPILL), dtype=np.uint8)
    is_last = stream != _SPILL
    ones = int(np.count_nonzero(is_last))
    low = np.zeros(ones, dtype=_index_type(count))
    for bit in range(k):
        plane = np.unpackbits(np.frombuffer(reader.take((ones + 7) // 8), dtype=np.uint8), count=ones)
        low |= np.left_shift(plane, bit, dtype=low.dtype)
    # Checked before anything is added up in place, so that no sum below can overflow.
    covered = (int(stream.sum(dtype=np.int64)) << k) + int(low.sum(dtype=np.int64)) + ones
    if covered > count:
        raise WireError(f"the gaps cover {covered} positions, expected at most {count}")
    if not is_last[-1]:
        raise WireError("the last gap has no end")
    low += 1
    positions = np.cumsum(low, out=low)
    positions += np.cumsum(stream, dtype=low.dtype)[is_last] << k
    bits = np.zeros(count, dtype=np.bool_)
    bits[positions - 1] = True
    return bits


def _low_bits(count: int, ones: int) -> int:
    """Return how many low bits of a gap to write as they are.

    Two fewer than Rice's choice, log2(ln 2 * mean gap): that leaves the Huffman coder symbols enough
    to come within a percent of the entropy, and so few that its table is short.
    """
    return max(int(0.69 * count / ones).bit_length() - 3, 0)


def _index_type(count: int) -> type[np.int32 | np.int64]:
    return np.int32 if count < 2**31 else np.int64
