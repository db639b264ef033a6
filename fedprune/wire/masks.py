"""How masks travel: all of a model's masks as one payload of bytes.

A payload holds the masks themselves; or, where whole channels are pruned, which positions are kept along
each dimension of a tensor, each set of them once; or, for a receiver who holds earlier masks, what changed:
which of the kept weights were dropped and which of the pruned ones were grown, two sparse vectors a tensor.
The first byte tells which. The bits are coded by `fedprune.wire.bits`; how a payload is put into a
message is for `fedprune.wire.values`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import WireError
from fedprune.sparsity.masks import Masks
from fedprune.wire.bits import Bits, Reader, blob, decode_vectors, encode_vectors

_WHOLE, _CHANGES, _AXES = b"\x01", b"\x02", b"\x03"


def encode_masks(masks: Masks, held: Masks | None = None) -> bytes:
    """Return the payload of the masks, the shorter one where the receiver holds others.

    Parameters
    ----------
    masks : Masks
        What the receiver is to hold.
    held : Masks, optional
        What it holds now; masks of other names or shapes are of no use and are not used.

    Raises
    ------
    WireError
        For a tensor name with a null character.
    """
    names = blob(_encode_names(masks))
    if masks.axes is not None and masks.density < 1:
        whole = _AXES + names + _encode_axes(masks.axes, masks)
    else:
        whole = _WHOLE + names + encode_vectors(list(_bits(masks).values()))
    if held is None or not held or _shapes(masks) != _shapes(held):
        return whole
    changes = _CHANGES + bytes.fromhex(held.version) + encode_vectors(_changes(_bits(masks), _bits(held)))
    return min(changes, whole, key=len)


def decode_masks(
    payload: bytes, shapes: Mapping[str, torch.Size], held: Masks | None = None, *, version: str | None = None
) -> Masks:
    """Return the masks that a payload from outside holds.

    Parameters
    ----------
    payload : bytes
        What `encode_masks` made.
    shapes : Mapping[str, torch.Size]
        The tensors that may be pruned, at least; a layout's shapes.
    held : Masks, optional
        The masks held so far, which the payload may build on.
    version : str, optional
        The version that the masks must have.

    Raises
    ------
    WireError
        For a payload that is damaged, prunes what is not in ``shapes``, builds on masks that are
        not held, or holds masks of another version.
    """
    reader = Reader(payload)
    kind = reader.take(1)
    if kind == _WHOLE:
        names = _decode_names(reader, shapes)
        vectors = decode_vectors(reader, [shapes[name].numel() for name in names])
    elif kind == _AXES:
        names = _decode_names(reader, shapes)
        vectors = _decode_axes(reader, [shapes[name] for name in names])
    elif kind == _CHANGES:
        held = _check_held(held, reader.take(8).hex(), shapes)
        names = list(held)
        vectors = _decode_changes(reader, _bits(held))
    else:
        raise WireError(f"the masks' payload begins with {kind[0]}, expected 1 to 3")
    reader.end()
    masks = Masks(
        {
            name: torch.from_numpy(bits).reshape(shapes[name])
            for name, bits in zip(names, vectors, strict=True)
        }
    )
    if version is not None and masks.version != version:
        raise WireError(f"the masks have version {masks.version!r}, expected {version!r}")
    return masks


def _bits(masks: Masks) -> dict[str, Bits]:
    return {name: mask.cpu().reshape(-1).numpy() for name, mask in masks.items()}


def _shapes(masks: Masks) -> list[tuple[str, torch.Size]]:
    return [(name, mask.shape) for name, mask in masks.items()]


def _changes(bits: dict[str, Bits], held: dict[str, Bits]) -> list[Bits]:
    dropped = [~bits[name][before] for name, before in held.items()]
    grown = [bits[name][~before] for name, before in held.items()]
    return dropped + grown


def _decode_changes(reader: Reader, held: dict[str, Bits]) -> list[Bits]:
    kept = [int(np.count_nonzero(before)) for before in held.values()]
    pruned = [len(before) - count for before, count in zip(held.values(), kept, strict=True)]
    changes = decode_vectors(reader, kept + pruned)
    dropped, grown = changes[: len(held)], changes[len(held) :]
    vectors = []
    for before, off, on in zip(held.values(), dropped, grown, strict=True):
        bits = np.empty_like(before)
        bits[before] = ~off
        bits[~before] = on
        vectors.append(bits)
    return vectors


def _encode_axes(axes: Mapping[str, tuple[Tensor, ...]], masks: Masks) -> bytes:
    """Return the number of each dimension's set, 0 where all of it is kept, and the sets."""
    numbers: list[int] = []
    sets: dict[bytes, int] = {}
    vectors: list[Bits] = []
    for name, along in axes.items():
        for size, positions in zip(masks[name].shape, along, strict=True):
            bits = np.zeros(size, dtype=np.bool_)
            bits[positions.numpy()] = True
            if bits.all():
                numbers.append(0)
                continue
            number = sets.setdefault(bits.tobytes(), len(sets) + 1)
            if number > len(vectors):
                vectors.append(bits)
            numbers.append(number)
    return blob(np.array(numbers, dtype="<u2").tobytes()) + encode_vectors(vectors)


def _decode_axes(reader: Reader, shapes: list[torch.Size]) -> list[Bits]:
    sizes = [size for shape in shapes for size in shape]
    length = 2 * len(sizes)
    numbers = np.frombuffer(reader.blob(length, length), dtype="<u2").tolist()
    lengths: list[int] = []
    for number, size in zip(numbers, sizes, strict=True):
        if number == len(lengths) + 1:
            lengths.append(size)
        elif number > len(lengths) or (number and lengths[number - 1] != size):
            raise WireError(
                f"a dimension of size {size} has set {number} of {len(lengths)}, or one of another size"
            )
    sets = decode_vectors(reader, lengths)
    vectors, at = [], 0
    for shape in shapes:
        bits = np.ones(shape, dtype=np.bool_)
        for dim in range(len(shape)):
            if number := numbers[at + dim]:
                bits &= sets[number - 1].reshape([-1 if axis == dim else 1 for axis in range(len(shape))])
        at += len(shape)
        vectors.append(bits.reshape(-1))
    return vectors


def _check_held(held: Masks | None, version: str, shapes: Mapping[str, torch.Size]) -> Masks:
    if held is None or held.version != version:
        has = f"those of version {held.version!r}" if held else "none"
        raise WireError(f"the masks' payload builds on masks of version {version!r}, held are {has}")
    for name, mask in held.items():
        if shapes.get(name) != mask.shape:
            raise WireError(f"the held mask of {name!r} has shape {tuple(mask.shape)}, unlike the model")
    return held


def _encode_names(masks: Masks) -> bytes:
    for name in masks:
        if "\0" in name:
            raise WireError(f"tensor {name!r} has a null character in its name")
    return "".join(f"{name}\0" for name in masks).encode()


def _decode_names(reader: Reader, shapes: Mapping[str, torch.Size]) -> list[str]:
    longest = sum(len(name.encode()) + 1 for name in shapes)
    try:
        *names, rest = reader.blob(0, longest).decode().split("\0")
    except UnicodeDecodeError as error:
        raise WireError(f"the names of the masked tensors are not UTF-8: {error}") from error
    if rest or len(set(names)) != len(names):
        raise WireError(f"the names of the masked tensors are damaged: {names[:5]}")
    for name in names:
        if name not in shapes:
            raise WireError(f"a mask is for {name!r}, which is not a tensor of this model")
    return names
