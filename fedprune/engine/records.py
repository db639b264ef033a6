"""Flower records as plain containers and buffers, the form in which Ray carries them.

Ray shares a NumPy buffer between processes without pickling it, but copies ``bytes`` through
the pickle stream; Flower's arrays hold ``bytes``. So a record travels as plain Python values in
which every large payload is a NumPy view. What arrives is an ordinary Flower record again, with
``bytes`` of its own: no app can see, or change, memory that others share.

A client's state (Flower's ``Context.state``) is kept in Flower's own protobuf form, which is
canonical: equal states are equal bytes, so a change can be told by comparing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict  # pylint: disable=E0611

from fedprune.protocol.faults import Fault

#: Payloads below this size travel inside the pickle stream: a buffer of its own costs more.
INLINE_BYTES = 4096

PackedArrays = list[tuple[str, str, tuple[int, ...], str, Any]]


def pack_arrays(record: ArrayRecord) -> PackedArrays:
    """Turn an ``ArrayRecord`` into plain tuples; large payloads become NumPy views."""
    return [
        (
            name,
            array.dtype,
            array.shape,
            array.stype,
            array.data if len(array.data) < INLINE_BYTES else np.frombuffer(array.data, dtype=np.uint8),
        )
        for name, array in record.items()
    ]


def unpack_arrays(packed: PackedArrays) -> dict[str, Array]:
    """Turn the tuples of ``pack_arrays`` into Flower arrays with ``bytes`` of their own."""
    return {
        name: Array(dtype, shape, stype, data if isinstance(data, bytes) else data.tobytes())
        for name, dtype, shape, stype, data in packed
    }


def pack_values(record: ConfigRecord | MetricRecord) -> tuple[str, dict[str, Any]]:
    """Turn a config or metric record into its kind and a plain dictionary."""
    return ("config" if isinstance(record, ConfigRecord) else "metrics", dict(record.items()))


def unpack_values(kind: str, values: dict[str, Any]) -> ConfigRecord | MetricRecord:
    """Undo ``pack_values``."""
    return ConfigRecord(values) if kind == "config" else MetricRecord(values)


def pack_content(content: RecordDict) -> list[tuple[str, str, Any]]:
    """Turn the content of a message into plain values: (key, kind, packed record) each."""
    return [
        (key, "arrays", pack_arrays(record))
        if isinstance(record, ArrayRecord)
        else (key, *pack_values(record))
        for key, record in content.items()
    ]


def unpack_content(packed: list[tuple[str, str, Any]]) -> RecordDict:
    """Undo ``pack_content``."""
    return RecordDict(
        {
            key: ArrayRecord(unpack_arrays(record)) if kind == "arrays" else unpack_values(kind, record)
            for key, kind, record in packed
        }
    )


def pack_state(state: RecordDict) -> bytes:
    """Serialize a client's state; equal states give equal bytes, an empty one none."""
    if not state:
        return b""
    packed: bytes = recorddict_to_proto(state).SerializeToString(deterministic=True)
    return packed


def unpack_state(packed: bytes) -> RecordDict:
    """Undo ``pack_state``."""
    return recorddict_from_proto(ProtoRecordDict.FromString(packed)) if packed else RecordDict()


def shapes_of(content: RecordDict) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of a message by name."""
    return {
        name: tuple(array.shape)
        for record in content.array_records.values()
        for name, array in record.items()
    }


def content_fault(content: RecordDict, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Fault, str] | None:
    """Return why the arrays of a reply are unusable, as fault and reason; None if they are usable.

    Every array must be what it says it is and hold finite numbers. One of a name in ``shapes``,
    those that were sent, must have that shape: strategies that average arrays by name rely on it.
    """
    for record in content.array_records.values():
        for name, array in record.items():
            try:
                values = array.numpy()
            except Exception as error:  # NumPy's reader fails in many ways on what is no array.
                return Fault.UNREADABLE, f"array {name!r} cannot be read: {error}"
            if tuple(values.shape) != tuple(array.shape) or str(values.dtype) != array.dtype:
                said, held = f"{array.dtype}{list(array.shape)}", f"{values.dtype}{list(values.shape)}"
                return Fault.UNREADABLE, f"array {name!r} says {said} but holds {held}"
            if name in shapes and values.shape != shapes[name]:
                found, expected = list(values.shape), list(shapes[name])
                return Fault.WRONG_SHAPE, f"array {name!r} has shape {found}, expected {expected}"
            if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
                return Fault.NOT_FINITE, f"array {name!r} holds values that are not finite"
    for metrics in content.metric_records.values():
        for name, value in metrics.items():
            numbers = value if isinstance(value, list) else [value]
            if not all(math.isfinite(number) for number in numbers):
                return Fault.NOT_FINITE, f"metric {name!r} is not finite"
    return None
