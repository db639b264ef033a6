"""Activation pruning: what autograd keeps of activations for the backward pass is pruned by magnitude.

Inside `sparse_activations` the input of a convolution or a linear layer is kept as its entries of
largest magnitude and a bitmap, and of a ReLU one bit per value is kept. Every forward result and every
gradient to an input is exact, but for what a weight's gradient is computed from: the pruned input.
Not for weights, and not for layers other than these: what batch norm or pooling keep stays dense.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@contextmanager
def sparse_activations(density: float) -> Iterator[None]:
    """Save of the activations that convolutions, linear layers and ReLU see only a share, inside.

    It acts on the calls of ``torch.nn.functional.conv2d``, ``linear`` and ``relu`` (not in place) by any
    module, in this thread, on batches: dimension 0 is the example. A convolution whose padding is a word
    is left as it is. As in scaled
    activation pruning (Huang et al., CVPR 2024).

    Parameters
    ----------
    density : float
        Share of each example's entries that is kept, rounded up, in (0, 1]; at 1 nothing is changed.

    Raises
    ------
    ValueError
        For a density outside of (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"the density of activations is {density}, expected a number above 0, at most 1")
    if density == 1:
        yield
        return
    with _Sparse(density):
        yield


def kept_entries(elements: int, density: float) -> int:
    """Return how many entries of an example's activation are kept."""
    return math.ceil(density * elements)


def compress(activation: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """Return each example's entries of largest magnitude, in row-major order, and bitmaps of where they are.

    Parameters
    ----------
    activation : Tensor
        (B, ...), floating point, n values an example.
    density : float
        Share of an example's entries that is kept, in (0, 1).

    Returns
    -------
    values : Tensor
        (B, k), of the activation's dtype, with k = ``kept_entries(n, density)``.
    bitmaps : Tensor
        uint8 (B, ceil(n / 8)), one bit per entry.
    """
    rows = activation.detach().flatten(1)
    count = kept_entries(rows.shape[1], density)
    places = rows.abs().topk(count, sorted=False).indices.sort().values
    kept = torch.zeros(rows.shape, dtype=torch.bool, device=rows.device).scatter_(1, places, True)
    return rows.gather(1, places), pack_bits(kept)


def restore(values: Tensor, bitmaps: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the pruned activation, dense: `compress` undone, with 0 where nothing was kept."""
    kept = unpack_bits(bitmaps, math.prod(shape[1:]))
    return values.new_zeros(kept.shape).masked_scatter_(kept, values).reshape(tuple(shape))


def pack_bits(bits: Tensor) -> Tensor:
    """Return booleans (B, n) as bytes (B, ceil(n / 8)), eight to one, the last one filled up with 0."""
    padded = functional.pad(bits.to(torch.uint8), (0, -bits.shape[1] % 8)).reshape(len(bits), -1, 8)
    return (padded * _powers(bits.device)).sum(dim=2, dtype=torch.uint8)


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """Return the booleans (B, count) that were packed."""
    return ((packed[:, :, None] & _powers(packed.device)) != 0).flatten(1)[:, :count]


def _powers(device: torch.device) -> Tensor:
    return 2 ** torch.arange(8, dtype=torch.uint8, device=device)


class _Sparse(TorchFunctionMode):
    """Puts the functions below in the place of PyTorch's where a gradient is asked for."""

    def __init__(self, density: float) -> None:
        super().__init__()
        self.density = density

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            if func is functional.conv2d:
                convolution = _arguments(args, kwargs, _CONVOLUTION)
                if convolution[0].dim() == 4 and not isinstance(convolution[4], str):
                    return _Convolution.apply(self.density, *convolution)  # type: ignore[no-untyped-call]
            elif func is functional.linear:
                linear = _arguments(args, kwargs, _LINEAR)
                if linear[0].dim() > 1:
                    return _Linear.apply(self.density, *linear)  # type: ignore[no-untyped-call]
            elif func is functional.relu or func is torch.relu:
                x, inplace = _arguments(args, kwargs, _RELU)
                if x.dim() > 1 and not inplace:
                    return _Relu.apply(x)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


_NEEDED = object()
_CONVOLUTION = {
    "input": _NEEDED,
    "weight": _NEEDED,
    "bias": None,
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
}
_LINEAR = {"input": _NEEDED, "weight": _NEEDED, "bias": None}
_RELU = {"input": _NEEDED, "inplace": False}


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any], defaults: dict[str, Any]) -> list[Any]:
    given = {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}
    return [given[name] for name in defaults]


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, density, x, weight, bias, stride, padding, dilation, groups
    ):
        ctx.geometry = _pair(stride), _pair(padding), _pair(dilation), groups
        ctx.shape, ctx.bias = x.shape, None if bias is None else list(bias.shape)
        parts = compress(x, density) if weight.requires_grad else ()
        ctx.save_for_backward(weight, *parts)
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        weight, *parts = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        x = restore(parts[0], parts[1], ctx.shape) if parts else gradient.new_zeros(ctx.shape)
        asked = [ctx.needs_input_grad[1], ctx.needs_input_grad[2], ctx.needs_input_grad[3]]
        found = torch.ops.aten.convolution_backward(
            gradient, x, weight, ctx.bias, stride, padding, dilation, False, [0, 0], groups, asked
        )
        return None, *found, None, None, None, None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, density, x, weight, bias):  # type: ignore[no-untyped-def]
        ctx.shape = x.shape
        parts = compress(x, density) if weight.requires_grad else ()
        ctx.save_for_backward(weight, *parts)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        weight, *parts = ctx.saved_tensors
        to_input, to_weight, to_bias = ctx.needs_input_grad[1:]
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            None,
            gradient @ weight if to_input else None,
            rows.T @ restore(parts[0], parts[1], ctx.shape).flatten(end_dim=-2) if to_weight else None,
            rows.sum(dim=0) if to_bias else None,
        )


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        result = torch.relu(x)
        ctx.save_for_backward(pack_bits((result > 0).flatten(1)))
        return result

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (bits,) = ctx.saved_tensors
        rows = gradient.flatten(1)
        return (rows * unpack_bits(bits, rows.shape[1])).reshape(gradient.shape)
