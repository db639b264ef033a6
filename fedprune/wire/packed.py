"""A state as the tensors of a safetensors file, near the entropy of what it holds, and back again.

A state without pruned tensors is stored tensor by tensor under their names, for any tool to read. In a pruned
one names and shapes would take more room than weights, so everything is packed: the kept values of all
tensors, in ``state_dict`` order and row-major, are one array for each dtype (``float32``, ...), and the masks
of the pruned tensors, coded as on the wire, are the bytes of ``masks``. What is said of the model besides, as
JSON in the file's metadata, is for `fedprune.results.modelfile`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedprune.sparsity.masks import Masks
from fedprune.wire.bits import Reader, decode_vectors, encode_vectors
from fedprune.wire.layout import Layout

#: The key of the metadata. Files of the first format are written for models that are not pruned, and read
#: whatever they hold.
NAMED, PACKED = "fedprune-model-1", "fedprune-model-2"


def document_of(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what the metadata of a file says of its model; None where fedprune did not write it.

    Raises
    ------
    ValueError
        Where it is no JSON object.
    """
    text = metadata.get(PACKED) or metadata.get(NAMED)
    if text is None:
        return None
    document = json.loads(text)
    if not isinstance(document, dict):
        raise ValueError(f"{type(document).__name__} in place of an object")
    return document


def pack(
    state: Mapping[str, Tensor], masks: Masks, layout: Layout
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file, and what its document says of them.

    Parameters
    ----------
    state, masks
        Tensors by name, on the CPU, and which weights of them are kept: what is not stored reads back as 0.
    layout
        The model's.
    """
    if not masks:
        # Copies: safetensors refuses views of one storage.
        return {name: tensor.clone() for name, tensor in state.items()}, {"pruned": {}}
    layout.check(state)
    names = list(layout.shapes)
    said = {"pruned": sorted(map(names.index, masks)), "layout": _digest(layout)}
    return _pack(state, masks, layout), said


def unpack(
    tensors: Mapping[str, Tensor], document: Mapping[str, Any], layout: Callable[[], Layout]
) -> tuple[dict[str, Tensor], Masks]:
    """Return the state and the masks of a file.

    Parameters
    ----------
    tensors, document
        What it holds, and what its metadata says.
    layout
        Returns that of the model which was stored; called for a packed file alone.

    Raises
    ------
    ValueError, KeyError, IndexError, TypeError, RuntimeError, WireError
        Where they do not fit each other.
    """
    if "layout" not in document:
        return _from_named(tensors, document["pruned"])
    known = layout()
    if document["layout"] != _digest(known):
        raise ValueError("other names, shapes or dtypes of tensors")
    return _unpack(tensors, document["pruned"], known)


def _digest(layout: Layout) -> str:
    """Return eight hexadecimal digits by which a model is known to have the tensors it had."""
    text = repr([(name, tuple(shape), layout.dtypes[name]) for name, shape in layout.shapes.items()])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _pack(state: Mapping[str, Tensor], masks: Masks, layout: Layout) -> dict[str, Tensor]:
    """Return the kept values of all tensors of a dtype as one, and the code of the masks."""
    values: dict[str, list[Tensor]] = {}
    for name, dtype in layout.dtypes.items():
        kept = state[name][masks[name].cpu()] if name in masks else state[name].reshape(-1)
        values.setdefault(_name_of(dtype), []).append(kept.to(dtype))
    code = encode_vectors([masks[name].cpu().reshape(-1).numpy() for name in layout.shapes if name in masks])
    return {name: torch.cat(parts) for name, parts in values.items()} | {
        "masks": torch.frombuffer(bytearray(code), dtype=torch.uint8)
    }


def _unpack(
    tensors: Mapping[str, Tensor], pruned: Sequence[int], layout: Layout
) -> tuple[dict[str, Tensor], Masks]:
    """Undo `_pack`."""
    names = list(layout.shapes)
    shapes = {names[place]: layout.shapes[names[place]] for place in pruned}
    reader = Reader(tensors["masks"].numpy().tobytes())
    vectors = decode_vectors(reader, [shape.numel() for shape in shapes.values()])
    reader.end()
    masks = Masks(
        {
            name: torch.from_numpy(bits).reshape(shapes[name])
            for name, bits in zip(shapes, vectors, strict=True)
        }
    )
    state: dict[str, Tensor] = {}
    for dtype in dict.fromkeys(layout.dtypes.values()):
        members = [name for name, its in layout.dtypes.items() if its == dtype]
        sizes = [masks.kept.get(name, layout.shapes[name].numel()) for name in members]
        values = tensors[_name_of(dtype)]
        if values.dtype != dtype or values.shape != (sum(sizes),):
            raise ValueError(f"{values.numel()} values of {values.dtype}, expected {sum(sizes)} of {dtype}")
        for name, kept in zip(members, values.split_with_sizes(sizes), strict=True):
            if name in masks:
                state[name] = torch.zeros(layout.shapes[name], dtype=dtype)
                state[name][masks[name]] = kept
            else:
                state[name] = kept.reshape(layout.shapes[name])
    return {name: state[name] for name in names}, masks


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _from_named(
    tensors: Mapping[str, Tensor], pruned: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Tensor], Masks]:
    """Return the state and masks of a file of the first format.

    There a pruned tensor ``w`` is ``w::values`` and either ``w::bitmap`` (one bit a weight, the
    first in the highest bit) or ``w::positions`` (ascending).
    """
    state = {name: tensor for name, tensor in tensors.items() if "::" not in name}
    masks = {}
    for name, shape in pruned.items():
        size = int(np.prod(shape))
        if f"{name}::bitmap" in tensors:
            bits = np.unpackbits(tensors[f"{name}::bitmap"].numpy())
            if not size <= bits.size < size + 8:
                raise ValueError(f"{name!r} has a bitmap of {bits.size} bits for {size} weights")
            mask = torch.from_numpy(bits[:size].astype(bool))
        else:
            mask = torch.zeros(size, dtype=torch.bool)
            mask[torch.from_numpy(tensors[f"{name}::positions"].numpy().astype(np.int64))] = True
        values = tensors[f"{name}::values"]
        if values.shape != (int(mask.sum()),):
            raise ValueError(f"{name!r} has {values.numel()} values for {int(mask.sum())} kept weights")
        flat = torch.zeros(size, dtype=values.dtype)
        flat[mask] = values
        state[name], masks[name] = flat.reshape(*shape), mask.reshape(*shape)
    return state, Masks(masks)
