"""Reading messages that come from outside: every part is there and of its kind, or a ``WireError``.

The content of a message has up to three records: ``arrays``, ``config`` (what the server asks) and
``metrics`` (what a client measured).
"""

from __future__ import annotations

import math

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedprune.errors import NotFiniteError, WireError

#: The largest whole number that a message may hold; sums and means of such numbers stay in range.
LARGEST = 2**63 - 1


def arrays_of(content: RecordDict) -> ArrayRecord:
    """Return the record of arrays."""
    try:
        return content.array_records["arrays"]
    except KeyError:
        raise WireError("the message has no record 'arrays'") from None


def config_of(content: RecordDict, name: str = "config") -> ConfigRecord:
    """Return a record of settings or facts."""
    try:
        return content.config_records[name]
    except KeyError:
        raise WireError(f"the message has no record {name!r}") from None


def metrics_of(content: RecordDict) -> MetricRecord:
    """Return the record of metrics."""
    try:
        return content.metric_records["metrics"]
    except KeyError:
        raise WireError("the message has no record 'metrics'") from None


def whole(record: ConfigRecord | MetricRecord, key: str, *, least: int = 0) -> int:
    """Return a whole number from ``least`` to ``LARGEST``."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise WireError(f"{key!r} is {value!r}, expected a whole number from {least} to 2**63 - 1")
    return value


def real(record: ConfigRecord | MetricRecord, key: str) -> float:
    """Return a finite number."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(f"{key!r} is {value!r}, expected a finite number")
    if not math.isfinite(value):
        raise NotFiniteError(f"{key!r} is {value!r}, expected a finite number")
    return float(value)


def share(record: ConfigRecord | MetricRecord, key: str) -> float:
    """Return a number from 0 to 1."""
    value = real(record, key)
    if not 0 <= value <= 1:
        raise WireError(f"{key!r} is {value}, expected a number from 0 to 1")
    return value


def text(record: ConfigRecord, key: str) -> str:
    """Return a text."""
    value = record.get(key)
    if not isinstance(value, str):
        raise WireError(f"{key!r} is {value!r}, expected text")
    return value


def payload(record: ConfigRecord, key: str) -> bytes:
    """Return bytes."""
    value = record.get(key)
    if not isinstance(value, bytes):
        raise WireError(f"{key!r} is {type(value).__name__}, expected bytes")
    return value
