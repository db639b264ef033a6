"""The layers of sparse execution, in place of PyTorch's: same inputs, same results, same names of parameters.

Each takes a batch of any memory layout and returns one that is batch-last, see
`fedprune.sparsity.execution.layout`; where all layers of a model do, nothing is copied between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fedprune.sparsity.execution.index import KernelIndex, Window
from fedprune.sparsity.execution.kernels import convolve, input_gradient, weight_gradient
from fedprune.sparsity.execution.layout import batch_first, batch_last, is_batch_last

Observer = Callable[[Tensor, Tensor], None]
"""Called in a backward pass with a layer's input, (in, H, W, N), and the gradient to its output, alike."""

_FEW = 32
"""Most weights per output channel of a dense convolution that is always unfolded."""


class SparseConv2d(nn.Module):
    """A convolution whose parameter ``weight`` is the 1-D tensor of its kept weights, in row-major order.

    Parameters
    ----------
    index : KernelIndex
        Where these are.
    weight : Tensor
        (kept,).
    bias : Tensor, optional
        (out,).

    Attributes
    ----------
    observer : Callable, optional
        From what it is shown follow the gradients of pruned weights, see `gradient_slices`.
    """

    def __init__(self, index: KernelIndex, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.index = index
        self.observer: Observer | None = None
        self.weight = weight
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out, H', W') of (N, in, H, W)."""
        arguments = batch_last(x), self.weight, self.index, self.observer
        y: Tensor = _Convolution.apply(*arguments)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            y.add_(_per_channel(self.bias))
        return batch_first(y)

    def extra_repr(self) -> str:
        """Say how much is kept of what."""
        return f"{tuple(self.index.shape)}, kept={self.index.kept}, bias={self.bias is not None}"


class SparseLinear(SparseConv2d):
    """A linear layer whose parameter ``weight`` is the 1-D tensor of its kept weights, in row-major order."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of (..., in)."""
        rows = x.reshape(-1, x.shape[-1])
        y = super().forward(rows[:, :, None, None])[:, :, 0, 0]
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], -1)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, index: KernelIndex, observer: Observer | None) -> Tensor:
        ctx.index, ctx.observer = index, observer
        ctx.save_for_backward(x, weight)
        return convolve(index, weight.detach(), x.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        to_input, to_weight, *_ = ctx.needs_input_grad
        gradient = batch_last(batch_first(gradient))
        if ctx.observer is not None:
            ctx.observer(x, gradient)
        return (
            input_gradient(ctx.index, weight, gradient, *x.shape[1:3]) if to_input else None,
            weight_gradient(ctx.index, x, gradient) if to_weight else None,
            None,
            None,
        )


class UnfoldedConv2d(nn.Conv2d):
    """A dense convolution by unfolding: of few inputs, as in a first layer, or of one tap, as in a shortcut.

    It costs a copy of the input for each tap, and saves a change of the layout of its result and of its
    gradient. It is worth it where the input is batch-last already; elsewhere PyTorch's is used, but for a
    layer of few inputs that leads into sparse ones.
    """

    leads = False
    """Whether what comes next is executed sparse."""

    @staticmethod
    def takes(layer: nn.Conv2d) -> bool:
        """Whether a convolution, of one group and padded with zeros, has few inputs or one tap."""
        return layer.weight[0].numel() <= _FEW or tuple(layer.kernel_size) == (1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out, H', W') of (N, in, H, W)."""
        if not (self.leads and self.weight[0].numel() <= _FEW) and not is_batch_last(x):
            return super().forward(x)
        window = Window.of(self)
        y: Tensor = _Unfolded.apply(batch_last(x), self.weight, window)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            y.add_(_per_channel(self.bias))
        return batch_first(y)


class _Unfolded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, window: Window) -> Tensor:
        ctx.window = window
        ctx.save_for_backward(x, weight)
        # Not a view of the product: what follows may work in place.
        y = x.new_empty(len(weight), *window.output(*x.shape[1:3]), x.shape[-1])
        torch.mm(weight.detach().flatten(1), _unfold(x.detach(), window), out=y.view(len(weight), -1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        flat, to_input, to_weight = batch_last(batch_first(gradient)).flatten(1), None, None
        if ctx.needs_input_grad[0]:
            (down, right) = ctx.window.padding
            padded = _pad(torch.zeros_like(x), ctx.window)
            parts = (weight.flatten(1).t() @ flat).view(len(x), -1, *gradient.shape[1:])
            for place, part in zip(_reads(padded, ctx.window), parts.unbind(1), strict=True):
                place.add_(part)
            to_input = padded[:, down : down + x.shape[1], right : right + x.shape[2]]
        if ctx.needs_input_grad[1]:
            to_weight = (flat @ _unfold(x, ctx.window).t()).view_as(weight)
        return to_input, to_weight, None


def _unfold(x: Tensor, window: Window) -> Tensor:
    """Return (C, H, W, N) as (C * taps, H' * W' * N), what each weight of an output channel acts on."""
    return torch.stack(_reads(_pad(x, window), window), dim=1).flatten(2).flatten(0, 1)


def _pad(x: Tensor, window: Window) -> Tensor:
    (down, right) = window.padding
    return functional.pad(x, (0, 0, right, right, down, down))


def _reads(padded: Tensor, window: Window) -> list[Tensor]:
    """Return what each tap reads of a padded input, (C, H', W', N) each, as views."""
    (down, right), (height, width) = window.stride, window.taps[-1]
    rows, columns = padded.shape[1] - height, padded.shape[2] - width
    return [padded[:, y : y + rows : down, x : x + columns : right] for y, x in window.taps]


class BatchFirstConv2d(nn.Conv2d):
    """A dense convolution of a batch that may be batch-last, which PyTorch would turn value by value."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out, H', W') of (N, in, H, W)."""
        if x.dim() == 4 and is_batch_last(x) and not x.is_contiguous():
            x = batch_last(x).flatten(0, -2).t().contiguous().view(x.shape)
        return super().forward(x)


class BatchLastBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over batches that are batch-last; others, and evaluation, are left to PyTorch.

    PyTorch's kernel sums in double precision, value by value. Here each channel is one row of memory, and
    mean and variance are two passes over it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W), foundd, of (N, C, H, W)."""
        if not (self.training and x.dim() == 4 and is_batch_last(x)) or x.numel() == x.shape[1]:
            return super().forward(x)
        found = _BatchNorm.apply(batch_last(x), self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        y, mean, variance = found
        self._update_statistics(mean, variance, x.numel() // x.shape[1])
        return batch_first(y)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / (count - 1)), share)


class _BatchNorm(torch.autograd.Function):
    """Batch norm of (C, H, W, N) with scale and shift (C,): the result, and mean and variance (C,)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = x[0].numel()
        mean = x.flatten(1).sum(dim=1).div_(count)
        centred = x - _per_channel(mean)
        variance = torch.linalg.vector_norm(centred.flatten(1), dim=1).square_().div_(count)
        inverse = (variance + eps).rsqrt_()
        ctx.eps = eps
        ctx.save_for_backward(centred, weight, inverse)
        ctx.mark_non_differentiable(mean, variance)
        # Not addcmul, which is slower than the two where it has to broadcast.
        return (centred * _per_channel(weight * inverse)).add_(_per_channel(bias)), mean, variance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        centred, weight, inverse = ctx.saved_tensors
        asked = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_batch_norm_backward(
            batch_last(batch_first(gradient))[None],
            centred[None],
            weight,
            None,
            None,
            torch.zeros_like(inverse),
            inverse,
            True,
            ctx.eps,
            asked,
        )
        return (found[0][0] if asked[0] else None), *found[1:], None


def _per_channel(values: Tensor) -> Tensor:
    """Return (C,) so that it goes with (C, H, W, N)."""
    return values[:, None, None, None]


class BatchLastMaxPool2d(nn.MaxPool2d):
    """Max pooling over windows that do not overlap, of batches that are batch-last."""

    @staticmethod
    def takes(layer: nn.MaxPool2d) -> bool:
        """Whether a layer's windows do not overlap and need no padding."""
        plain = _pair(layer.padding) == (0, 0) and _pair(layer.dilation) == (1, 1)
        exact = not (layer.ceil_mode or layer.return_indices)
        return plain and exact and _pair(layer.stride) == _pair(layer.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H', W') of (N, C, H, W)."""
        if x.dim() != 4 or not is_batch_last(x):
            return cast(Tensor, super().forward(x))
        y: Tensor = _MaxPool.apply(batch_last(x), _pair(self.kernel_size))  # type: ignore[no-untyped-call]
        return batch_first(y)


class _MaxPool(torch.autograd.Function):
    """The largest of each window of (C, H, W, N), whose gradient goes to the first one, as PyTorch's does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: tuple[int, int]) -> Tensor:
        first, *others = _places(x, kernel)
        y = first.clone(memory_format=torch.contiguous_format)
        for place in others:
            torch.maximum(y, place, out=y)
        ctx.kernel = kernel
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        result = torch.zeros_like(x)
        rest = batch_last(batch_first(gradient)).clone()
        for place, target in zip(_places(x, ctx.kernel), _places(result, ctx.kernel), strict=True):
            # As numbers, 1 and 0: PyTorch's selections by booleans take several times as long.
            found = place.clone(memory_format=torch.contiguous_format).eq_(y).mul_(rest)
            target.copy_(found)
            rest.sub_(found)
        return result, None


def _places(x: Tensor, kernel: tuple[int, int]) -> list[Tensor]:
    """Return the values at each place of a window, (C, H', W', N) each, as views."""
    height, width = (size // side * side for size, side in zip(x.shape[1:3], kernel, strict=True))
    return [
        x[:, row : height : kernel[0], column : width : kernel[1]]
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]


def _pair(value: Any) -> tuple[int, int]:
    """Return a setting of a layer for height and width."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
