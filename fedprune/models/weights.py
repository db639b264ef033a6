"""The values that a model begins with, from a safetensors file in place of those drawn for it.

Any model takes a file with its own names, and a `vit` the checkpoints that `fedprune.models.vit_names` knows.
What does not fit is refused, but for the classifier and prompts. Pickles are never read. Who reads a file,
and how fedprune's own are packed, is for `fedprune.server.weights`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedprune.errors import UserError
from fedprune.models.vit import PatchEmbedding, VisionTransformer
from fedprune.models.vit_names import POSITIONS, resampled, vit_named

_PROMPTS = "embedding.prompts"


def read_tensors(path: Path, *, values: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file by name, on the CPU, and its metadata.

    Parameters
    ----------
    path
        The file.
    values
        Whether tensors are read at all; without, only whether the file is what it should be.

    Raises
    ------
    UserError
        Where it is missing, or no safetensors file.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if values else ()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is no safetensors file, or damaged ({error}): other formats are not read; "
            "safetensors.torch.save_file(model.state_dict(), ...) writes one"
        ) from None


def begin_with(module: nn.Module, tensors: Mapping[str, Tensor], *, same_classes: bool = True) -> list[str]:
    """Put the tensors of a file into a model; return what is not taken over as it is, in words.

    The classifier is the last convolution or linear layer, as modules are listed. It stays as drawn where the
    file has none, one for other classes or, with all else alike, one of another number of outputs. So do
    prompts where the file has none. Positions of a `vit` are interpolated to its grid of patches. Counters
    (``num_batches_tracked``) may be absent. Values become those of the model's dtype.

    Parameters
    ----------
    module
        The model.
    tensors
        By name.
    same_classes
        Whether the outputs of the file's model, if there are as many, stand for what the model's do.

    Raises
    ------
    UserError
        For a tensor that is missing, that the model does not have, or that has another shape or kind, or
        values that are not finite. The model is then as it was.
    """
    own, aliases = _tensors_of(module)
    found = vit_named(tensors) if isinstance(module, VisionTransformer) else _as_named(tensors)
    found = {aliases.get(name, name): each for name, each in found.items()}
    if not found.keys() & own.keys():
        raise UserError(f"holds {_some(tensors)}, of which the model, with {_some(own)}, has none")
    notes = _at_the_size(module, found) if isinstance(module, VisionTransformer) else []
    drawn = _left_as_drawn(module, own, found, same_classes)
    left = {name for names in drawn for name in names}
    taken = {name: each for name, each in found.items() if name not in left}
    for name, (called, tensor) in taken.items():  # Another width says more than a name too few.
        if name in own:
            _check(name, own[name], called, tensor)
    for name, tensor in own.items():
        if name not in found.keys() | left and tensor.is_floating_point():
            raise UserError(f"lacks {name!r}, of shape {tuple(tensor.shape)} in the model{_ADVICE}")
    for name, (called, tensor) in taken.items():
        if name not in own:
            raise UserError(f"holds {called!r} of shape {tuple(tensor.shape)}, not in the model{_ADVICE}")
    with torch.no_grad():
        for name, (_, tensor) in taken.items():
            own[name].copy_(tensor)
    return notes + [f"as drawn: {' and '.join(names)} ({why})" for names, why in drawn.items()]


_ADVICE = ": take the model, with the options, that the file was made with"


def _as_named(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    return {name: (name, tensor) for name, tensor in tensors.items()}


def _tensors_of(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a model's own tensors, each once, and every name of theirs with the first."""
    own: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            aliases[name] = first.setdefault(id(tensor), name)
            own.setdefault(aliases[name], tensor)
    return own, aliases


def _at_the_size(module: VisionTransformer, found: dict[str, tuple[str, Tensor]]) -> list[str]:
    """Interpolate the positions of a file to the grid of a model; return that it was done."""
    embedding = module.get_submodule("embedding")
    assert isinstance(embedding, PatchEmbedding)
    called, positions = found.get(POSITIONS, (POSITIONS, embedding.positions))
    wanted = embedding.positions.shape
    rows, columns = embedding.grid
    # As many patches in other proportions: of a checkpoint of others, as timm has it, they form a square.
    proportions = rows == columns or called == POSITIONS
    if positions.dim() != 3 or (positions.shape[1] == wanted[1] and proportions):
        return []
    at_size = resampled(positions, embedding.grid)
    if at_size is None:
        raise UserError(
            f"{called!r} has shape {tuple(positions.shape)}, no square of patches and a class token, and the "
            f"model {tuple(wanted)}: positions cannot be interpolated"
        )
    found[POSITIONS] = called, at_size
    side = isqrt(positions.shape[1] - 1)
    return [f"positions are interpolated from {side}x{side} patches to {rows}x{columns}"]


def _left_as_drawn(
    module: nn.Module,
    own: Mapping[str, Tensor],
    found: Mapping[str, tuple[str, Tensor]],
    same_classes: bool,
) -> dict[tuple[str, ...], str]:
    """Return names of tensors that keep their values, and why."""
    drawn: dict[tuple[str, ...], str] = {}
    if isinstance(module, VisionTransformer) and _PROMPTS in own.keys() - found.keys():
        drawn[(_PROMPTS,)] = "the file has none"
    classifier = _classifier(module, own)
    if classifier and not found.keys() & set(classifier):
        drawn[classifier] = "the file has none"
    elif classifier and (there := found.get(classifier[0])) is not None:
        outputs = len(own[classifier[0]])
        if _other_outputs(there[1], own[classifier[0]]):
            drawn[classifier] = f"the file has {len(there[1])} outputs, the model {outputs}"
        elif not same_classes and there[1].shape == own[classifier[0]].shape:
            drawn[classifier] = "the file's is for other classes"
    return drawn


def _classifier(module: nn.Module, own: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the weight that makes the outputs, and of its bias; none where it is shared."""
    layers = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | _ConvNd)]
    if not layers:
        return ()
    names = [f"{layers[-1]}.{name}".removeprefix(".") for name in ("weight", "bias")]
    return tuple(name for name in names if name in own) if names[0] in own else ()


def _other_outputs(there: Tensor, here: Tensor) -> bool:
    return there.dim() == here.dim() and there.shape[1:] == here.shape[1:] and len(there) != len(here)


def _check(name: str, here: Tensor, called: str, there: Tensor) -> None:
    """Refuse a tensor of a file that is not what the model has under that name."""
    what = repr(called) if called == name else f"{called!r} ({name!r} in the model)"
    if there.shape != here.shape:
        raise UserError(f"{what} has shape {tuple(there.shape)}, and the model {tuple(here.shape)}{_ADVICE}")
    if there.is_floating_point() != here.is_floating_point():
        raise UserError(f"{what} holds {there.dtype}, and the model {here.dtype}{_ADVICE}")
    if not there.isfinite().all():
        raise UserError(f"{what} holds values that are not finite: training would start from them")


def _some(tensors: Mapping[str, Tensor]) -> str:
    names = list(tensors)[:3]
    return (
        ", ".join(map(repr, names)) + (", ..." if len(tensors) > len(names) else "")
        if names
        else "no tensors"
    )
