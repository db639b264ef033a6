"""Which values a message takes a client to hold, where it has what has changed since in place of all of them.

With ``wire.history`` a message names the version of the values that it is about, and the client keeps them.
The server, which remembers the last few states that it has sent, sends a client that holds one of them the
difference (`fedprune.wire.deltas`) where that is smaller, and names the version that it builds on. A client
that does not hold this one says so, and is sent all values. What a client has is the same either way.
"""

from __future__ import annotations

import hashlib

from flwr.app import ArrayRecord, ConfigRecord

from fedprune.protocol.messages import text
from fedprune.sparsity.masks import Masks
from fedprune.wire.values import VALUES

VERSION, BASE = "values-version", "values-base"


def version_of(record: ArrayRecord, masks: Masks) -> str:
    """Return sixteen hexadecimal digits of the values in a record and the masks that they are under."""
    digest = hashlib.blake2b(masks.version.encode(), digest_size=8)
    digest.update(record[VALUES].data)
    return digest.hexdigest()


def named(config: ConfigRecord, key: str) -> str:
    """Return the version that a message names as its own or as its base; "" where it names none."""
    return text(config, key) if key in config else ""
