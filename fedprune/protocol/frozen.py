"""Frozen values, which a client is sent once: how they travel, and which a message takes a client to hold.

A message names the version of the frozen values that belong to its model, and has them with it for a client
that is not known to hold them. Which parts are frozen is for `fedprune.sparsity.frozen`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedprune.protocol.messages import text
from fedprune.sparsity.masks import Masks
from fedprune.wire import Layout, StateCodec

RECORD = "frozen"
"""The record of a message that holds the values."""

_VERSION = "frozen-version"


@dataclass(frozen=True, eq=False)
class FrozenValues:
    """The frozen part of a state as it travels: float32, since it does so once.

    Parameters
    ----------
    version : str
        Sixteen hexadecimal digits of its names, shapes and values; "" where nothing is frozen.
    record : ArrayRecord
        The values.
    """

    version: str
    record: ArrayRecord

    @classmethod
    def of(cls, layout: Layout, state: Mapping[str, Tensor]) -> FrozenValues:
        """Return the frozen part of a state.

        Parameters
        ----------
        layout : Layout
            Of the frozen entries.
        state : Mapping[str, Tensor]
            What has them, among others.
        """
        if not layout.shapes:
            return cls("", ArrayRecord())
        codec = StateCodec(layout, Masks())
        record = codec.encode(codec.flatten(layout.select(state)))
        digest = hashlib.blake2b(repr(layout.shapes).encode(), digest_size=8)
        for array in record.values():
            digest.update(array.data)
        return cls(digest.hexdigest(), record)

    def config(self) -> dict[str, str]:
        """Return what a message's config says of them."""
        return {_VERSION: self.version} if self.version else {}


def version_of(config: ConfigRecord) -> str:
    """Return the version that a message names; "" where it names none."""
    return text(config, _VERSION) if _VERSION in config else ""


def read_frozen(content: RecordDict, layout: Layout) -> dict[str, Tensor] | None:
    """Return the frozen values that a message has with it, by name; None where it has none.

    Raises
    ------
    WireError
        For values that are not those of the layout.
    """
    record = content.array_records.get(RECORD)
    if record is None:
        return None
    codec = StateCodec(layout, Masks())
    return codec.unflatten(codec.decode(record))
