"""Peak memory of one training step on a device, as a breakdown.

The device is modelled as one that stores only what is kept of a pruned tensor, and computes with
PyTorch's autograd: what it saves for the backward pass is counted to the byte. Counted are tensors;
not counted are the program itself, the data set, and the scratch space inside a kernel. The
optimizer is taken to update in place, one parameter after the other.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedprune.costs.flops import ModelCost, ParameterCost
from fedprune.costs.step import forward_loss, in_single_products, leaves_no_trace
from fedprune.sparsity.activations import sparse_activations
from fedprune.sparsity.execution import KernelIndex, SparseConv2d
from fedprune.sparsity.frozen import training_mode
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Task


@dataclass(frozen=True)
class MemoryBreakdown:
    """Bytes that a training step needs at once, by what they are for.

    Parameters
    ----------
    weights
        Parameters; each pruned tensor in its smallest representation, see `stored_bytes`.
    gradients
        One value per kept, trained weight.
    optimizer
        One value per slot and kept, trained weight.
    batch_norm
        Running statistics and any other buffer of the model.
    activations
        What autograd saves for the backward pass of a batch, the batch itself included, each
        storage once, the model's own tensors excluded.
    workspace
        The most that tensors which are none of the above hold at any one time of the step: mainly
        a layer's output gradient, its input gradient and the gradient of a skip connection that waits.
    buffers
        What the method keeps besides: top-k gradients, a candidate.

    Notes
    -----
    The sum is an upper bound, but for scratch space: when the workspace is largest, some activations are
    already freed. ``benchmarks/memory.py`` compares it, and every part, with what PyTorch allocates.
    """

    weights: int
    gradients: int
    optimizer: int
    batch_norm: int
    activations: int
    workspace: int
    buffers: int

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


def step_memory(
    cost: ModelCost,
    masks: Masks,
    batch: int,
    *,
    slots: int = 0,
    buffers: int = 0,
    activation_density: float = 1.0,
) -> MemoryBreakdown:
    """Predict the peak memory of one training step.

    The first call for a batch size traces a step without data (tens of milliseconds); later ones,
    with whatever masks, are arithmetic.

    Parameters
    ----------
    cost
        The model.
    masks
        What is kept; a parameter without a mask is dense.
    batch
        Examples in the (micro-)batch.
    slots
        Values that the optimizer keeps per weight, see `optimizer_slots`.
    buffers
        Bytes that the method keeps besides.
    activation_density
        Share that is kept of what layers save for the backward pass, by `sparse_activations`.
    """
    return step_memory_of(
        cost.under(masks),
        masks.kept,
        batch,
        slots=slots,
        buffers=buffers,
        activation_density=activation_density,
    )


def step_memory_of(
    cost: ModelCost,
    kept: Mapping[str, int],
    batch: int,
    *,
    slots: int = 0,
    buffers: int = 0,
    activation_density: float = 1.0,
) -> MemoryBreakdown:
    """Predict the peak memory of one training step from how many weights are kept, which is all that counts.

    ``kept`` has the number of kept weights of each pruned tensor, as ``Masks.kept``; the other
    parameters are those of `step_memory`.
    """
    step = step_tensors(cost, batch, activation_density)
    gradients = sum(
        _kept(parameter, kept) * parameter.itemsize for parameter in cost.parameters if parameter.trained
    )
    return MemoryBreakdown(
        weights=_weights(cost, kept),
        gradients=gradients,
        optimizer=slots * gradients,
        batch_norm=cost.buffer_bytes,
        activations=step.activations,
        workspace=step.workspace,
        buffers=buffers,
    )


def executed_memory(model: nn.Module, task: Task, batch: int, *, slots: int = 0) -> MemoryBreakdown:
    """Predict the peak memory of one training step as this process executes it.

    Unlike that of `step_memory`, which is of a modelled device, this step is taken, on a batch of zeros: a
    kernel's choices depend on the processor. ``weights`` are the parameters as they are held: of layers that
    are executed sparse the kept values and their index, of others all values.

    Parameters
    ----------
    model
        Dense, or with layers executed sparse; its buffers change.
    task
        What is learnt, of which inputs.
    batch
        Examples in the (micro-)batch.
    slots
        Values that the optimizer keeps per weight, see `optimizer_slots`.
    """
    parameters = list(model.parameters())
    gradients = sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
    step = _traced(training_mode(model), task, batch)
    return MemoryBreakdown(
        weights=sum(parameter.nbytes for parameter in parameters) + index_bytes(model),
        gradients=gradients,
        optimizer=slots * gradients,
        batch_norm=sum(buffer.nbytes for buffer in model.buffers()),
        activations=step.activations,
        workspace=step.workspace,
        buffers=0,
    )


def index_bytes(model: nn.Module) -> int:
    """Return the bytes of the index of those layers of a model that are executed sparse."""
    return sum(index.bytes for index in _indices(model))


def _indices(model: nn.Module) -> list[KernelIndex]:
    return [layer.index for layer in model.modules() if isinstance(layer, SparseConv2d)]


def forward_memory(cost: ModelCost, masks: Masks, batch: int, *, buffers: int = 0) -> MemoryBreakdown:
    """Predict the peak memory of a forward pass in evaluation mode, without gradients.

    All tensors of the pass, the batch included, are ``workspace``: each lives until its last use.
    Parameters are those of `step_memory`.
    """
    cost = cost.under(masks)
    return MemoryBreakdown(
        weights=_weights(cost, masks.kept),
        gradients=0,
        optimizer=0,
        batch_norm=cost.buffer_bytes,
        activations=0,
        workspace=_forward_workspace(cost, batch),
        buffers=buffers,
    )


@dataclass(frozen=True)
class Overhead:
    """What a training algorithm keeps for a step besides weights, gradients and the optimizer's state.

    Parameters
    ----------
    slots
        Values per kept, trained weight.
    activation_density
        Share that is kept of what layers save for the backward pass, by `sparse_activations`.
    buffers
        Bytes, whatever is kept.
    """

    slots: int = 0
    activation_density: float = 1.0
    buffers: int = 0


def optimizer_slots(name: str, momentum: float = 0.0) -> int:
    """Values that an optimizer keeps per weight: 0 for SGD, 1 with momentum, 2 for Adam.

    Raises
    ------
    ValueError
        An optimizer that is neither "sgd" nor "adam".
    """
    if name == "adam":
        return 2
    if name == "sgd":
        return int(momentum != 0)
    raise ValueError(f"optimizer {name!r} is unknown, expected 'sgd' or 'adam'")


def stored_bytes(elements: int, kept: int, itemsize: int) -> int:
    """Bytes of a tensor in the smallest of three representations.

    Dense; a bitmap and the kept values; or a value and an index for each kept weight, the index an
    unsigned integer of 1, 2, 4 or 8 bytes, whichever addresses the tensor.
    """
    dense = elements * itemsize
    bitmap = -(-elements // 8) + kept * itemsize
    index = next(size for size in (1, 2, 4, 8) if elements <= 256**size)
    return min(dense, bitmap, kept * (index + itemsize))


@dataclass(frozen=True)
class StepTensors:
    """Bytes of the tensors that one training step makes; see `MemoryBreakdown` for the terms."""

    activations: int
    workspace: int


@lru_cache(maxsize=256)
def step_tensors(cost: ModelCost, batch: int, activation_density: float = 1.0) -> StepTensors:
    """Return the bytes of the tensors that one training step on ``batch`` examples makes."""
    with in_single_products(cost.skeleton):
        return _traced(training_mode(cost.skeleton), cost.task, batch, activation_density)


def _traced(model: nn.Module, task: Task, batch: int, activation_density: float = 1.0) -> StepTensors:
    trace = _Storages(model)
    hooks = saved_tensors_hooks(trace.save, lambda tensor: tensor)
    with leaves_no_trace(model), trace, hooks, sparse_activations(activation_density):
        forward_loss(model, task, batch).backward()  # type: ignore[no-untyped-call]
        gradients = {trace.number(p.grad) for p in model.parameters() if p.grad is not None}
    return StepTensors(
        activations=sum(trace.sizes[number] for number in trace.saved),
        workspace=trace.peak_without(trace.saved | gradients),
    )


@lru_cache(maxsize=256)
def _forward_workspace(cost: ModelCost, batch: int) -> int:
    model = cost.skeleton.eval()
    trace = _Storages(model)
    with torch.inference_mode(False), torch.no_grad(), trace:
        forward_loss(model, cost.task, batch)
    return trace.peak_without(set())


def _weights(cost: ModelCost, kept: Mapping[str, int]) -> int:
    return sum(
        stored_bytes(parameter.elements, _kept(parameter, kept), parameter.itemsize)
        for parameter in cost.parameters
    )


def _kept(parameter: ParameterCost, kept: Mapping[str, int]) -> int:
    return kept.get(parameter.name, parameter.elements)


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers every storage that comes to be inside, and notes when each comes and goes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []
        self.saved: set[int] = set()
        self._events: list[tuple[int, int]] = []  # number of the storage, +1 made or -1 freed
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}
        indices = (tensor for index in _indices(model) for tensor in index.tensors())
        self._own = {_key(tensor) for tensor in (*model.parameters(), *model.buffers(), *indices)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            # A tensor in CSR is made of others, which have been seen.
            if isinstance(value, Tensor) and value.layout == torch.strided and _key(value) not in self._own:
                self.number(value)
        return out

    def save(self, tensor: Tensor) -> Tensor:
        """Note that autograd saves the tensor (a pack hook)."""
        if _key(tensor) not in self._own:
            self.saved.add(self.number(tensor))
        return tensor

    def number(self, tensor: Tensor) -> int:
        """Return the number of the tensor's storage."""
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key not in self._alive:
            number = len(self.sizes)
            self.sizes.append(storage.nbytes())
            self._events.append((number, 1))
            self._alive[key] = (number, weakref.ref(storage, lambda _: self._free(key)))
        return self._alive[key][0]

    def _free(self, key: int) -> None:
        # The address may be given to another storage next: forget it at once.
        number, _ = self._alive.pop(key)
        self._events.append((number, -1))

    def peak_without(self, excluded: set[int]) -> int:
        """Return the most bytes that storages other than these held at one time."""
        peak = held = 0
        for number, change in self._events:
            if number not in excluded:
                held += change * self.sizes[number]
                peak = max(peak, held)
        return peak


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
