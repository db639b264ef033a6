"""The final model as one safetensors file, near the entropy of what it holds, and back again.

How the tensors are stored is for `fedprune.wire.packed`. The file's metadata says how to build the module
again, so that reading it needs nothing but the file and the device install.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from fedprune.data.inputs import Pixels, Tokens
from fedprune.errors import UserError, WireError
from fedprune.models import build
from fedprune.results.records import write_atomically
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Task
from fedprune.wire.layout import Layout
from fedprune.wire.packed import NAMED, PACKED, document_of, pack, unpack

#: What files of earlier versions do not say: it is what its default says.
_LATER = ("inputs", "task")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model file says of its model.

    Attributes
    ----------
    model
        The scenario's model: its name and options.
    input_shape, classes
        What its factory was called with: the shape of an input, and how many values it returns for it.
    class_names
        By class number; () where they are no classes.
    mean, std
        Of pixels, per channel, of values from 0 to 1: those with which the inputs were normalised.
    inputs
        The kind of the inputs, and what besides was known to the model's factory.
    task
        What the model has learnt, by name.
    """

    model: dict[str, Any]
    input_shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    inputs: dict[str, Any] = field(default_factory=lambda: {"kind": Pixels.kind})
    task: str = "classification"


def example_of(info: ModelInfo, examples: int) -> Tensor:
    """Return inputs that the model of a file takes, (examples, *input_shape), all ones."""
    tokens = info.inputs["kind"] == Tokens.kind
    return torch.ones(examples, *info.input_shape, dtype=torch.int64 if tokens else torch.float32)


def depth_of(info: ModelInfo) -> int:
    """Return the largest value of a pixel of the images that the model of a file takes."""
    return int(info.inputs.get("settings", {}).get("depth", 255))


def described(task: Task) -> dict[str, Any]:
    """Return what a model file says of a task and its data, as arguments of `save_model`."""
    info = task.info
    pixels = info.inputs if isinstance(info.inputs, Pixels) else None
    return {
        "input_shape": info.input_shape,
        "classes": task.outputs,
        "class_names": info.class_names,
        "mean": pixels.mean if pixels else (),
        "std": pixels.std if pixels else (),
        "inputs": {
            "kind": info.inputs.kind,
            **task.known(),
            **({"settings": settings} if (settings := info.inputs.settings()) else {}),
        },
        "task": task.name,
    }


@dataclass(frozen=True)
class StoredModel:
    """A model file as it is read: ``module`` is dense, on the CPU and in eval mode."""

    info: ModelInfo
    module: nn.Module
    masks: Masks


def save_model(
    path: Path,
    state: Mapping[str, Tensor],
    masks: Masks,
    *,
    model: Mapping[str, object],
    **description: Any,
) -> dict[str, int]:
    """Write a model; return the number of weights of each of its parameters.

    Parameters
    ----------
    state, masks
        Float tensors by name and the masks of those that are pruned. What a mask does not
        keep is not stored: it reads back as 0.
    model
        The scenario's model: ``{"name": ..., **options}``; of a user's model
        (``mine.py:Net``), the file's absolute path is stored.
    **description
        The other attributes of `ModelInfo`.
    """
    info = ModelInfo(model={**model, "name": _located(str(model["name"]))}, **description)
    module = _build(info)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    document: dict[str, Any] = asdict(info)
    tensors, said = pack(tensors, masks, Layout.of(module))
    document |= said
    text = json.dumps(document, separators=(",", ":"))
    # One key: safetensors writes several in an order that differs from run to run.
    write_atomically(path, safetensors_bytes(tensors, metadata={PACKED if masks else NAMED: text}))
    return {name: parameter.numel() for name, parameter in module.named_parameters()}


def read_info(path: str | Path) -> ModelInfo:
    """Return what a model file says of its model, without reading its weights.

    Raises
    ------
    UserError
        Where the file is missing, is not a model that fedprune wrote, or is damaged.
    """
    return _read(Path(path), weights=False)[0]


def load_model(path: str | Path, *, directory: str | Path | None = None) -> nn.Module:
    """Return the model of a file that fedprune wrote, dense again, on the CPU, in eval mode.

    Parameters
    ----------
    path
        A run's ``model.safetensors``.
    directory
        The folder in which the code of a model of your own (``mine.py:Net``) lies, if it is no
        longer where it was when the file was written. Loading such a model runs that code.

    Raises
    ------
    UserError
        Where the file is missing, is not a model that fedprune wrote, or is damaged, or where
        the model's own code cannot be found.

    Examples
    --------
    >>> model = load_model("runs/quickstart/model.safetensors")  # doctest: +SKIP
    >>> model(torch.zeros(1, 1, 8, 8)).shape  # doctest: +SKIP
    torch.Size([1, 10])
    """
    return read_model(path, directory=directory).module


def read_model(path: str | Path, *, directory: str | Path | None = None) -> StoredModel:
    """Return all that a model file holds; the arguments and errors are those of `load_model`."""
    path = Path(path)
    info, document, tensors = _read(path, weights=True)
    module = _build(info, Path(directory) if directory is not None else None)
    try:
        state, masks = unpack(tensors, document, lambda: Layout.of(module))
        absent = set(module.load_state_dict(state, strict=False).missing_keys)
    except (ValueError, KeyError, IndexError, TypeError, RuntimeError, WireError) as error:
        raise UserError(f"{path}: damaged, or made with another version of its model: {error}") from None
    # Counters such as num_batches_tracked, and further names of a shared tensor, are no part of a state.
    needed = absent & Layout.of(module).shapes.keys()
    if needed or not state.keys() <= module.state_dict().keys():
        wrong = sorted(needed | (state.keys() - module.state_dict().keys()))
        raise UserError(f"{path}: does not fit the model it names: {', '.join(wrong[:5])}")
    return StoredModel(info, module.eval(), masks)


def _build(info: ModelInfo, directory: Path | None = None) -> nn.Module:
    """Build the module that a file names, with weights that are to be replaced."""
    options = {key: value for key, value in info.model.items() if key != "name"}
    name = _located(str(info.model["name"]), directory)
    known = {key: value for key, value in info.inputs.items() if key not in ("kind", "settings")}
    return build(name, info.input_shape, info.classes, seed=0, options=options, known=known)


def _located(name: str, directory: Path | None = None) -> str:
    """Return a model's name; a user's model with its file's absolute path, in ``directory`` if given."""
    file, separator, attribute = name.rpartition(":")
    if not (separator and file.endswith(".py")):
        return name
    path = Path(file) if directory is None else directory / Path(file).name
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, and the model is its {attribute!r}; "
            "say which folder it is in with load_model(path, directory=...)"
        )
    return f"{path.resolve()}:{attribute}"


def _read(path: Path, *, weights: bool) -> tuple[ModelInfo, dict[str, Any], dict[str, Tensor]]:
    """Read what a file says of its model, also as it was stored, and, where asked, its tensors."""
    if not path.is_file():
        raise UserError(f"{path}: no such model file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if weights else {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a model file, or damaged: {error}") from None
    try:
        document = document_of(metadata)
        if document is None:
            raise UserError(f"{path}: not a model that fedprune wrote (no {PACKED!r} in its metadata)")
        return _info_from(document), document, tensors
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged description of its model: {error}") from None


def _info_from(document: Mapping[str, Any]) -> ModelInfo:
    """Return the description that was stored as JSON, where tuples are lists."""
    names = [field.name for field in fields(ModelInfo)]
    known = {name: document[name] for name in names if name in document or name not in _LATER}
    for name in ("input_shape", "class_names", "mean", "std"):
        known[name] = tuple(known[name])
    return ModelInfo(**known)
