"""A model cut in three: a head and a tail, which a client holds, and a body between them on a server.

A model can be cut where it is a chain of stages: a ``nn.Sequential``, of which stages may again be such. A
part has the stages of the model itself under their names, so that a state of it is a piece of the model's
state. How the parts are trained is for `fedprune.training.split`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedprune.errors import UserError
from fedprune.wording import did_you_mean


@dataclass(frozen=True)
class Cut:
    """The names of a model's stages: the client's head, the server's body, the client's tail."""

    head: tuple[str, ...]
    body: tuple[str, ...]
    tail: tuple[str, ...]


def stages(module: nn.Module) -> list[str]:
    """Return the names of a model's stages, in the order in which they run.

    Raises
    ------
    UserError
        For a model that is no chain of stages.

    Examples
    --------
    >>> stages(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2))))
    ['0', '1.0', '1.1']
    """
    if not _is_chain(module):
        raise UserError(
            f"a {type(module).__name__} cannot be cut: it is no nn.Sequential of stages (take vit_tiny, "
            "resnet18, vgg11 or cnn, or write it as one)"
        )
    return list(_stages(module, ""))


def cut(module: nn.Module, body: str | None = None, tail: str | None = None) -> Cut:
    """Return where a model is cut.

    Parameters
    ----------
    module
        A chain of stages.
    body, tail
        Names of the stages with which the body and the tail begin, or of what these are in: ``blocks`` is its
        first stage. Without, of a model that has ``blocks``: all of these but the last are the body.

    Raises
    ------
    UserError
        For a stage that does not exist, a part that would be empty, weights that two parts share, or a model
        that cannot be cut.
    """
    names = stages(module)
    if body is None or tail is None:
        blocks = [name for name in names if name.startswith("blocks.")]
        if len(blocks) < 2:
            raise UserError(
                "the model has no stages 'blocks.0', 'blocks.1' ...: say in strategy.body and strategy.tail "
                f"where it is cut ({_listed(names)})"
            )
        body, tail = body or blocks[0], tail or blocks[-1]
    first, last = _place("body", body, names), _place("tail", tail, names)
    if not 0 < first < last:
        raise UserError(
            f"strategy.body is {body!r} and strategy.tail is {tail!r}: head, body and tail must have a stage "
            f"each ({_listed(names)})"
        )
    found = Cut(tuple(names[:first]), tuple(names[first:last]), tuple(names[last:]))
    _check_nothing_shared(module, found)
    return found


def part(module: nn.Module, names: Sequence[str]) -> nn.Sequential:
    """Return some stages of a model as one module; they are the model's own."""
    root = nn.Sequential()
    for name in names:
        *parents, last = name.split(".")
        inner = root
        for parent in parents:
            if parent not in inner._modules:
                inner.add_module(parent, nn.Sequential())
            inner = cast(nn.Sequential, inner._modules[parent])
        inner.add_module(last, module.get_submodule(name))
    return root


class ClientPart(nn.Module):
    """Head and tail of a model, under the model's names.

    Called as a whole, it is the shortcut that leaves the body out. Where the body changes shapes there is no
    such thing, and the tail is given zeros: its costs are then still those of head and tail together.

    Parameters
    ----------
    module
        The model.
    where
        Where it is cut.
    example
        Inputs (B, ...), by which shapes are found.
    """

    def __init__(self, module: nn.Module, where: Cut, example: Tensor) -> None:
        super().__init__()
        for name, child in part(module, (*where.head, *where.tail))._modules.items():
            if hasattr(self, name):
                raise UserError(f"a model with a stage named {name!r} cannot be cut: give it another name")
            self.add_module(name, child)
        self._head, self._tail = where.head, where.tail
        device = next(module.parameters()).device
        before = _shape("body", part(module, where.head), example.to(device))
        after = _shape("tail", part(module, where.body), torch.zeros(before, device=device))
        #: Shape of what goes into the body, and of what comes out of it, of one example.
        self.body_shapes = before[1:], after[1:]

    @property
    def has_shortcut(self) -> bool:
        """Whether the tail takes what the head makes."""
        before, after = self.body_shapes
        return before == after

    def run_head(self, x: Tensor) -> Tensor:
        """Return what the body takes: "smashed" activations."""
        return self._run(self._head, x)

    def run_tail(self, x: Tensor) -> Tensor:
        """Return the model's outputs of what the body made."""
        return self._run(self._tail, x)

    def head_names(self) -> list[str]:
        """Return the names of the head's parameters and buffers."""
        return [f"{stage}.{name}" for stage in self._head for name in self.get_submodule(stage).state_dict()]

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the head that are trained."""
        return self._trained(self._head)

    def tail_parameters(self) -> list[nn.Parameter]:
        """Return those of the tail."""
        return self._trained(self._tail)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of head and tail without the body."""
        smashed = self.run_head(x)
        if not self.has_shortcut:
            smashed = _Gap.apply(smashed, (len(smashed), *self.body_shapes[1]))  # type: ignore[no-untyped-call]
        return self.run_tail(smashed)

    def _run(self, names: Sequence[str], x: Tensor) -> Tensor:
        for name in names:
            x = self.get_submodule(name)(x)
        return x

    def _trained(self, names: Sequence[str]) -> list[nn.Parameter]:
        return [p for name in names for p in self.get_submodule(name).parameters() if p.requires_grad]


class _Gap(torch.autograd.Function):
    """Stands for a body that is not there: zeros of the right shape, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.shape = x.shape
        return x.new_empty(shape).zero_()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.new_empty(ctx.shape).zero_(), None


def _shape(key: str, module: nn.Module, example: Tensor) -> torch.Size:
    """Return the shape of what goes into a part, which a module makes of an example; it comes back unchanged.

    Raises
    ------
    UserError
        For what cannot travel: anything but one float tensor with an entry for each example.
    """
    modes = {layer: layer.training for layer in module.modules()}
    try:
        with torch.no_grad():
            found = module.eval()(example)
    finally:
        for layer, mode in modes.items():
            layer.training = mode
    if not isinstance(found, Tensor):
        made = f"a {type(found).__name__}"
    elif not found.is_floating_point():
        made = f"numbers of {str(found.dtype).removeprefix('torch.')}"
    elif found.ndim < 1 or len(found) != len(example):
        made = f"{tuple(found.shape)} of {len(example)} examples"
    else:
        return found.shape
    raise UserError(
        f"strategy.{key}: cut there, the model would have to send {made}, not a float tensor (B, ...)"
    )


def _check_nothing_shared(module: nn.Module, where: Cut) -> None:
    """Refuse weights that two parts have: each would train a copy of its own."""
    owner: dict[int, tuple[str, str]] = {}
    for which, names in vars(where).items():
        for stage in names:
            layer = module.get_submodule(stage)
            for tensor in (*layer.parameters(), *layer.buffers()):
                other, its = owner.setdefault(id(tensor), (which, stage))
                if other != which:
                    raise UserError(
                        f"the model cannot be cut there: its stages {its!r} in the {other} and {stage!r} in "
                        f"the {which} share weights"
                    )


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _stages(module: nn.Module, prefix: str) -> Iterator[str]:
    for name, child in module._modules.items():  # Also a module that is there twice.
        if child is None:
            continue
        if _is_chain(child):
            yield from _stages(child, f"{prefix}{name}.")
        else:
            yield prefix + name


def _place(key: str, name: str, names: Sequence[str]) -> int:
    for place, stage in enumerate(names):
        if stage == name or stage.startswith(f"{name}."):
            return place
    raise UserError(
        f"strategy.{key}: the model has no stage {name!r}{did_you_mean(name, names)} ({_listed(names)})"
    )


def _listed(names: Sequence[str]) -> str:
    shown = names if len(names) <= 12 else [*names[:5], "...", *names[-5:]]
    return f"its stages: {', '.join(shown)}"
