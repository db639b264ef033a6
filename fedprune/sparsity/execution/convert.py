"""A model whose pruned layers hold their kept weights alone, made from an ordinary one and masks.

The copy has the same modules, names and results. What it knows, convolutions and linear layers with a
mask, becomes sparse; what works between them (batch norm, max pooling, a first convolution) is replaced
by the same for batch-last memory; everything else stays as it is, and may be anything: shapes are the
same everywhere, only memory is ordered otherwise.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from fedprune.sparsity.execution.index import KernelIndex, Window
from fedprune.sparsity.execution.layers import (
    BatchFirstConv2d,
    BatchLastBatchNorm2d,
    BatchLastMaxPool2d,
    SparseConv2d,
    SparseLinear,
    UnfoldedConv2d,
)
from fedprune.sparsity.masks import Masks

Indices = Mapping[str, KernelIndex]
"""Name of a weight that is executed sparse -> where its kept values are."""

Rule = Callable[[str, tuple[int, ...], int], bool]
"""Whether a weight is executed sparse, by its name, its shape and how many of it are kept."""


def always(name: str, shape: tuple[int, ...], kept: int) -> bool:
    """Execute every weight sparse that can be."""
    return True


def index_masks(module: nn.Module, masks: Masks, rule: Rule = always) -> dict[str, KernelIndex]:
    """Return where the kept weights are, for every weight that has a mask and is executed sparse.

    To be made once for as long as the masks stay, and shared. Left out are weights of modules other than
    ``Conv2d`` (one group, padded with zeros) and ``Linear``, weights that two modules share, and those that
    are not float32 or float64 on a CPU (or on "meta").

    Parameters
    ----------
    module
        The dense model; its weights' values do not count.
    masks
        What is kept.
    rule
        Which of the weights are executed sparse.

    Raises
    ------
    AttributeError
        If a mask names something that is not a parameter of the module.
    ValueError
        If a mask has another shape than its parameter.
    """
    uses = Counter(
        id(parameter)
        for _, layer in module.named_modules(remove_duplicate=False)
        for parameter in layer.parameters(recurse=False)
    )
    indices = {}
    for name, mask in masks.items():
        weight = module.get_parameter(name)
        if mask.shape != weight.shape:
            raise ValueError(
                f"mask of {name!r} has shape {tuple(mask.shape)}, its parameter {tuple(weight.shape)}"
            )
        path, _, own = name.rpartition(".")
        window = _window(module.get_submodule(path)) if own == "weight" and _has_kernels(weight) else None
        if window and uses[id(weight)] == 1 and rule(name, tuple(mask.shape), masks.kept[name]):
            indices[name] = KernelIndex(mask, window)
    return indices


def held_masks(masks: Masks, indices: Indices) -> Masks:
    """Return the masks of the weights that stay dense, which `fedprune.sparsity.training.hold` must keep."""
    return Masks({name: mask for name, mask in masks.items() if name not in indices})


def sparse_copy(module: nn.Module, indices: Indices) -> nn.Module:
    """Return a copy of a model in which the indexed weights are 1-D tensors of their kept values.

    Without indices it is an ordinary copy. The values are the model's; on the device "meta" there are none,
    and the copy is ready for ``to_empty`` and a state. Hooks of replaced layers are not copied.
    """
    weights = {name: module.get_parameter(name) for name in indices}
    # Handing deepcopy the new parameters keeps it from copying the dense ones.
    memo: dict[int, object] = {
        id(weights[name]): nn.Parameter(kept_values(weights[name], index), weights[name].requires_grad)
        for name, index in indices.items()
    }
    result = copy.deepcopy(module, memo)
    if not indices:
        return result
    replaced: dict[int, nn.Module] = {}
    leads = False  # From the last to the first: whether the layer with weights that follows is sparse.
    for path, layer in reversed(list(result.named_modules(remove_duplicate=False))):
        index = indices.get(f"{path}.weight".lstrip("."))
        new = replaced.setdefault(id(layer), _replacement(layer, index))
        if isinstance(new, UnfoldedConv2d):
            new.leads = leads
        if isinstance(layer, nn.Conv2d | nn.Linear):
            leads = index is not None
        if isinstance(layer, nn.TransformerEncoderLayer):
            # In evaluation it hands the weights of its dense layers to one kernel, unless told of another
            # activation than ReLU and GELU. Nothing else looks at this.
            layer.activation_relu_or_gelu = 0
        if new is layer:
            continue
        if not path:
            return new
        parent, _, name = path.rpartition(".")
        setattr(result.get_submodule(parent), name, new)
    return result


def kept_values(weight: Tensor, index: KernelIndex) -> Tensor:
    """Return the kept values of a dense weight, (kept,), in row-major order."""
    return weight.detach().reshape(-1)[index.positions()]


def kept_state(state: Mapping[str, Tensor], indices: Indices) -> dict[str, Tensor]:
    """Return a dense model's state as that of its sparse copy."""
    return {
        name: kept_values(value, indices[name]) if name in indices else value for name, value in state.items()
    }


def dense_state(state: Mapping[str, Tensor], indices: Indices) -> dict[str, Tensor]:
    """Return a sparse copy's state as that of the dense model; what is pruned is exactly 0."""
    result = dict(state)
    for name, index in indices.items():
        dense = state[name].new_zeros(index.shape)
        dense.view(-1)[index.positions()] = state[name].detach()
        result[name] = dense
    return result


def _has_kernels(weight: Tensor) -> bool:
    """Whether there are kernels for a weight of this dtype on this device."""
    return weight.dtype in (torch.float32, torch.float64) and weight.device.type in ("cpu", "meta")


def _window(layer: nn.Module) -> Window | None:
    """Return the window of a layer that can be executed sparse, None for any other."""
    if type(layer) is nn.Linear:
        return Window()
    if type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
        return Window.of(layer)
    return None


def _replacement(layer: nn.Module, index: KernelIndex | None) -> nn.Module:
    """Return what takes the layer's place in a model that is batch-last; the layer itself if nothing."""
    if index is not None:
        kind = SparseLinear if type(layer) is nn.Linear else SparseConv2d
        return kind(index, layer.weight, layer.bias).train(layer.training)  # type: ignore[arg-type]
    if type(layer) is nn.BatchNorm2d and layer.affine:
        return _as(BatchLastBatchNorm2d, layer)
    if type(layer) is nn.MaxPool2d and BatchLastMaxPool2d.takes(layer):
        return _as(BatchLastMaxPool2d, layer)
    if type(layer) is nn.Conv2d:
        return _as(
            UnfoldedConv2d if _window(layer) and UnfoldedConv2d.takes(layer) else BatchFirstConv2d, layer
        )
    return layer


def _as(kind: type[nn.Module], layer: nn.Module) -> nn.Module:
    """Return the layer as one of a subclass that differs in its forward pass alone."""
    new = kind.__new__(kind)
    new.__dict__ = layer.__dict__
    return new
