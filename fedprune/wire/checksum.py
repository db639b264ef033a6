"""A checksum over the arrays of a reply, so that no damage to them stays unnoticed.

A flipped bit of a float is a float. Whoever replies puts the CRC-32 of all arrays' bytes into the reply's
metrics; the server compares before it reads anything. It tells damage, not malice: who can change the
arrays can change the checksum. What metrics hold is checked value by value where it is read.
"""

from __future__ import annotations

import zlib

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedprune.errors import WireError

CHECKSUM = "checksum"


def checksum(content: RecordDict) -> int | None:
    """Return the CRC-32 of the names and bytes of all arrays, in whatever order; None without arrays.

    It has one more bit, always set, so that it takes as many bytes in a message whatever it is.
    """
    crc = None
    for key, record in sorted(content.items()):
        if isinstance(record, ArrayRecord):
            for name, array in sorted(record.items()):
                crc = zlib.crc32(array.data, zlib.crc32(f"{key}\0{name}\0".encode(), crc or 0))
    return None if crc is None else crc | 1 << 32


def add_checksum(content: RecordDict) -> None:
    """Put the checksum of a reply's arrays into its metrics, where it has arrays."""
    crc = checksum(content)
    if crc is not None:
        metrics = content.metric_records.setdefault("metrics", MetricRecord())
        metrics[CHECKSUM] = crc


def verify_checksum(content: RecordDict) -> None:
    """Raise a ``WireError`` for a reply whose arrays are not those that its checksum was made of."""
    crc = checksum(content)
    if crc is not None and content.metric_records.get("metrics", MetricRecord()).get(CHECKSUM) != crc:
        raise WireError("the reply is damaged: its arrays do not have its checksum")
