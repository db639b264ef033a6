"""Growing pruned weights: which of them the loss asks for, by gradient, and swapping masks.

The client's half finds, layer by layer, the pruned weights with the largest gradient; the server's
half averages what clients found and swaps as many kept weights for grown ones. Pure PyTorch; when
to do so, and for which layers, is for a strategy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.errors import NotFiniteError, WireError
from fedprune.sparsity.masks import Masks


def layer_gradient(module: nn.Module, name: str, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the gradient of the mean cross entropy over some batches for one weight, dense.

    Batch norm uses the statistics of the batch, as in training; the module comes back unchanged.
    No other weight's gradient is ever formed.

    Parameters
    ----------
    module : nn.Module
        The model.
    name : str
        A parameter's name.
    batches : Iterable
        (x, y) on the module's device.

    Returns
    -------
    Tensor
        Of the parameter's shape and dtype; zeros without any batch.
    """
    weight = module.get_parameter(name)
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    mode = module.training
    module.train()
    total, examples = torch.zeros_like(weight), 0
    try:
        for x, y in batches:
            loss = functional.cross_entropy(module(x), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, [weight])
            total += gradient
            examples += len(y)
    finally:
        module.train(mode)
        for buffer, value in before:
            buffer.copy_(value)
    return total / max(examples, 1)


def mean_squared_gradient(
    module: nn.Module, name: str, batches: Iterable[Iterable[tuple[Tensor, Tensor]]]
) -> Tensor:
    """Return the square of one weight's `layer_gradient` on each batch, averaged over the batches.

    A batch is given as the parts of it that go through the module at once. As PruneFL measures importance
    (Jiang et al., TNNLS 2022, section IV): of a stochastic gradient.
    """
    total, count = torch.zeros_like(module.get_parameter(name)), 0
    for batch in batches:
        total += layer_gradient(module, name, batch).square()
        count += 1
    return total / max(count, 1)


def largest_pruned(gradient: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the pruned weights of largest gradient magnitude.

    Parameters
    ----------
    gradient, mask : Tensor
        Of the layer's shape; ``mask`` is boolean, True = kept.
    count : int
        How many at most; fewer where fewer are pruned.

    Returns
    -------
    indices : Tensor
        int64, ascending, row-major positions in the layer.
    values : Tensor
        The gradient there.
    """
    pruned = (~mask).reshape(-1).nonzero().reshape(-1)
    values = gradient.reshape(-1)[pruned]
    # Stable, so that equal magnitudes are taken in the order of their positions on every device.
    order = values.abs().argsort(descending=True, stable=True)[:count].sort().values
    return pruned[order], values[order]


class GrowthVotes:
    """The clients' reports for one layer, averaged: an entry that was not reported counts as 0.

    Parameters
    ----------
    mask : Tensor
        The layer's mask, boolean.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self._sum = torch.zeros(mask.numel(), dtype=torch.float64)
        self._reported = torch.zeros(mask.numel(), dtype=torch.bool)

    def add(self, indices: Tensor, values: Tensor, weight: float) -> None:
        """Add a client's report; ``indices`` are checked by `check_report`.

        A client with nested masks may report a weight that is kept: it is left out.
        """
        pruned = ~self.mask.reshape(-1)[indices]
        indices, values = indices[pruned], values[pruned]
        self._sum[indices] += weight * values.double()
        self._reported[indices] = True

    def swap(self, weight: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
        """Return the mask with weights grown and as many dropped; its count stays.

        The ``count`` reported weights of largest averaged magnitude grow (all, where fewer were
        reported); as many kept ones of smallest magnitude in ``weight`` are dropped, never one
        that grows now. Ties go to the lower position. With ``mask`` that is the one swapped, which
        keeps no more than the layer did when clients reported.
        """
        kept = self.mask if mask is None else mask
        reported = self._reported.nonzero().reshape(-1)
        count = min(count, len(reported), int(kept.sum()))
        grown = reported[self._sum[reported].abs().argsort(descending=True, stable=True)[:count]]
        swapped = drop_smallest(weight, kept, count).reshape(-1)
        swapped[grown] = True
        return swapped.reshape(self.mask.shape)


def drop_smallest(weight: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return a mask less the ``count`` kept weights of smallest magnitude, of equal ones the first."""
    left = mask.reshape(-1).clone()
    kept = left.nonzero().reshape(-1)
    left[kept[weight.reshape(-1)[kept].abs().argsort(stable=True)[:count]]] = False
    return left.reshape(mask.shape)


def regrow(weight: Tensor, gradient: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return the mask after RigL's swap (Evci et al., ICML 2020, algorithm 1); its count stays.

    The ``count`` kept weights of smallest magnitude are dropped, then as many grow of those that are
    not kept, by the magnitude of their gradient; so a weight may be dropped and grow at once.
    """
    left = drop_smallest(weight, mask, count)
    grown, _ = largest_pruned(gradient, left, count)
    left.view(-1)[grown] = True
    return left


def check_report(name: str, indices: Tensor, values: Tensor, mask: Tensor) -> None:
    """Refuse a client's report for a layer that cannot be right.

    Raises
    ------
    WireError
        For positions out of range, out of order, or of kept weights, and for values that are not finite.
    """
    if indices.numel() and (indices.min() < 0 or indices.max() >= mask.numel()):
        raise WireError(f"growth of {name!r}: a position is not within its {mask.numel()} weights")
    if (indices[1:] <= indices[:-1]).any():
        raise WireError(f"growth of {name!r}: the positions do not ascend")
    if mask.reshape(-1)[indices].any():
        raise WireError(f"growth of {name!r}: a position is that of a kept weight")
    if not torch.isfinite(values).all():
        raise NotFiniteError(f"growth of {name!r}: a value is not finite")


def swap_masks(
    masks: Masks, votes: Mapping[str, GrowthVotes], state: Mapping[str, Tensor], counts: Mapping[str, int]
) -> Masks:
    """Return the masks with every voted layer swapped; density and each layer's count stay."""
    swapped = {name: vote.swap(state[name], counts[name], masks[name]) for name, vote in votes.items()}
    return Masks({name: swapped.get(name, mask) for name, mask in masks.items()})
