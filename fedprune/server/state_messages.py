"""The global state as message content: values, and masks for the clients that do not hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedprune.protocol.frozen import RECORD
from fedprune.protocol.held_values import BASE, VERSION
from fedprune.protocol.supermasks import Supermasks
from fedprune.server.exchange import Exchange
from fedprune.server.global_model import GlobalModel
from fedprune.server.sent_states import SentStates
from fedprune.sparsity.masks import Masks
from fedprune.wire import CODEC, StateCodec


class Holds(NamedTuple):
    """What a client holds of what a message names: its masks, and the frozen values."""

    masks: bool
    frozen: bool


def state_contents(
    model: GlobalModel,
    exchange: Exchange,
    masks_for: Callable[[int], Masks],
    *,
    server_round: int,
    config: Mapping[str, Any],
    settings: Supermasks | None,
    arrays: ArrayRecord | None = None,
    states: SentStates | None = None,
) -> Callable[[int], RecordDict]:
    """Return a function from client number to content: the global state, masks and frozen values if needed.

    All clients under the global masks share one record of values (two, where some need the
    masks), so that the engine carries it once.

    Parameters
    ----------
    model : GlobalModel
        Whose state is sent.
    exchange : Exchange
        Which knows the masks and frozen values that clients hold.
    masks_for : Callable[[int], Masks]
        The masks under which a client, by number, is sent values.
    server_round : int
        The round.
    config : Mapping[str, Any]
        What the messages say besides round, masks and codec.
    settings : Supermasks, optional
        How clients learn supermasks, where they do.
    arrays : ArrayRecord, optional
        The state under the global masks, where it is encoded already.
    states : SentStates, optional
        The states that clients may hold: one under the global masks is sent what has changed since.
    """
    frozen = model.frozen_values
    shared_masks = model.masks
    shared_arrays = model.encode(server_round) if arrays is None else arrays

    version = ""
    if states is not None and isinstance(model.codec, StateCodec):
        version = states.add(shared_arrays, model.codec)

    def content_of(masks: Masks, values: ArrayRecord, holds: Holds, **versions: str) -> RecordDict:
        own: dict[str, Any] = {"round": server_round, "mask-version": masks.version, "codec": CODEC}
        own |= frozen.config() | versions
        if settings is not None:
            own |= settings.config()
        with_all = values if holds.masks else exchange.with_masks(values, masks)
        content = RecordDict({"arrays": with_all, "config": ConfigRecord({**config, **own})})
        if not holds.frozen:
            content[RECORD] = frozen.record
        return content

    @lru_cache(maxsize=16)
    def shared(holds: Holds, held: str) -> RecordDict:
        delta = states.delta(version, held) if states is not None and version else None
        if delta is not None:
            return content_of(shared_masks, delta, holds, **{VERSION: version, BASE: held})
        return content_of(shared_masks, shared_arrays, holds, **({VERSION: version} if version else {}))

    def content(number: int) -> RecordDict:
        masks = masks_for(number)
        holds = Holds(exchange.holds(number, masks), exchange.holds_frozen(number, frozen))
        if masks == shared_masks:
            return shared(holds, exchange.held_values(number) if version else "")
        return content_of(masks, model.encode(server_round, model.codec_of(masks)), holds)

    return content
