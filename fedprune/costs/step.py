"""One training step of a model, run for its shapes alone: what FLOPs and memory are counted on.

A skeleton is a copy of a model whose tensors are on PyTorch's meta device: they have shapes and
dtypes but no data, so a step of it costs neither arithmetic nor memory and takes nothing from any
random generator. What is counted during such a step is for `fedprune.costs.flops` and
`fedprune.costs.memory` to say.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedprune.sparsity.frozen import training_mode
from fedprune.tasks import Task

T = TypeVar("T")
TRACE_EXAMPLES = 2  # batch norm refuses one example at a single position


def on_skeleton(module: nn.Module, step: Callable[[nn.Module], T]) -> tuple[nn.Module, T]:
    """Return a copy of the module, in training mode, on which a step ran, and what that returned.

    It is on the meta device where the module's code can run there.

    A model whose code looks at values (``tensor.item()``, a branch on data) or that keeps tensors
    which are neither parameters nor buffers cannot run without data: it is copied as it is and runs
    on zeros. The module itself is left alone: mode, gradients, buffers, random state.

    Parameters
    ----------
    module
        Maps the task's inputs to its outputs.
    step
        Runs a training step of the copy; it is called once more where the first copy cannot run.
    """
    model = _copy_to(module, "meta")
    try:
        return model, step(model)
    except (RuntimeError, NotImplementedError):
        # A mistake of the model itself shows again on the first step with data, as it would in training.
        model = _copy_to(module, "cpu")
        return model, step(model)


def forward_loss(model: nn.Module, task: Task, examples: int) -> Tensor:
    """Return the mean loss of a batch of zeros: a scalar that carries the autograd graph."""
    first = next(model.parameters())
    x, y = task.placeholder(examples, device=first.device, dtype=first.dtype)
    return task.loss(model(x), y, x)


@contextmanager
def leaves_no_trace(model: nn.Module) -> Iterator[None]:
    """Record gradients inside, whatever the caller's mode, and drop them and the draws at the end."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)


@contextmanager
def in_single_products(model: nn.Module) -> Iterator[None]:
    """Let layers run inside as the products that they consist of, for a model that runs on the CPU.

    There oneDNN has one operation for a whole LSTM, in which no product can be seen; "meta" has none such.
    """
    if next(model.parameters()).device.type != "cpu" or not torch.backends.mkldnn.enabled:
        yield
        return
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)


def _copy_to(module: nn.Module, device: str) -> nn.Module:
    # Handing deepcopy its tensors keeps it from copying the data of a large model first.
    with torch.inference_mode(False):
        tensors: dict[int, object] = {
            id(parameter): nn.Parameter(parameter.detach().to(device, copy=True), parameter.requires_grad)
            for parameter in module.parameters()
        }
        tensors |= {id(buffer): buffer.detach().to(device, copy=True) for buffer in module.buffers()}
        return training_mode(copy.deepcopy(module, tensors))
