"""Which channels of a model belong together: what must go when one of them goes.

The graph of dependencies is torch-pruning's (Fang et al., CVPR 2023), which follows autograd through any
module: residual sums, concatenations, depthwise convolutions, a flattening before a linear layer. An own
tracer would have to learn all of these again. It is needed where channels are chosen, on the server; a client
makes its small model of the masks alone.

A group is taken only if a model without some of its channels computes what the whole model computes with
these at 0. That is tried, on random weights. It is not so behind layer norm or group norm, whose statistics
are those of all channels: there the width stays.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fedprune.errors import UserError
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.sparsity.pruning import kept_weights
from fedprune.sparsity.structure.smaller import shrink

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Part:
    """Where the units of a group lie in one tensor.

    Parameters
    ----------
    tensor
        Name of a parameter or buffer.
    dim
        Its dimension.
    positions
        int64 (units, n): the positions along that dimension that belong to each unit.
    """

    tensor: str
    dim: int
    positions: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can go one by one: channels, neurons or attention heads of one place of a model.

    Parameters
    ----------
    name
        Name of the weight of which they are the outputs; of several, the first.
    units
        How many there are.
    parts
        Where they lie; first where they are outputs of that weight.
    """

    name: str
    units: int
    parts: tuple[Part, ...]


def channel_groups(module: nn.Module, inputs: Tensor, keep: Sequence[str] = ()) -> list[Group]:
    """Return the groups of channels that may be pruned, in the order of the layers.

    Parameters
    ----------
    module
        The model; it is not changed.
    inputs
        Two random inputs, (2, ...).
    keep
        Layers of which all outputs stay, as in `fedprune.sparsity.pruning.prunable`: name patterns, "first"
        and "last". What feeds them may be pruned.

    Raises
    ------
    UserError
        Where no group is left, or torch-pruning is not installed.
    """
    kept = kept_weights(module, keep)
    model = copy.deepcopy(module).eval().requires_grad_()
    order = {name: place for place, (name, _) in enumerate(model.named_parameters())}
    found = [group for group in _traced(model, inputs, order) if not kept & _outputs(group, model)]
    found.sort(key=lambda group: order[group.name])
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    found = [group for group in found if all(_trains(part, module, trainable) for part in group.parts)]
    if found and not _equal(model, inputs, found):
        found = [group for group in found if _equal(model, inputs, [group])]
    if not found:
        raise UserError(
            "the model has no channels that can be pruned as a whole (recurrent layers have none, nor what "
            "layer norm or group norm joins, nor layers of strategy.keep); single weights are pruned with "
            "strategy.unit: weight"
        )
    return found


def described(groups: Sequence[Group]) -> str:
    """Return which channels can be pruned, as text.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> described(channel_groups(net, torch.rand(2, 2)))
    'channels are the outputs of 1 layer, and what goes with them: 0 (8)'
    """
    layers = [f"{group.name.rpartition('.')[0]} ({group.units})" for group in groups]
    shown = layers if len(layers) <= _SHOWN else [*layers[: _SHOWN - 1], f"{len(layers) - _SHOWN + 1} more"]
    count = f"{len(layers)} layers" if len(layers) > 1 else "1 layer"
    return f"channels are the outputs of {count}, and what goes with them: {', '.join(shown)}"


def masks_of(kept: Mapping[Group, Tensor], module: nn.Module) -> Masks:
    """Return the masks that keep these units: of every tensor in which units of the groups lie.

    Parameters
    ----------
    kept
        Of each group bool (units,), True = kept.
    module
        The model; its tensors' shapes count alone.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> hidden = channel_groups(net, torch.rand(2, 2))[0]
    >>> masks_of({hidden: torch.tensor([True, False])}, net)["2.weight"]
    tensor([[ True, False]])
    """
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    axes: dict[str, dict[int, Tensor]] = {}
    for group, units in kept.items():
        for part in group.parts:
            shape = shapes[part.tensor]
            along = axes.setdefault(part.tensor, {}).setdefault(
                part.dim, torch.ones(shape[part.dim], dtype=torch.bool)
            )
            along[part.positions[~units].reshape(-1)] = False
    return Masks({name: _product(shapes[name], axes[name]) for name in shapes if name in axes})


def _product(shape: torch.Size, axes: Mapping[int, Tensor]) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    for dim, kept in axes.items():
        mask &= kept.reshape([-1 if axis == dim else 1 for axis in range(len(shape))])
    return mask


def _outputs(group: Group, model: nn.Module) -> set[str]:
    """Return the weights of which a group's units are outputs."""
    return {part.tensor for part in group.parts if _is_output(part, model)}


def _is_output(part: Part, model: nn.Module) -> bool:
    """Say whether units are outputs of a weight: of a product, not of batch norm."""
    path, _, own = part.tensor.rpartition(".")
    layer = model.get_submodule(path)
    if own != "weight" or not isinstance(layer, _ConvNd | nn.Linear | nn.Embedding):
        return False
    return part.dim == int(isinstance(layer, _ConvTransposeNd | nn.Embedding))


def _trains(part: Part, module: nn.Module, trainable: set[str]) -> bool:
    """Say whether a tensor may be cut: a frozen one travels once, and whole."""
    return part.tensor in trainable or part.tensor in dict(module.named_buffers())


def _traced(model: nn.Module, inputs: Tensor, order: Mapping[str, int]) -> Iterator[Group]:
    """Yield the groups of torch-pruning of which every layer is known here."""
    try:
        import torch_pruning  # type: ignore[import-untyped]
    except ImportError:
        raise UserError(
            "pruning channels needs torch-pruning: install fedprune[sim], or torch-pruning alone"
        ) from None
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs)
            found = list(graph.get_all_groups())
        except Exception as error:  # It traces a user's own model, which may do anything.
            raise UserError(
                f"the dependencies between the model's channels cannot be traced: {error}"
            ) from error
    names = {id(layer): name for name, layer in model.named_modules()}
    for group in found:
        parts = _parts(group, names)
        if parts is None:
            continue
        blocks = {size for part in parts if (size := _head_size(model, part.tensor))}
        units = len(group.items[0].idxs)
        if blocks:
            parts, units = _joined(parts, blocks.pop() if len(blocks) == 1 else units, units)
        first = min((part for part in parts if _is_output(part, model)), key=lambda part: order[part.tensor])
        yield Group(first.tensor, units, (first, *(part for part in parts if part is not first)))


def _parts(group: Any, names: dict[int, str]) -> list[Part] | None:
    """Return where the channels of a traced group lie; None where one lies in a layer that is not known."""
    units = len(group.items[0].idxs)
    places: dict[tuple[str, int], list[tuple[int, int]]] = {}
    consumed = False
    for item in group.items:
        layer = item.dep.target.module
        name = names.get(id(layer))
        if name is None:
            if isinstance(layer, nn.Parameter):
                return None
            continue  # An operation without parameters.
        outputs = item.dep.handler.__name__ in _OUTPUTS or "out_channels" in item.dep.handler.__name__
        tensors = _tensors(layer, outputs)
        if tensors is None:
            return None
        consumed |= not outputs
        for tensor, dim in tensors:
            places.setdefault((f"{name}.{tensor}".lstrip("."), dim), []).extend(
                zip(item.root_idxs, item.idxs, strict=True)
            )
    if not consumed:
        return None  # They are what the model returns.
    parts = []
    for (tensor, dim), pairs in places.items():
        of_unit: list[list[int]] = [[] for _ in range(units)]
        for unit, position in dict.fromkeys(pairs):
            of_unit[unit].append(position)
        if len({len(positions) for positions in of_unit}) != 1:
            return None
        parts.append(Part(tensor, dim, torch.tensor(of_unit)))
    return parts


_OUTPUTS = {"prune_depthwise_conv_out_channels"}


def _tensors(layer: nn.Module, outputs: bool) -> list[tuple[str, int]] | None:
    """Return in which tensors of a layer, and along which dimension, a channel at its ends lies."""
    bias = [("bias", 0)] if getattr(layer, "bias", None) is not None else []
    if isinstance(layer, _ConvNd):
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        if layer.groups > 1 and not depthwise:
            return None
        if depthwise:
            return [("weight", 0), *bias]
        first = isinstance(layer, _ConvTransposeNd) == outputs
        return [("weight", int(first)), *(bias if outputs else [])]
    if isinstance(layer, nn.Linear):
        return [("weight", 0), *bias] if outputs else [("weight", 1)]
    if isinstance(layer, _BatchNorm):
        own = ("weight", "bias", "running_mean", "running_var")
        return [(name, 0) for name in own if getattr(layer, name) is not None]
    if isinstance(layer, nn.PReLU):
        return [("weight", 0)] if layer.num_parameters > 1 else []
    if isinstance(layer, nn.Embedding) and outputs:
        return [("weight", 1)]
    return [] if not list(layer.parameters(recurse=False)) else None


def _head_size(model: nn.Module, tensor: str) -> int | None:
    """Return the size of an attention head that a tensor is part of, where its module says so."""
    *path, _, _ = tensor.split(".") if tensor.count(".") > 1 else ("", "", "")
    size = getattr(model.get_submodule(".".join(path)), "head_size", None) if path else None
    return size if isinstance(size, int) else None


def _joined(parts: list[Part], size: int, units: int) -> tuple[list[Part], int]:
    """Return the parts with so many units at a time as one: a head of attention goes as a whole."""
    count = units // size
    return [Part(part.tensor, part.dim, part.positions.reshape(count, -1)) for part in parts], count


@torch.no_grad()
def _equal(model: nn.Module, inputs: Tensor, groups: Iterable[Group]) -> bool:
    """Say whether a model without half of the units computes what it does with these at 0."""
    generator = torch.Generator().manual_seed(0)
    kept = {}
    for group in groups:
        some = torch.rand(group.units, generator=generator) < 0.5
        some[0], some[-1] = True, group.units == 1
        kept[group] = some
    whole = copy.deepcopy(model)
    for tensor in (*whole.parameters(), *whole.buffers()):
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    masks = masks_of(kept, whole)
    whole.load_state_dict(apply_masks(whole.state_dict(), masks))
    try:
        found = shrink(whole, masks)(inputs)
    except Exception:  # The model's own code may hang on a size.
        return False
    return bool(torch.allclose(found, whole(inputs), rtol=1e-3, atol=1e-4))
