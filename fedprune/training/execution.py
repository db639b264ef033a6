"""How a process executes its model under masks: whole, smaller, or with layers on their kept weights alone.

A `LocalModel` is a module together with the way in which flat values get into it and out of it. What
travels is the same in every execution. Where masks prune whole channels, the model is a smaller dense one
(`fedprune.sparsity.structure`); else which layers are executed sparse follows from ``clients.training``
and the masks, and how that is done is for `fedprune.sparsity.execution`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fedprune.costs.flops import ModelCost
from fedprune.costs.step import forward_loss, leaves_no_trace
from fedprune.scenario import TrainingSpec
from fedprune.sparsity.execution import Rule, always, held_masks, index_masks, pays, sparse_copy
from fedprune.sparsity.execution.convert import Indices
from fedprune.sparsity.frozen import frozen_names, thawed
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.structure.smaller import shrink
from fedprune.tasks import Task
from fedprune.wire import Codec, Layout, StateCodec, get_state, set_state

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LocalModel:
    """A model under masks as it is executed here.

    Parameters
    ----------
    module : nn.Module
        What computes. Its values are those that were loaded last, or trained since.
    codec : Codec
        Between values, flat under ``masks``, and the module's state.
    masks : Masks
        What is kept.
    frozen : Mapping[str, Tensor]
        The rest of the module's state, which stays as it is.
    """

    module: nn.Module
    codec: Codec
    masks: Masks
    frozen: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def held(self) -> Masks:
        """The masks of those layers that are executed dense: training must hold their pruned weights at 0."""
        return self.codec.masks

    def load(self, values: Tensor) -> None:
        """Put flat values into the module."""
        set_state(self.module, {**self.frozen, **self.codec.unflatten(values)})

    def values(self) -> Tensor:
        """Return the flat values that are in the module."""
        state = get_state(self.module)
        return self.codec.flatten({name: state[name] for name in state if name not in self.frozen})

    def kept(self, name: str) -> Tensor:
        """Return the kept weights of a tensor that has a mask, (kept,) in row-major order, on the CPU."""
        weight = self.module.get_parameter(name).detach().cpu()
        return weight[self.masks[name]] if name in self.held else weight.reshape(-1)


def rule_of(training: TrainingSpec, cost: ModelCost) -> Rule | None:
    """Return which layers of a model a scenario's clients execute sparse; None where they execute none."""
    if training.execution == "dense":
        return None
    positions = {layer.weight: layer.positions for layer in cost.layers}
    rule = partial(pays, batch=training.batch_size, positions=positions)
    return always if training.execution == "sparse" else rule


def sparse_model(skeleton: nn.Module, masks: Masks, rule: Rule, task: Task) -> LocalModel | None:
    """Return a model of which the layers that a rule names are executed sparse; None where it names none.

    None, too, for a model that cannot work on activations whose examples lie side by side in memory: one
    that calls ``view`` across examples, for instance.

    Parameters
    ----------
    skeleton : nn.Module
        The dense model, `without_values`: no dense weight of a sparse layer ever has memory.
    masks : Masks
        What is kept.
    rule : Rule
        Which layers.
    task : Task
        What is learnt, of which inputs.
    """
    indices = index_masks(skeleton, masks, rule)
    if not indices:
        return None
    model = _executed(skeleton, masks, indices)
    if fault := _fault(model.module, task):
        _logger.warning(
            "the model is executed dense, since it cannot work with sparse layers: %s (in its forward, "
            "`reshape` does what `view` cannot)",
            fault,
        )
        return None
    return model


def smaller_model(skeleton: nn.Module, masks: Masks, task: Task) -> LocalModel | None:
    """Return the smaller dense model that is left where masks prune whole channels; None where they do not.

    None, too, for a model whose code relies on the sizes that it was built with. Arguments are those of
    `sparse_model`.
    """
    if masks.density == 1 or masks.axes is None:
        return None
    try:
        module = with_memory(shrink(skeleton, masks))
        fault = _fault(module, task)
    except ValueError as error:  # A layer of which nothing is left.
        fault = _said(error)
    if fault:
        _logger.warning("the model is executed whole, since it cannot work without channels: %s", fault)
        return None
    layout = Layout.of(module).without(frozen_names(module))
    return LocalModel(module, StateCodec(layout, Masks()), masks)


def _executed(skeleton: nn.Module, masks: Masks, indices: Indices) -> LocalModel:
    """Return the model with the indexed layers sparse, its values zeros."""
    module = with_memory(sparse_copy(skeleton, indices))
    layout = Layout.of(module).without(frozen_names(module))
    return LocalModel(module, StateCodec(layout, held_masks(masks, indices)), masks)


def _fault(module: nn.Module, task: Task) -> str | None:
    """Return why a model cannot take a training step on two examples; None where it can."""
    try:
        with leaves_no_trace(module):
            forward_loss(module.train(), task, 2).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # It may be a user's own, and raise anything.
        return _said(error)
    return None


def why_not_sparse(outline: nn.Module, dense: nn.Module, task: Task) -> str | None:
    """Return why a model computes something else where its layers are executed sparse; None: it does not.

    A model may use its layers in ways that a copy with other layers does not follow: by a hook, by a closure
    over the module itself, by what only a dense layer has.

    Parameters
    ----------
    outline : nn.Module
        The model, `without_values`.
    dense : nn.Module
        Another build of it, whose values change.
    task : Task
        What is learnt, of which inputs.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {name: weight for name, weight in dense.named_parameters() if weight.dim() in (2, 4)}
    masks = Masks(
        {name: torch.rand(weight.shape, generator=generator) < 0.5 for name, weight in weights.items()}
    )
    indices = index_masks(outline, masks)
    codec = StateCodec(Layout.of(dense), masks)
    state = {
        name: value + 0.05 * torch.rand(value.shape, generator=generator).to(value.dtype)
        for name, value in get_state(dense).items()
    }
    inputs = task.info.inputs.random(2, generator)
    try:
        # What of the model is frozen does not matter here.
        sparse = _executed(thawed(copy.deepcopy(outline)), masks, indices)
        for sign in (1, -1):  # What a hook does to values of one sign alone is seen with one of the two.
            values = codec.flatten(
                {name: value * sign if name in weights else value for name, value in state.items()}
            )
            sparse.load(values)
            set_state(dense, codec.unflatten(values))
            with torch.no_grad():
                found, expected = sparse.module.eval()(inputs), dense.eval()(inputs)
            if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
                return "it computes something else with them"
    except Exception as error:
        return _said(error)
    return None


def _said(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def without_values(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose state, as `Layout` has it, is on the device "meta"."""
    state, named = Layout.of(module).shapes, module.state_dict(keep_vars=True)
    return _with_tensors(module, [named[name] for name in state], partial(torch.empty_like, device="meta"))


def with_memory(skeleton: nn.Module) -> nn.Module:
    """Return a copy of a module `without_values` whose state is zeros on the CPU."""
    empty = [tensor for tensor in (*skeleton.parameters(), *skeleton.buffers()) if tensor.is_meta]
    return _with_tensors(skeleton, empty, partial(torch.zeros_like, device="cpu"))


def _with_tensors(module: nn.Module, tensors: list[Tensor], made: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a copy of a module with others in the place of some tensors; what layers share, they share."""
    memo: dict[int, object] = {
        id(tensor): nn.Parameter(made(tensor.detach()), tensor.requires_grad)
        if isinstance(tensor, nn.Parameter)
        else made(tensor)
        for tensor in tensors
    }
    return copy.deepcopy(module, memo)
