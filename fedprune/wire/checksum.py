"""A checksum over the arrays of a reply, so that no damage to them stays unnoticed.

A flipped bit of a float is a float. Whoever replies puts the CRC-32 of all arrays' bytes into the reply's
metrics; the server compares before it reads anything. It tells damage, not malice: who can change the
arrays can change the checksum. What metrics hold is checked value by value where it is read.
"""

from __future__ import annotations

import zlib

from flwr.app import MetricRecord, RecordDict

from fedprune.errors import WireError

CHECKSUM = "checksum"


def checksum(content: RecordDict) -> int:
    """Return the CRC-32 of the names and bytes of all arrays, whatever order they are in."""
    crc = 0
    for key in sorted(content.array_records):
        record = content.array_records[key]
        for name in sorted(record):
            crc = zlib.crc32(record[name].data, zlib.crc32(f"{key}\0{name}\0".encode(), crc))
    return crc


def add_checksum(content: RecordDict) -> None:
    """Put the checksum of a reply's arrays into its metrics, where it has arrays."""
    if content.array_records:
        metrics = content.metric_records.setdefault("metrics", MetricRecord())
        metrics[CHECKSUM] = checksum(content)


def verify_checksum(content: RecordDict) -> None:
    """Raise a ``WireError`` for a reply whose arrays are not those that its checksum was made of."""
    if content.array_records:
        said = content.metric_records.get("metrics", MetricRecord()).get(CHECKSUM)
        found = checksum(content)
        if said != found:
            raise WireError(f"the reply is damaged: its arrays have checksum {found}, it says {said}")
