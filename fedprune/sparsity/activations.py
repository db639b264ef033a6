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
    module, in this thread; a convolution whose padding is a word is left as it is. As in scaled
    activation pruning (Huang et al., CVPR 2024, section 3.3).

    Parameters
    ----------
    density : float
        Share of each tensor's entries that is kept, rounded up, in (0, 1]; at 1 nothing is changed.

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
    """Return how many entries of a tensor are kept."""
    return math.ceil(density * elements)


def compress(activation: Tensor, density: float) -> tuple[Tensor, Tensor]:
    """Return the entries of largest magnitude, in row-major order, and the bitmap of where they are.

    Parameters
    ----------
    activation : Tensor
        Any shape, floating point.
    density : float
        Share of the entries that is kept, in (0, 1).

    Returns
    -------
    values : Tensor
        (k,), of the activation's dtype, with k = ``kept_entries``.
    bitmap : Tensor
        uint8, one bit per entry.
    """
    flat = activation.detach().reshape(-1)
    count = kept_entries(flat.numel(), density)
    places = flat.abs().topk(count, sorted=False).indices.sort().values
    kept = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    kept[places] = True
    return flat[places], pack_bits(kept)


def restore(values: Tensor, bitmap: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the pruned activation, dense: `compress` undone, with 0 where nothing was kept."""
    kept = unpack_bits(bitmap, shape)
    return torch.zeros(kept.shape, dtype=values.dtype, device=values.device).masked_scatter(kept, values)


def pack_bits(bits: Tensor) -> Tensor:
    """Return booleans of any shape as bytes, eight to one, the last one filled up with 0."""
    flat = bits.reshape(-1)
    padded = functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).reshape(-1, 8)
    return (padded * _powers(bits.device)).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the booleans of a shape that were packed."""
    bits = (packed[:, None] & _powers(packed.device)) != 0
    return bits.reshape(-1)[: math.prod(shape)].reshape(tuple(shape))


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
                if not isinstance(convolution[4], str):
                    return _Convolution.apply(self.density, *convolution)  # type: ignore[no-untyped-call]
            elif func is functional.linear:
                return _Linear.apply(self.density, *_arguments(args, kwargs, _LINEAR))  # type: ignore[no-untyped-call]
            elif func is functional.relu or func is torch.relu:
                (x, inplace) = _arguments(args, kwargs, _RELU)
                if not inplace:
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
        x = restore(*parts, ctx.shape) if parts else gradient.new_zeros(ctx.shape)
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
            rows.T @ restore(*parts, ctx.shape).reshape(-1, ctx.shape[-1]) if to_weight else None,
            rows.sum(dim=0) if to_bias else None,
        )


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        result = torch.relu(x)
        ctx.save_for_backward(pack_bits(result > 0))
        return result

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (bits,) = ctx.saved_tensors
        return gradient * unpack_bits(bits, gradient.shape)
