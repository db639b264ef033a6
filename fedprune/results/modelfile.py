"""The final model as one safetensors file, pruned tensors stored sparse, and back again.

A dense tensor is stored under its name. A pruned tensor ``w`` is stored as ``w::values``, its
kept values in row-major order, and where they lie: ``w::bitmap`` (one bit a weight, first
weight in the highest bit) or ``w::positions`` (ascending, of the smallest type that holds
them), whichever is smaller. The file's metadata says how to build the module again, so that
reading it needs nothing but the file and the device install.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as safetensors_bytes
from torch import Tensor, nn

from fedprune.errors import UserError
from fedprune.models import build
from fedprune.results.records import write_atomically
from fedprune.sparsity.masks import Masks

_FORMAT = "fedprune-model-1"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model file says of its model.

    ``model`` is the scenario's model: its name and options. ``mean`` and ``std`` are those of
    pixels/255 per channel, with which the inputs were normalised. ``pruned`` maps each pruned
    tensor to its shape.
    """

    model: dict[str, Any]
    input_shape: tuple[int, int, int]
    classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pruned: dict[str, tuple[int, ...]]


def save_model(
    path: Path,
    state: Mapping[str, Tensor],
    masks: Masks,
    *,
    model: Mapping[str, object],
    input_shape: tuple[int, int, int],
    classes: int,
    class_names: tuple[str, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, int]:
    """Write a model; return the number of weights of each of its parameters.

    Parameters
    ----------
    state, masks
        Float tensors by name and the masks of those that are pruned. What a mask does not
        keep is not stored: it reads back as 0.
    model
        The scenario's model: ``{"name": ..., **options}``; of a model of a user's own
        (``mine.py:Net``), the file's absolute path is stored.
    """
    info = ModelInfo(
        model={**model, "name": _located(str(model["name"]))},
        input_shape=input_shape,
        classes=classes,
        class_names=tuple(class_names),
        mean=tuple(mean),
        std=tuple(std),
        pruned={name: tuple(mask.shape) for name, mask in masks.items()},
    )
    module = _build(info)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for name, tensor in state.items():
        values = tensor.detach().cpu().contiguous().numpy()
        if name in masks:
            arrays |= _to_sparse(name, values, masks[name].cpu().numpy())
        else:
            arrays[name] = values
    # One key: safetensors writes several in an order that differs from run to run.
    write_atomically(path, safetensors_bytes(arrays, metadata={_FORMAT: json.dumps(asdict(info))}))
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
    path = Path(path)
    info, arrays = _read(path, weights=True)
    module = _build(info, Path(directory) if directory is not None else None)
    try:
        state = {name: torch.from_numpy(array) for name, array in _to_dense(arrays, info.pruned).items()}
        absent = set(module.load_state_dict(state, strict=False).missing_keys)
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: damaged, or made with another version of its model: {error}") from None
    # Counters such as num_batches_tracked are never averaged, so they are not part of a state.
    needed = {name for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    if absent & needed or not state.keys() <= module.state_dict().keys():
        wrong = sorted((absent & needed) | (state.keys() - module.state_dict().keys()))
        raise UserError(f"{path}: does not fit the model it names: {', '.join(wrong[:5])}")
    return module.eval()


def _build(info: ModelInfo, directory: Path | None = None) -> nn.Module:
    """Build the module that a file names, with weights that are to be replaced."""
    options = {key: value for key, value in info.model.items() if key != "name"}
    name = _located(str(info.model["name"]), directory)
    return build(name, info.input_shape, info.classes, seed=0, options=options)


def _located(name: str, directory: Path | None = None) -> str:
    """Return a model's name; one of a user's own with its file's absolute path, in ``directory`` if given."""
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


def _read(path: Path, *, weights: bool) -> tuple[ModelInfo, dict[str, np.ndarray[Any, Any]]]:
    """Read what a file says of its model and, where asked, its stored arrays."""
    if not path.is_file():
        raise UserError(f"{path}: no such model file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()} if weights else {}  # noqa: SIM118
    except (SafetensorError, OSError, struct.error) as error:
        raise UserError(f"{path}: not a model file, or damaged: {error}") from None
    if _FORMAT not in metadata:
        raise UserError(f"{path}: not a model that fedprune wrote (no {_FORMAT!r} in its metadata)")
    try:
        return _info_from(json.loads(metadata[_FORMAT])), arrays
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged description of its model: {error}") from None


def _info_from(document: dict[str, Any]) -> ModelInfo:
    """Return the description that was stored as JSON, where tuples are lists."""
    known = {field.name: document[field.name] for field in fields(ModelInfo)}
    for name in ("input_shape", "class_names", "mean", "std"):
        known[name] = tuple(known[name])
    known["pruned"] = {name: tuple(shape) for name, shape in known["pruned"].items()}
    return ModelInfo(**known)


def _to_sparse(
    name: str, values: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]
) -> dict[str, np.ndarray[Any, Any]]:
    """Return a tensor's kept values and the smaller of the two ways to say where they lie."""
    flat = mask.reshape(-1)
    bitmap = np.packbits(flat)
    positions = np.flatnonzero(flat).astype(_position_type(flat.size))
    where = {"positions": positions} if positions.nbytes < bitmap.nbytes else {"bitmap": bitmap}
    kept = values.reshape(-1)[flat]
    return {f"{name}::values": kept} | {f"{name}::{key}": array for key, array in where.items()}


def _position_type(size: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if size <= 2**16 else np.uint32)


def _to_dense(
    arrays: Mapping[str, np.ndarray[Any, Any]], pruned: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray[Any, Any]]:
    """Return every tensor in its own shape; raise ValueError or KeyError where the parts do not fit."""
    dense = {name: array for name, array in arrays.items() if "::" not in name}
    for name, shape in pruned.items():
        values = arrays[f"{name}::values"]
        mask = _mask_of(name, arrays, int(np.prod(shape)))
        if values.shape != (np.count_nonzero(mask),):
            raise ValueError(f"{name!r} has {values.size} values for {np.count_nonzero(mask)} kept weights")
        flat = np.zeros(mask.size, dtype=values.dtype)
        flat[mask] = values
        dense[name] = flat.reshape(shape)
    return dense


def _mask_of(name: str, arrays: Mapping[str, np.ndarray[Any, Any]], size: int) -> np.ndarray[Any, Any]:
    """Return the flat boolean mask of a pruned tensor of ``size`` weights."""
    if f"{name}::bitmap" in arrays:
        bitmap = arrays[f"{name}::bitmap"]
        if bitmap.dtype != np.uint8 or bitmap.shape != (-(-size // 8),):
            raise ValueError(f"{name!r} has a bitmap of {bitmap.size} bytes for {size} weights")
        return cast("np.ndarray[Any, Any]", np.unpackbits(bitmap, count=size).astype(bool))
    positions = arrays[f"{name}::positions"]
    if positions.size and int(positions.max()) >= size:
        raise ValueError(f"{name!r} has positions beyond its {size} weights")
    mask = np.zeros(size, dtype=bool)
    mask[positions] = True
    return mask
