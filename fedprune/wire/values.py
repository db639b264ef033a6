"""The values of a sparse state as one 1-D array of an ordinary Flower ``ArrayRecord``.

Flower spends about 464 bytes of envelope on every array, so all values of a state travel packed
in a single array ``values``: tensor after tensor in layout order, of a pruned tensor only the kept
weights, in row-major order. Which weights those are, both sides know from the masks, which are for
`fedprune.wire.masks`. Arrays are written as ``np.save`` would and read without ever trusting their
headers.
"""

from __future__ import annotations

import io
import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedprune.errors import NotFiniteError, ShapeError, WireError
from fedprune.sparsity.masks import Masks
from fedprune.wire.layout import Layout

ValueType = Literal["float32", "float16", "bfloat16", "int8"]

CODEC = "fedprune-2"
"""The format's name and version; it stands in every message, so that two versions never mix."""

VALUES, SCALES, MASK = "values", "scales", "__mask__"

# The dtype that an array of each value type has on the wire. NumPy knows no bfloat16, so its bits
# travel as uint16.
_WIRE_DTYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int8": "|i1"}

_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_PREFIX = len(_NPY_MAGIC) + 2  # and the length of the header, as a little-endian uint16
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<|][a-z]\d)', 'fortran_order': False, 'shape': \((\d{1,19}), ?(\d{0,19})\), \} *\n"
)


class Codec(Protocol):
    """How states of one model travel under one set of masks; see `StateCodec` for the methods."""

    masks: Masks
    size: int

    @property
    def itemsize(self) -> float:
        """Bytes of a masked weight on the wire."""

    def flatten(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return what travels of a state, float32 of shape (size,)."""

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the state that flat values stand for."""

    def add(
        self, flat: Tensor, sums: Mapping[str, Tensor], weights: Mapping[str, Tensor], weight: int
    ) -> None:
        """Add a state to sums, where values are kept."""

    def encode(self, flat: Tensor, *, seed: int = 0) -> ArrayRecord:
        """Return flat values as a record."""

    def decode(self, record: ArrayRecord) -> Tensor:
        """Return the flat values of a record, checked."""


class StateCodec:
    """Packs the states of one model under one set of masks, and unpacks them.

    Where the kept weights are is worked out once, here; use one codec for as long as the masks stay.

    Parameters
    ----------
    layout : Layout
        The model's entries.
    masks : Masks
        Which weights are kept; tensors without a mask travel whole.
    values : "float32" | "float16" | "bfloat16" | "int8"
        How a value is written. float32 is exact, the 16-bit floats round to nearest, int8 has a
        scale and a zero point for each tensor and rounds stochastically. Arrays of float32 and
        float16 can be averaged as they are; bfloat16 travels as the bits of a uint16.

    Raises
    ------
    WireError
        For a mask whose tensor the layout does not have, or whose shape differs.

    Examples
    --------
    >>> layout = Layout.of(torch.nn.Linear(2, 1))
    >>> codec = StateCodec(layout, Masks({"weight": torch.tensor([[True, False]])}))
    >>> codec.flatten({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])})
    tensor([1., 3.])
    >>> codec.unflatten(codec.decode(codec.encode(torch.tensor([1.0, 3.0]))))["weight"]
    tensor([[1., 0.]])
    """

    def __init__(self, layout: Layout, masks: Masks, values: ValueType = "float32") -> None:
        if values not in _WIRE_DTYPES:
            raise WireError(f"unknown value type {values!r}; there are {', '.join(_WIRE_DTYPES)}")
        for name, mask in masks.items():
            if mask.shape != layout.shapes.get(name):
                raise WireError(f"mask of {name!r} has shape {tuple(mask.shape)}, which the model does not")
        self.masks = masks
        self._layout = layout
        self._values = values
        self._positions = {
            name: torch.from_numpy(np.flatnonzero(mask.cpu().numpy())) for name, mask in masks.items()
        }
        sizes = [
            len(self._positions[name]) if name in self._positions else shape.numel()
            for name, shape in layout.shapes.items()
        ]
        self._names = list(layout.shapes)
        self._offsets = [0, *accumulate(sizes)]
        self.size = self._offsets[-1]

    @property
    def itemsize(self) -> int:
        """Bytes of a value on the wire."""
        return np.dtype(_WIRE_DTYPES[self._values]).itemsize

    @property
    def layout(self) -> Layout:
        """The model's entries."""
        return self._layout

    def flatten(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the kept values of a state, float32 of shape (size,), in new memory.

        Raises
        ------
        WireError
            If the state's names or shapes are not the layout's.
        """
        self._layout.check(state)
        flat = torch.empty(self.size)
        for name, part in self.parts(flat):
            dense = state[name].detach().reshape(-1).float()
            if name in self._positions:
                torch.index_select(dense, 0, self._positions[name], out=part)
            else:
                part.copy_(dense)
        return flat

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the state that ``flat``, of shape (size,), holds; every pruned weight is exactly 0.

        The tensors have the layout's dtypes and memory of their own.
        """
        self._check_flat(flat)
        state = {}
        for name, part in self.parts(flat):
            shape, dtype = self._layout.shapes[name], self._layout.dtypes[name]
            if name in self._positions:
                dense = torch.zeros(shape.numel(), dtype=dtype)
                dense[self._positions[name]] = part.to(dtype)
            else:
                dense = part.to(dtype, copy=True)
            state[name] = dense.reshape(shape)
        return state

    def taken_over(self, flat: Tensor, other: StateCodec) -> Tensor:
        """Return the flat values of a codec with other masks of the same tensors; 0 where it kept nothing."""
        other._check_flat(flat)
        result, before = torch.zeros(self.size), dict(other.parts(flat))
        for name, part in self.parts(result):
            if name not in self._positions:
                part.copy_(before[name])
            elif len(places := other._positions[name]):
                own = self._positions[name]
                found = torch.searchsorted(places, own).clamp_(max=len(places) - 1)
                part.copy_(torch.where(places[found] == own, before[name][found], 0.0))
        return result

    def add(
        self, flat: Tensor, sums: Mapping[str, Tensor], weights: Mapping[str, Tensor], weight: int
    ) -> None:
        """Add ``weight`` times ``flat`` to the sums, and ``weight`` to the weights, where values are kept.

        ``sums`` and ``weights`` are float64, of the layout's names and shapes; they are written to.
        """
        self._check_flat(flat)
        for name, part in self.parts(flat):
            total, count, values = sums[name].view(-1), weights[name].view(-1), part.double()
            if name in self._positions:
                total.index_add_(0, self._positions[name], values, alpha=weight)
                count[self._positions[name]] += weight
            else:
                total.add_(values, alpha=weight)
                count += weight

    def encode(self, flat: Tensor, *, seed: int = 0) -> ArrayRecord:
        """Return a record with the array "values" and, for int8, the array "scales".

        Parameters
        ----------
        flat : Tensor
            float32 of shape (size,).
        seed : int
            Of the stochastic rounding; int8 alone uses it.

        Raises
        ------
        WireError
            For a value that is not finite, or not finite any more when it is rounded to 16 bits.
        """
        self._check_flat(flat)
        flat = flat.detach()
        record = ArrayRecord()
        if self._values == "int8":
            quantised, scales = self._quantise(flat, seed)
            record[VALUES] = to_array(quantised.numpy())
            record[SCALES] = to_array(scales.numpy())
            return record
        rounded = flat.to(getattr(torch, self._values)).contiguous()
        self._check_finite(rounded)
        bits = rounded.view(torch.uint16) if self._values == "bfloat16" else rounded
        record[VALUES] = to_array(bits.numpy())
        return record

    def decode(self, record: ArrayRecord) -> Tensor:
        """Return the values of a record as float32 of shape (size,).

        Read it only: where nothing has to be converted it shares the memory of the record.

        Raises
        ------
        WireError
            For arrays that are missing or too many, a dtype, shape or length that is not what was
            agreed on, or a value that is not finite.
        """
        expected = {VALUES, SCALES} if self._values == "int8" else {VALUES}
        found = set(record) - {MASK}
        if found != expected:
            raise WireError(f"the record has the arrays {sorted(found)}, expected {sorted(expected)}")
        wire = _as_tensor(from_array(VALUES, record[VALUES], _WIRE_DTYPES[self._values], (self.size,)))
        if self._values == "int8":
            shape = (len(self._names), 2)
            flat = self._dequantise(wire, _as_tensor(from_array(SCALES, record[SCALES], "<f4", shape)))
        else:
            flat = (wire.view(torch.bfloat16) if self._values == "bfloat16" else wire).float()
        self._check_finite(flat)
        return flat

    def check(self, flat: Tensor) -> None:
        """Raise a ``WireError`` unless ``flat`` is float32 of shape (size,), and finite."""
        self._check_flat(flat)
        self._check_finite(flat)

    def parts(self, flat: Tensor) -> list[tuple[str, Tensor]]:
        """Return each tensor's name and its part of ``flat``, a view."""
        bounds = zip(self._offsets, self._offsets[1:], strict=False)
        return [(name, flat[start:end]) for name, (start, end) in zip(self._names, bounds, strict=True)]

    def _check_flat(self, flat: Tensor) -> None:
        if flat.dtype != torch.float32 or flat.shape != (self.size,):
            raise WireError(
                f"values have dtype {flat.dtype} and shape {tuple(flat.shape)}, "
                f"expected torch.float32 and ({self.size},)"
            )

    def _check_finite(self, values: Tensor) -> None:
        # The extremes are finite if and only if all values are, and cost one pass and no memory.
        if not values.numel() or all(extreme.isfinite() for extreme in values.aminmax()):
            return
        index = int(values.isfinite().logical_not().nonzero()[0])
        tensor = bisect_right(self._offsets, index) - 1
        raise NotFiniteError(
            f"{self._names[tensor]!r} has a value that is not finite as {self._values}: "
            f"{values[index].item()}, number {index - self._offsets[tensor]} of its kept values"
        )

    def _quantise(self, flat: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return int8 codes and, per tensor, (scale, zero): a value is zero + scale * code."""
        self._check_finite(flat)
        generator = torch.Generator().manual_seed(seed)
        codes = torch.empty(self.size, dtype=torch.int8)
        scales = torch.zeros(len(self._names), 2)
        for row, (_, part), (_, code) in zip(scales, self.parts(flat), self.parts(codes), strict=True):
            if not part.numel():
                continue
            low, high = (extreme.item() for extreme in part.aminmax())
            row[0] = (high - low) / 255
            scale = row[0].item()  # as the receiver has it; 0 if all values are the same
            row[1] = low + 128 * scale
            noise = torch.rand(part.numel(), generator=generator)
            steps = part.sub(low).div_(scale or 1.0).add_(noise).floor_()
            code.copy_(steps.clamp_(0, 255).sub_(128 if scale else 0))
        return codes, scales

    def _dequantise(self, codes: Tensor, scales: Tensor) -> Tensor:
        flat = codes.float()
        for (_, part), (scale, zero) in zip(self.parts(flat), scales.tolist(), strict=True):
            part.mul_(scale).add_(zero)
        return flat


def with_masks(record: ArrayRecord, payload: bytes) -> ArrayRecord:
    """Return a record that holds the record's arrays and the masks' payload; no array is copied."""
    joined = ArrayRecord()
    for name, array in record.items():
        joined[name] = array
    joined[MASK] = to_array(np.frombuffer(payload, dtype=np.uint8))
    return joined


def take_masks(record: ArrayRecord) -> bytes | None:
    """Return the masks' payload in a record, None where there is none; the record is unchanged.

    Raises
    ------
    WireError
        If the entry is not a 1-D array of uint8.
    """
    if MASK not in record:
        return None
    return from_array(MASK, record[MASK], "|u1", (-1,)).tobytes()


def mask_bytes(content: RecordDict) -> int:
    """Return the length of the masks' payloads in a message, in bytes; part of ``content_bytes``."""
    arrays = (
        record[MASK] for record in content.values() if isinstance(record, ArrayRecord) and MASK in record
    )
    return sum(max(0, len(array.data) - _header_end(array.data)) for array in arrays)


def to_array(values: NDArray[Any]) -> Array:
    """Return a C-contiguous array as a Flower ``Array``, the bytes ``np.save`` writes, in one copy."""
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    data = b"".join((_npy_header(values.dtype.str, values.shape), values.data))
    return Array(dtype=str(values.dtype), shape=values.shape, stype="numpy.ndarray", data=data)


def from_array(name: str, array: Array, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the content of an array that came from outside, read-only and without a copy.

    Parameters
    ----------
    name : str
        What to call the array in an error.
    array : Array
        ``array.data`` may be any buffer.
    dtype : str
        The one that it must have, as NumPy writes it in a header, for instance "<f4".
    shape : tuple of one or two integers
        The one that it must have; (-1,) is any 1-D shape.

    Raises
    ------
    WireError
        If what the array says of itself, what its header says, and the length of its data are not
        all as expected.
    """
    if array.stype != "numpy.ndarray":
        raise WireError(f"array {name!r} has serialization type {array.stype!r}, expected 'numpy.ndarray'")
    try:
        data, said = memoryview(array.data).cast("B"), tuple(array.shape)
    except (TypeError, ValueError) as error:
        raise WireError(f"array {name!r} has no readable data or shape: {error}") from error
    header_end = _header_end(data)
    header = _NPY_HEADER.fullmatch(data[_NPY_PREFIX:header_end])
    if data[: len(_NPY_MAGIC)] != _NPY_MAGIC or header is None:
        raise WireError(f"array {name!r} has a header that is not that of a plain array in .npy format")
    written = np.dtype(dtype)
    sizes = tuple(int(size) for size in header.groups()[1:] if size)
    if shape == (-1,) and len(sizes) == 1:
        shape = sizes
    _check_same(name, "dtype", (array.dtype, header[1].decode()), (str(written), dtype), WireError)
    _check_same(name, "shape", (said, sizes), (shape, shape), ShapeError)
    length = written.itemsize * math.prod(shape)
    _check_same(name, "length in bytes", (len(data) - header_end,), (length,), WireError)
    return np.frombuffer(data[header_end:], dtype=written).reshape(shape)


def _header_end(data: bytes | memoryview) -> int:
    return _NPY_PREFIX + int.from_bytes(data[len(_NPY_MAGIC) : _NPY_PREFIX], "little")


def _check_same(
    name: str, what: str, found: tuple[Any, ...], expected: tuple[Any, ...], error: type[WireError]
) -> None:
    """Compare what an array says of itself, and then what its data says, with what is expected."""
    for said, right in zip(found, expected, strict=True):
        if said != right:
            raise error(f"array {name!r} has {what} {said!r}, expected {right!r}")


@lru_cache(maxsize=256)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


class _Shared:
    """Shows read-only memory to NumPy as writable.

    PyTorch has no read-only tensors and warns of every array that is; who gets the tensor is told
    not to write. NumPy keeps this object, and with it the memory, as the base of the array.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _as_tensor(array: NDArray[Any]) -> Tensor:
    aligned = array if array.flags.aligned else array.copy()
    return torch.from_numpy(np.asarray(cast(Any, _Shared(aligned))))
