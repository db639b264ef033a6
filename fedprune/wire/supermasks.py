"""A supermask's numbers on the wire: one bit a kept weight, or a few, in place of 32.

The state of a network with frozen weights is what multiplies these (signs, {0, 1} masks, or votes
between) and the few tensors that are not frozen. Both sides know the frozen weights from their seed.
A `SupermaskCodec` has the methods of `fedprune.wire.values.StateCodec`, so that code that averages,
sends or reads states need not know which of the two it has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedprune.errors import WireError
from fedprune.sparsity.masks import Masks
from fedprune.wire.bits import Reader, decode_vectors, encode_vectors
from fedprune.wire.layout import Layout
from fedprune.wire.values import MASK, VALUES, StateCodec, from_array, to_array

_VERSION_BYTES = 8


@dataclass(frozen=True)
class Grid:
    """The numbers that can be sent: 2**bits of them, evenly from ``low`` to 1.

    With one bit these are {-1, 1} or {0, 1}.

    Examples
    --------
    >>> Grid(-1.0, 1).nearest(torch.tensor([-0.2, 0.0, 0.7]))
    tensor([-1.,  1.,  1.])
    """

    low: float
    bits: int

    def levels(self, numbers: Tensor) -> Tensor:
        """Return the level of the nearest number, int32; halves go up, what lies outside to the end."""
        top = 2**self.bits - 1
        steps = (numbers - self.low) * (top / (1 - self.low))
        return torch.floor(steps + 0.5).clamp(0, top).int()

    def numbers(self, levels: Tensor) -> Tensor:
        """Return the numbers of levels, float32."""
        step = (1 - self.low) / (2**self.bits - 1)
        return torch.add(levels.double() * step, self.low).float()

    def nearest(self, numbers: Tensor) -> Tensor:
        """Return the nearest numbers that can be sent."""
        return self.numbers(self.levels(numbers))


class SupermaskCodec:
    """Packs states whose masked weights are frozen weights times a number of a grid.

    On the wire it is one array "values" of bytes: the version of the masks, the numbers' levels bit by
    bit, entropy-coded where that is shorter, and the other tensors that travel as float32.

    Parameters
    ----------
    layout : Layout
        The model's entries.
    masks : Masks
        Which weights are kept.
    frozen : Mapping[str, Tensor]
        A whole state: of masked tensors the frozen weights, none of them 0; of others that do not
        travel what they always are.
    sent : Collection[str]
        Names of the tensors without a mask that travel.
    grid : Grid
        The numbers.

    Raises
    ------
    WireError
        For no masks, a mask whose tensor the layout does not have or whose shape differs, or a frozen
        weight that is 0.
    """

    def __init__(
        self,
        layout: Layout,
        masks: Masks,
        frozen: Mapping[str, Tensor],
        sent: Collection[str],
        grid: Grid,
    ) -> None:
        if not masks:
            raise WireError("a supermask needs masks, and there are none")
        for name, mask in masks.items():
            if mask.shape != layout.shapes.get(name):
                raise WireError(f"mask of {name!r} has shape {tuple(mask.shape)}, which the model does not")
        self.masks = masks
        self.grid = grid
        names = [name for name in layout.shapes if name in masks or name in sent]
        # What travels, the numbers in the places of the weights.
        self._flat = StateCodec(
            Layout({name: layout.shapes[name] for name in names}, dict.fromkeys(names, torch.float32)),
            masks,
        )
        self._dtypes = layout.dtypes
        self._whole = Layout(layout.shapes, layout.dtypes)
        self._still = {name: frozen[name] for name in layout.shapes if name not in names}
        ones = {name: torch.ones(layout.shapes[name]) for name in names}
        #: What each entry of the flat values is multiplied with in the state; 1 where it is no number.
        self.scale = self._flat.flatten(ones | {name: frozen[name].float() for name in masks})
        #: Which entries of the flat values are numbers: bool of shape (size,).
        self.is_number = self._flat.flatten(
            {name: torch.full_like(one, float(name in masks)) for name, one in ones.items()}
        ).bool()
        if not self.scale.all():
            raise WireError("a frozen weight that is kept is 0")
        self._counts = [masks.kept[name] for name in names if name in masks]
        self.size = self._flat.size

    @property
    def itemsize(self) -> float:
        """Bytes of a number on the wire, before entropy coding."""
        return self.grid.bits / 8

    def flatten(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return what travels of a state, float32 of shape (size,): numbers and values, in layout order.

        A number is a weight over its frozen weight; it is rounded when it is encoded.
        """
        self._whole.check(state)
        carried = {name: tensor for name, tensor in state.items() if name not in self._still}
        return self._flat.flatten(carried) / self.scale

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the state that ``flat``, of shape (size,), stands for; every pruned weight is exactly 0."""
        found = self._flat.unflatten(flat * self.scale) | self._still
        return {name: found[name].to(dtype, copy=True) for name, dtype in self._dtypes.items()}

    def numbers(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the numbers among flat values by tensor, each a view of shape (kept,)."""
        return {name: part for name, part in self._flat.parts(flat) if name in self.masks}

    def add(
        self, flat: Tensor, sums: Mapping[str, Tensor], weights: Mapping[str, Tensor], weight: int
    ) -> None:
        """Add ``weight`` times the state of ``flat`` to the sums, and ``weight`` to the weights.

        Frozen tensors that do not travel are left out. As in `StateCodec.add`.
        """
        self._flat.add(flat * self.scale, sums, weights, weight)

    def encode(self, flat: Tensor, *, seed: int = 0) -> ArrayRecord:
        """Return a record with the array "values"; numbers are rounded to the grid.

        Raises
        ------
        WireError
            For a value that is not finite.
        """
        self._flat.check(flat)
        levels = self.grid.levels(flat[self.is_number]).numpy()
        parts = np.split(levels, np.cumsum(self._counts)[:-1])
        vectors = [(part >> bit & 1).astype(np.bool_) for bit in range(self.grid.bits) for part in parts]
        rest = flat[~self.is_number].numpy().astype("<f4").tobytes()
        payload = bytes.fromhex(self.masks.version) + encode_vectors(vectors) + rest
        return ArrayRecord({VALUES: to_array(np.frombuffer(payload, dtype=np.uint8))})

    def decode(self, record: ArrayRecord) -> Tensor:
        """Return the numbers and values of a record as float32 of shape (size,).

        Raises
        ------
        WireError
            For arrays that are missing or too many, numbers for other masks, more or fewer bits or
            values than there are, or a value that is not finite.
        """
        found = set(record) - {MASK}
        if found != {VALUES}:
            raise WireError(f"the record has the arrays {sorted(found)}, expected {[VALUES]}")
        reader = Reader(from_array(VALUES, record[VALUES], "|u1", (-1,)).tobytes())
        version = reader.take(_VERSION_BYTES).hex()
        if version != self.masks.version:
            raise WireError(f"the numbers are for the mask {version}, expected {self.masks.version}")
        planes = decode_vectors(reader, self._counts * self.grid.bits)
        each = len(self._counts)
        levels = np.zeros(sum(self._counts), dtype=np.int32)
        for bit in range(self.grid.bits):
            levels |= np.concatenate(planes[bit * each : (bit + 1) * each]).astype(np.int32) << bit
        flat = torch.empty(self.size)
        flat[self.is_number] = self.grid.numbers(torch.from_numpy(levels))
        values = np.frombuffer(reader.take(4 * (self.size - len(levels))), dtype="<f4")
        reader.end()
        flat[~self.is_number] = torch.from_numpy(values.astype(np.float32))
        self._flat.check(flat)
        return flat
