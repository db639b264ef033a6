"""The client's side of compressed updates: what it keeps of them between messages, and where.

That is in Flower's state of the client, so it survives rounds in which the client is not asked, and in a
simulation a kill and a resume. How an update becomes bytes is for `fedprune.protocol.updates`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedprune import seeds
from fedprune.protocol.messages import payload, text, whole
from fedprune.protocol.updates import HELD, Kept, Updates
from fedprune.sparsity.masks import Masks
from fedprune.wire import StateCodec, encode_masks
from fedprune.wire.values import to_array

if TYPE_CHECKING:
    from fedprune.client.base import ClientTask, FitResult
    from fedprune.client.site import Site

_ABOUT, _TENSORS = "update", "update-tensors"
_RESIDUAL, _MEMORY = "residual", "memory:"


def encode_update(
    updates: Updates, site: Site, number: int, task: ClientTask, fit: FitResult, state: RecordDict
) -> ArrayRecord:
    """Return a client's update, and keep in its state what it needs for the next one.

    Parameters
    ----------
    updates : Updates
        How updates travel.
    site : Site
        Where the client is.
    number : int
        Its number.
    task, fit : ClientTask, FitResult
        What it was asked for, and what came of training.
    state : RecordDict
        What it keeps between messages.
    """
    codec, before = site.codec(fit.masks), site.codec(task.masks)
    sent = task.values if codec is before else codec.taken_over(task.values, before)
    kept = _kept(state, codec, site)
    held = whole(task.config, HELD) if HELD in task.config else 0
    seed = seeds.derive(site.scenario.seed, "update", task.round, number)
    record = updates.encode(fit.values, sent, codec, seed=seed, kept=kept, held=held)
    kept.round = task.round
    _keep(kept, state, fit.masks)
    return record


def _kept(state: RecordDict, codec: StateCodec, site: Site) -> Kept:
    """Return what a client has kept, laid out as a codec has it."""
    about, tensors = state.config_records.get(_ABOUT), state.array_records.get(_TENSORS)
    if about is None or tensors is None:
        return Kept()
    found = {name: _tensor(tensors, name) for name in tensors}
    residual = found.pop(_RESIDUAL, None)
    version = text(about, "mask-version")
    if residual is not None and version != codec.masks.version:
        masks = site.masks(payload(about, "masks"), version) if version else Masks()
        residual = codec.taken_over(residual, site.codec(masks))
    memory = {name.removeprefix(_MEMORY): tensor for name, tensor in found.items()}
    return Kept(whole(about, "round"), residual, memory)


def _keep(kept: Kept, state: RecordDict, masks: Masks) -> None:
    tensors = {f"{_MEMORY}{name}": tensor for name, tensor in kept.memory.items()}
    if kept.residual is not None:
        tensors[_RESIDUAL] = kept.residual
    if not tensors:
        return
    encoded = encode_masks(masks)
    state[_ABOUT] = ConfigRecord({"round": kept.round, "mask-version": masks.version, "masks": encoded})
    state[_TENSORS] = ArrayRecord({name: to_array(tensor.numpy()) for name, tensor in tensors.items()})


def _tensor(record: ArrayRecord, name: str) -> Tensor:
    return torch.from_numpy(record[name].numpy().copy())
