"""Masks: which weights of which tensors a model keeps.

A ``Masks`` is immutable and knows its version, a hash of its content, so that two sides of a
connection can agree on one without sending it. Here a mask is also made from scores and counts
(`keep_highest`) and put on a state (`apply_masks`). What the scores are is decided by criteria,
how many weights a layer keeps by distributions; how masks travel is `fedprune.wire`'s matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Masks(Mapping[str, Tensor]):
    """The masks of a model: tensor name -> boolean tensor of the tensor's shape, True = kept.

    Only tensors that are pruned appear; a model without pruned tensors has empty masks. The
    tensors are not copied: the caller must not write to them afterwards.

    Examples
    --------
    >>> masks = Masks({"fc.weight": torch.tensor([[True, False], [True, True]])})
    >>> masks.density, masks.kept
    (0.75, {'fc.weight': 3})
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self._tensors = dict(tensors or {})
        for name, mask in self._tensors.items():
            if mask.dtype != torch.bool:
                raise TypeError(f"mask of {name!r} has dtype {mask.dtype}, expected torch.bool")

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @cached_property
    def version(self) -> str:
        """Sixteen hexadecimal digits that depend on every name, shape and bit; "" when empty.

        The order of the names does not count, as it does not in a comparison of mappings.
        """
        if not self._tensors:
            return ""
        digest = hashlib.blake2b(digest_size=8)
        for name, mask in sorted(self._tensors.items()):
            digest.update(f"{name!r}{tuple(mask.shape)}".encode())
            digest.update(np.packbits(mask.cpu().numpy().reshape(-1)).tobytes())
        return digest.hexdigest()

    @cached_property
    def kept(self) -> dict[str, int]:
        """Number of kept weights per tensor."""
        return {name: int(mask.sum()) for name, mask in self._tensors.items()}

    @cached_property
    def total(self) -> int:
        """Number of prunable weights."""
        return sum(mask.numel() for mask in self._tensors.values())

    @property
    def density(self) -> float:
        """Kept share of the prunable weights; 1.0 when nothing is pruned."""
        return sum(self.kept.values()) / self.total if self.total else 1.0

    def densities(self) -> dict[str, float]:
        """Kept share per tensor."""
        return {name: self.kept[name] / mask.numel() for name, mask in self._tensors.items()}

    @cached_property
    def axes(self) -> dict[str, tuple[Tensor, ...]] | None:
        """The kept positions along each dimension of each tensor; None unless all masks are their products.

        They are where whole channels are pruned: what is kept of each tensor is then a smaller tensor.
        """
        found = {}
        for name, mask in self._tensors.items():
            along = tuple(_kept_along(mask, dim) for dim in range(mask.dim()))
            if math.prod(len(positions) for positions in along) != self.kept[name]:
                return None
            found[name] = along
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self.version == other.version

    def __hash__(self) -> int:
        return hash(self.version)

    def __repr__(self) -> str:
        return f"Masks({len(self)} tensors, density {self.density:.4g}, version {self.version!r})"


def _kept_along(mask: Tensor, dim: int) -> Tensor:
    """Return where along a dimension anything is kept, int64 and ascending."""
    others = [axis for axis in range(mask.dim()) if axis != dim]
    return (mask.any(dim=others) if others else mask).nonzero().reshape(-1)


def apply_masks(state: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Return the state with every pruned weight set to exactly 0, whatever it was.

    Tensors with a mask are new, the others are those given. The state may be a part of a model:
    masks of tensors that it does not hold are not used. Raises ValueError where the shapes of a
    mask and its tensor differ.
    """
    return {
        name: _masked(name, tensor, masks[name]) if name in masks else tensor
        for name, tensor in state.items()
    }


def _masked(name: str, tensor: Tensor, mask: Tensor) -> Tensor:
    if mask.shape != tensor.shape:  # torch.where would broadcast
        raise ValueError(f"mask of {name!r} has shape {tuple(mask.shape)}, its tensor {tuple(tensor.shape)}")
    return torch.where(mask, tensor, torch.zeros((), dtype=tensor.dtype))


def keep_highest(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> Masks:
    """Return masks that keep exactly ``counts[name]`` weights of each tensor, those of highest score.

    Scores are floating-point tensors of the weights' shapes. See `highest` for ties and errors.
    """
    return Masks({name: highest(score, counts[name], name) for name, score in scores.items()})


def highest(scores: Tensor, count: int, name: str = "scores") -> Tensor:
    """Return the mask, on the CPU, of exactly ``count`` entries: the highest ones.

    Of equal scores the first in row-major order are kept, so the result depends on nothing but
    the values. Infinite scores are ordinary ones. Raises ValueError for a count that the tensor
    cannot give and for NaN, which has no rank.
    """
    flat = scores.detach().cpu().reshape(-1)
    if not 0 <= count <= flat.numel():
        raise ValueError(f"cannot keep {count} of the {flat.numel()} entries of {name!r}")
    if flat.isnan().any():
        raise ValueError(f"{name!r} has scores that are not a number")
    if count == 0:
        return torch.zeros(scores.shape, dtype=torch.bool)
    # A selection, not a sort: linear in the number of weights, however many are equal.
    threshold = flat.kthvalue(flat.numel() - count + 1).values
    mask = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    mask[ties[: count - int(mask.sum())]] = True
    return mask.reshape(scores.shape)
