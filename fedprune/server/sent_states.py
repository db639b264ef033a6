"""The last few states that the server has sent under the global masks, and what has changed between them.

Kept as values: as many floats a state as weights are kept. What each client holds is for
`fedprune.server.exchange`, how a client is told is in `fedprune.protocol.held_values`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from torch import Tensor

from fedprune.protocol.held_values import version_of
from fedprune.sparsity.masks import Masks
from fedprune.wire import StateCodec, ValueType, decode_masks, encode_masks
from fedprune.wire.deltas import encode_delta
from fedprune.wire.values import VALUES, to_array


class SentStates:
    """Remembers states by their version.

    Parameters
    ----------
    count : int
        How many, besides the newest.
    kind : "float32" | "float16" | "bfloat16"
        The format in which values travel.
    """

    def __init__(self, count: int, kind: ValueType) -> None:
        self._count = count
        self._kind = kind
        self._states: OrderedDict[str, tuple[StateCodec, Tensor]] = OrderedDict()
        self._delta = lru_cache(maxsize=count)(self._changes)

    def add(self, record: ArrayRecord, codec: StateCodec) -> str:
        """Remember the state in a record; return its version."""
        version = version_of(record, codec.masks)
        if version not in self._states:
            self._states[version] = (codec, codec.decode(record))
        self._states.move_to_end(version)
        while len(self._states) > self._count + 1:  # This one, and those that clients may hold.
            self._states.popitem(last=False)
        return version

    def delta(self, version: str, base: str) -> ArrayRecord | None:
        """Return what has changed from one state to another; None where that is not smaller, or not known."""
        return self._delta(version, base) if base in self._states else None

    def whole(self, version: str) -> ArrayRecord:
        """Return a state that is remembered as it travels."""
        codec, values = self._states[version]
        return codec.encode(values)

    def _changes(self, version: str, base: str) -> ArrayRecord | None:
        (codec, values), (before, held) = self._states[version], self._states[base]
        if before.masks != codec.masks:
            held = codec.taken_over(held, before)
        payload = encode_delta(values, held, self._kind)
        if len(payload) >= codec.itemsize * codec.size:
            return None
        return ArrayRecord({VALUES: to_array(np.frombuffer(payload, dtype=np.uint8))})

    def state_dict(self) -> dict[str, Any]:
        """Return the states, for a checkpoint."""
        return {
            version: {"masks": encode_masks(codec.masks), "values": values}
            for version, (codec, values) in self._states.items()
        }

    def load_state_dict(
        self, state: Mapping[str, Any], codec_of: Callable[[Masks], Any], shapes: Mapping[str, Any]
    ) -> None:
        """Restore what ``state_dict`` returned; ``codec_of`` returns how values travel under masks."""
        self._states = OrderedDict(
            (version, (codec_of(decode_masks(each["masks"], shapes)), each["values"]))
            for version, each in state.items()
        )
