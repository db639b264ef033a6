"""Training under masks: pruned weights stay exactly 0, whatever the optimizer.

For any loop that trains a module with an optimizer of `torch.optim`. It does not choose masks and
does not train.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fedprune.sparsity.masks import Masks

_INTEGERS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


@contextmanager
def hold(module: nn.Module, masks: Masks) -> Iterator[None]:
    """Keep the pruned weights of a module at 0 while the block runs.

    On entry they are set to 0. From then on every backward pass sets their gradients to 0 as soon
    as these are complete. That suffices: SGD and Adam move a weight by what they make of its
    gradient, of its own value (weight decay) and of their state (momentum, moments), and where the
    first two are 0 from the first step on, so are the third and the step. It therefore holds for an
    optimizer made for these masks, or whose state is 0 at the pruned weights (and for Adam with
    ``eps`` above 0, since it divides by its state).

    A gradient that is not finite is set to 0 as well: the bits are masked, not the number
    multiplied, since NaN times 0 is NaN. In training steps of ResNet-18 that takes half to a
    quarter of the time of `Tensor.masked_fill_`, for one integer per weight of its own width.

    Parameters
    ----------
    module
        The model that is trained; must not be moved to another device or dtype inside the block.
    masks
        Which weights of which of its parameters are kept. Those of buffers, which belong to pruned channels,
        are not held: nothing but what is 0 goes into them.

    Raises
    ------
    AttributeError
        If a mask names something that is not of the module.
    ValueError
        If a mask has another shape than its parameter.
    """
    buffers = {name for name, _ in module.named_buffers()}
    weights = {name: module.get_parameter(name) for name in masks if name not in buffers}
    for name, weight in weights.items():
        if masks[name].shape != weight.shape:
            raise ValueError(
                f"mask of {name!r} has shape {tuple(masks[name].shape)}, its parameter {tuple(weight.shape)}"
            )
    handles = []
    try:
        for name, weight in weights.items():
            bits = _bits(masks[name], weight)
            _clear(weight.detach(), bits)
            hook = partial(_clear_gradient, bits)
            handles.append(weight.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bits(mask: Tensor, weight: Tensor) -> Tensor:
    """Return all bits set where a weight is kept and none where it is pruned."""
    return -mask.to(device=weight.device, dtype=_INTEGERS[weight.dtype])


def _clear_gradient(bits: Tensor, weight: Tensor) -> None:
    if weight.grad is not None:
        _clear(weight.grad, bits)


def _clear(values: Tensor, bits: Tensor) -> None:
    values.detach().view(bits.dtype).bitwise_and_(bits)
