"""Growing pruned weights: which of them the loss asks for, by gradient, and swapping masks.

The client's half finds, layer by layer, the pruned weights with the largest gradient; the server's
half averages what clients found and swaps as many kept weights for grown ones. Pure PyTorch; when
to do so, and for which layers, is for a strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedprune.errors import NotFiniteError, WireError
from fedprune.sparsity.execution import Slice, SparseConv2d, gradient_slices
from fedprune.sparsity.frozen import training_mode
from fedprune.sparsity.loss import Loss
from fedprune.sparsity.masks import Masks


def layer_gradient(
    module: nn.Module, name: str, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss
) -> Tensor:
    """Return the gradient of the mean loss over some batches for one weight, dense.

    Batch norm uses the statistics of the batch, as in training; the module comes back unchanged.
    No other weight's gradient is ever formed.

    Parameters
    ----------
    module : nn.Module
        The model; layers of it may be executed sparse.
    name : str
        A parameter's name.
    batches : Iterable
        (x, y) on the module's device.
    loss : Loss
        What is learnt.

    Returns
    -------
    Tensor
        Of the dense parameter's shape and dtype; zeros without any batch.
    """
    if layer := sparse_layer(module, name):
        total = layer.weight.new_zeros(layer.index.shape)
        flat = total.view(*total.shape[:2], -1)
        for outputs, tap, part in gradient_parts(module, name, layer, batches, loss):
            flat[outputs, :, tap] = part
        return total
    weight = module.get_parameter(name)
    total, examples = torch.zeros_like(weight), 0
    with _measured(module, name):
        for x, y in batches:
            (gradient,) = torch.autograd.grad(loss(module(x), y, x, "sum"), [weight])
            total += gradient
            examples += len(y)
    return total / max(examples, 1)


def gradient_parts(
    module: nn.Module,
    name: str,
    layer: SparseConv2d,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
) -> Iterator[Slice]:
    """Yield the `layer_gradient` of a layer that is executed sparse in slices, see `gradient_slices`.

    What is held meanwhile is the layer's input and the gradient to its output, of all batches.
    """
    passes: list[tuple[Tensor, Tensor]] = []
    examples = 0
    layer.observer = lambda x, gradient: passes.append((x, gradient))
    try:
        with _measured(module, name):
            for x, y in batches:
                torch.autograd.grad(loss(module(x), y, x, "sum"), [layer.weight])
                examples += len(y)
    finally:
        layer.observer = None
    for outputs, tap, part in gradient_slices(layer.index, passes, layer.weight.dtype):
        yield outputs, tap, part.div_(max(examples, 1))


def sparse_layer(module: nn.Module, name: str) -> SparseConv2d | None:
    """Return the layer of a weight if it is executed sparse."""
    layer = module.get_submodule(name.rpartition(".")[0])
    return layer if isinstance(layer, SparseConv2d) and name.endswith("weight") else None


@contextmanager
def _measured(module: nn.Module, name: str) -> Iterator[None]:
    """Let one weight alone have a gradient inside, in training mode; the module comes back unchanged."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    needed = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    mode = module.training
    training_mode(module).requires_grad_(False)
    module.get_parameter(name).requires_grad_()
    try:
        yield
    finally:
        module.train(mode)
        for parameter, need in needed:
            parameter.requires_grad_(need)
        for buffer, value in buffers:
            buffer.copy_(value)


def mean_squared_gradient(
    module: nn.Module,
    name: str,
    batches: Iterable[Iterable[tuple[Tensor, Tensor]]],
    loss: Loss,
) -> Tensor:
    """Return the square of one weight's `layer_gradient` on each batch, averaged over the batches.

    A batch is given as the parts of it that go through the module at once. As PruneFL measures importance
    (Jiang et al., TNNLS 2022, section IV): of a stochastic gradient.
    """
    return _mean_of(Tensor.square, module, name, batches, loss)


def mean_saliency(
    module: nn.Module,
    name: str,
    batches: Iterable[Iterable[tuple[Tensor, Tensor]]],
    loss: Loss,
) -> Tensor:
    """Return SNIP's score of one weight on each batch, |w * dL/dw|, averaged over the batches.

    Lee et al., ICLR 2019, equation 6 before it is normalised. A batch is given as in `mean_squared_gradient`.
    """
    return _mean_of(Tensor.abs, module, name, batches, loss) * dense_weight(module, name).abs()


#: How a client may measure the importance of its weights, by name.
IMPORTANCE = {"squared-gradient": mean_squared_gradient, "saliency": mean_saliency}


def _mean_of(
    measure: Callable[[Tensor], Tensor],
    module: nn.Module,
    name: str,
    batches: Iterable[Iterable[tuple[Tensor, Tensor]]],
    loss: Loss,
) -> Tensor:
    total, count = layer_gradient(module, name, [], loss), 0
    for batch in batches:
        total += measure(layer_gradient(module, name, batch, loss))
        count += 1
    return total / max(count, 1)


def dense_weight(module: nn.Module, name: str) -> Tensor:
    """Return a weight, dense; what is pruned of one that is executed sparse is 0."""
    weight = module.get_parameter(name).detach()
    if layer := sparse_layer(module, name):
        dense = weight.new_zeros(layer.index.shape)
        dense.view(-1)[layer.index.positions()] = weight
        return dense
    return weight


def largest_gradients(
    module: nn.Module,
    name: str,
    batches: Iterable[tuple[Tensor, Tensor]],
    mask: Tensor,
    count: int,
    loss: Loss,
) -> tuple[Tensor, Tensor]:
    """Return the pruned weights of a layer with the largest gradients, as `largest_pruned` does.

    Nothing of the dense weight's size is allocated for a layer that is executed sparse. Parameters are those
    of `layer_gradient` and `largest_pruned`.
    """
    if layer := sparse_layer(module, name):
        return largest_of(gradient_parts(module, name, layer, batches, loss), mask, count)
    gradient = layer_gradient(module, name, batches, loss)
    return largest_pruned(gradient, mask.to(gradient.device), count)


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


def largest_of(parts: Iterable[Slice], mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return what `largest_pruned` does of a gradient that comes in slices, in whatever order."""
    mask = mask.reshape(*mask.shape[:2], -1)
    _, inputs, taps = mask.shape
    positions, values, least = torch.zeros(0, dtype=torch.int64), torch.zeros(0), 0.0
    for outputs, tap, gradient in parts:
        # Not "at least": a gradient that is not a number must be found.
        found = ~mask[outputs, :, tap] & ~(gradient.abs() < least)
        places = found.reshape(-1).nonzero()[:, 0]
        if not len(places):
            continue
        own = (outputs.start * inputs + places) * taps + tap
        positions, order = torch.cat([positions, own]).sort()
        values = torch.cat([values, gradient.reshape(-1)[places]])[order]
        if len(positions) > count:
            kept = values.abs().argsort(descending=True, stable=True)[:count].sort().values
            positions, values = positions[kept], values[kept]
        if len(positions) == count > 0:
            least = float(values.abs().min())
    return positions, values


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

    @property
    def total(self) -> Tensor:
        """What clients reported, each report times its weight, added up: float64, of the layer's shape."""
        return self._sum.reshape(self.mask.shape)

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
        swapped = drop_smallest(weight[kept], kept, count).reshape(-1)
        swapped[grown] = True
        return swapped.reshape(self.mask.shape)


def drop_smallest(values: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return a mask less the ``count`` kept weights of smallest magnitude, of equal ones the first.

    ``values`` are the kept weights, (kept,), in row-major order.
    """
    left = mask.reshape(-1).clone()
    kept = left.nonzero().reshape(-1)
    left[kept[values.abs().argsort(stable=True)[:count]]] = False
    return left.reshape(mask.shape)


def regrow(
    values: Tensor, mask: Tensor, count: int, largest: Callable[[Tensor, int], tuple[Tensor, Tensor]]
) -> Tensor:
    """Return the mask after RigL's swap (Evci et al., ICML 2020, algorithm 1); its count stays.

    The ``count`` kept weights of smallest magnitude are dropped, then as many grow of those that are
    not kept, by the magnitude of their gradient; so a weight may be dropped and grow at once.

    Parameters
    ----------
    values : Tensor
        The kept weights, (kept,), in row-major order.
    mask : Tensor
        The layer's mask.
    count : int
        How many to swap.
    largest : Callable
        `largest_pruned` or `largest_gradients`, but for the mask and the count.
    """
    left = drop_smallest(values, mask, count)
    grown, _ = largest(left, count)
    left.view(-1)[grown.cpu()] = True
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
