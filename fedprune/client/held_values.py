"""The values that a client was sent last, kept so that it can be told what has changed since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedprune.errors import TaskRefusedError
from fedprune.protocol.faults import Fault
from fedprune.protocol.held_values import BASE, VERSION, named
from fedprune.protocol.messages import payload, text
from fedprune.sparsity.masks import Masks
from fedprune.wire import Codec, StateCodec, encode_masks
from fedprune.wire.deltas import decode_delta
from fedprune.wire.values import VALUES, from_array, to_array

if TYPE_CHECKING:
    from fedprune.client.site import Site

_ABOUT, _RECORD = "held-values-version", "held-values"


class UnknownValuesError(TaskRefusedError):
    """The client does not hold the values that a message builds on: it must be sent all of them."""

    fault = Fault.UNKNOWN_MASK


def received_values(
    arrays: ArrayRecord, config: ConfigRecord, codec: Codec, state: RecordDict, site: Site
) -> Tensor:
    """Return the values that a message is about, and keep them where it names their version.

    Parameters
    ----------
    arrays, config : ArrayRecord, ConfigRecord
        The message's.
    codec : Codec
        How the values are laid out.
    state : RecordDict
        What the client keeps between messages.
    site : Site
        Where it is.

    Raises
    ------
    UnknownValuesError
        Where the client does not hold what the message builds on.
    WireError
        For what are no values of this layout.
    """
    version, base = named(config, VERSION), named(config, BASE)
    if not version:
        return codec.decode(arrays)
    if base:
        assert isinstance(codec, StateCodec)
        held = _held(base, codec, state, site)
        changes = from_array(VALUES, arrays[VALUES], "|u1", (-1,)).tobytes()
        values = decode_delta(changes, held, site.scenario.wire.values)
    else:
        values = codec.decode(arrays)
    about = {"version": version, "mask-version": codec.masks.version}
    state[_ABOUT] = ConfigRecord({**about, "masks": encode_masks(codec.masks)})
    state[_RECORD] = ArrayRecord({VALUES: to_array(values.numpy())})
    return values


def _held(version: str, codec: StateCodec, state: RecordDict, site: Site) -> Tensor:
    """Return the values of a version that are held, laid out as a codec has it."""
    about, record = state.config_records.get(_ABOUT), state.array_records.get(_RECORD)
    have = text(about, "version") if about is not None else "none"
    if about is None or record is None or have != version:
        raise UnknownValuesError(f"the client holds values {have}, the message builds on {version}")
    under = text(about, "mask-version")
    before = site.codec(site.masks(payload(about, "masks"), under) if under else Masks())
    held = torch.from_numpy(from_array(VALUES, record[VALUES], "<f4", (before.size,)).copy())
    return held if under == codec.masks.version else codec.taken_over(held, before)
