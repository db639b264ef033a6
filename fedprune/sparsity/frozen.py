"""Frozen parts of a model: what no one trains, by name patterns, and which parts those are.

A frozen parameter needs no gradient. A batch norm whose statistics are frozen normalises by them, in
training as well. Neither changes over a run, so a client is sent them once. How they travel is for
`fedprune.protocol.frozen`; weights that supermasks freeze are for `fedprune.sparsity.supermasks`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import Tensor, nn

from fedprune.errors import UserError
from fedprune.wording import did_you_mean

M = TypeVar("M", bound=nn.Module)

#: Where a layer keeps the names of its frozen buffers, so that copies of the model know them, too.
_MARK = "frozen_buffers"


def frozen_by(
    module: nn.Module, frozen: Sequence[str] = (), trainable: Sequence[str] | None = None
) -> list[str]:
    """Return the names of the parameters and buffers that patterns freeze, in the order of the layers.

    Parameters
    ----------
    module
        The model.
    frozen
        What is not trained: patterns (``fnmatch``) on the name of a parameter, of its layer, or of anything
        that this is in: ``head``, ``blocks.0``, ``*.bias``.
    trainable
        Patterns of what alone is trained, less what ``frozen`` matches; all, where not given.

    Raises
    ------
    UserError
        If a pattern matches nothing, or nothing is left to train.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    >>> frozen_by(model, trainable=["2"])
    ['0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var']
    """
    names = [name for name, _ in _entries(module)]
    for key, patterns in (("frozen", frozen), ("trainable", trainable or ())):
        for pattern in patterns:
            if not any(_matches(name, pattern) for name in names):
                known = [name for name, _ in module.named_modules() if name] + names
                raise UserError(
                    f"model.{key}: {pattern!r} matches no part of the model{did_you_mean(pattern, known)}"
                )
    found = [
        name
        for name in names
        if any(_matches(name, pattern) for pattern in frozen)
        or (trainable is not None and not any(_matches(name, pattern) for pattern in trainable))
    ]
    if not {name for name, _ in module.named_parameters()} - set(found):
        raise UserError("model: nothing is left to train: freeze less")
    return found


def freeze(module: M, names: Collection[str]) -> M:
    """Freeze parameters and buffers of a model, by name; return the model."""
    for path, layer in module.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in layer.named_parameters(recurse=False):
            if prefix + name in names:
                parameter.requires_grad_(False)
        buffers = {name for name, _ in layer.named_buffers(recurse=False) if prefix + name in names}
        if buffers:
            setattr(layer, _MARK, frozenset(buffers))
    return module


def thawed(module: M) -> M:
    """Undo `freeze` in a model, and let every parameter be trained; return the model."""
    for layer in module.modules():
        layer.__dict__.pop(_MARK, None)
    return module.requires_grad_(True)


def frozen_names(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that need no gradient, and of the buffers that `freeze` froze."""
    return frozenset(
        [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
        + [
            f"{path}.{name}" if path else name
            for path, layer in module.named_modules()
            for name in getattr(layer, _MARK, ())
        ]
    )


def training_mode(module: M) -> M:
    """Put a model into training mode, but for layers whose statistics are frozen; return the model."""
    module.train()
    for layer in module.modules():
        if is_frozen(layer):
            layer.eval()
    return module


def is_frozen(layer: nn.Module) -> bool:
    """Return whether a layer's statistics are frozen: it then normalises by them, always."""
    return "running_mean" in getattr(layer, _MARK, ())


def _entries(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what can be frozen: parameters, and buffers that are part of a state."""
    kept = module.state_dict(keep_vars=True)
    tensors = {id(tensor) for tensor in kept.values() if isinstance(tensor, Tensor)}
    for path, layer in module.named_modules():
        prefix = f"{path}." if path else ""
        for name, tensor in (
            *layer.named_parameters(recurse=False),
            *layer.named_buffers(recurse=False),
        ):
            if id(tensor) in tensors and tensor.is_floating_point():
                tensors.discard(id(tensor))
                yield prefix + name, tensor


def _matches(name: str, pattern: str) -> bool:
    """Return whether a pattern matches a name, or that of a layer that it is in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))
