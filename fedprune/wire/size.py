"""How many bytes a message's content is, on the wire and in memory, and how many it may be.

Flower sends a content as a tree of objects: records, their arrays, the arrays' chunks. It writes
("deflates") each as a short header and a body, names it by a hash, and sends what has the same name
once. The lengths follow from names, shapes and lengths of data, so no data is copied or hashed here;
only where two objects may be the same are they compared. Nothing is remembered between two calls.
In memory they all count: a content of equal chunks can be short on the wire and fill a memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from json.encoder import encode_basestring_ascii
from typing import TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as CHUNK_SIZE
from flwr.common.constant import INT64_MAX_VALUE

from fedprune.errors import TooLargeError
from fedprune.wire.layout import Layout

_ID_LENGTH = 64  # hexadecimal digits of a SHA-256
_SAMPLE = 64  # bytes at the end of a chunk that tell most chunks of equal length apart

T = TypeVar("T")


def content_bytes(content: RecordDict) -> int:
    """Return the length in bytes of a message's content as Flower 1.41 puts it on the wire.

    It is the sum of ``len(part.deflate())`` over the distinct objects of the content's tree. The
    frames of the transport (HTTP, TLS) and the message's own metadata are not counted.
    """
    tree = _Tree()
    tree.add_references("RecordDict", [(name, tree.add_record(record)) for name, record in content.items()])
    return tree.length


def payload_bytes(content: RecordDict) -> int:
    """Return how many bytes the values of a content have in memory: arrays, texts, bytes, numbers of 8."""
    return sum(
        sum(len(array.data) for array in record.values())
        if isinstance(record, ArrayRecord)
        else sum(map(_value_bytes, record.values()))
        for record in content.values()
    )


def largest_reply(layout: Layout) -> int:
    """Return the bytes that a reply may have: eight dense states in float32, and a MiB for all else.

    The largest good ones hold a state, a report as long (importance), or two numbers for each pruned
    weight (growth), and a mask: less than four states.
    """
    return 8 * 4 * sum(shape.numel() for shape in layout.shapes.values()) + 2**20


def check_size(content: RecordDict, largest: int) -> None:
    """Raise a ``TooLargeError`` for a content with more bytes in memory than ``largest``."""
    if (size := payload_bytes(content)) > largest:
        raise TooLargeError(f"the reply has {size} bytes, expected at most {largest}")


def _value_bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_value_bytes, value))
    return len(value) if isinstance(value, str | bytes) else 8


class _Tree:
    """The distinct objects of one content, each with a number, and their length together."""

    def __init__(self) -> None:
        self.length = 0
        self._numbers: dict[Hashable, int] = {}
        self._chunks: dict[Hashable, list[memoryview]] = {}
        self._settings: dict[Hashable, list[ConfigRecord | MetricRecord]] = {}

    def add_record(self, record: ArrayRecord | ConfigRecord | MetricRecord) -> int:
        """Add a record and all that is in it; return its number."""
        if isinstance(record, ArrayRecord):
            arrays = [(name, self._add_array(array)) for name, array in record.items()]
            return self.add_references("ArrayRecord", arrays)
        return self._add_settings(record)

    def add_references(self, kind: str, entries: list[tuple[str, int]]) -> int:
        """Add an object that names others; its body is a JSON object from names to ids."""
        names = sum(len(encode_basestring_ascii(name)) for name, _ in entries)
        # {"name": "id", "name": "id"}: four characters between the parts of an entry, two between entries
        body = 2 + names + (_ID_LENGTH + 4) * len(entries) + 2 * max(len(entries) - 1, 0)
        return self._number((kind, *entries), kind, len({number for _, number in entries}), body)

    def _add_array(self, array: Array) -> int:
        data = memoryview(array.data)
        chunks = [self._add_chunk(data[at : at + CHUNK_SIZE]) for at in range(0, len(data), CHUNK_SIZE)]
        distinct = list(dict.fromkeys(chunks))
        description = json.dumps(
            {
                "dtype": array.dtype,
                "shape": array.shape,
                "stype": array.stype,
                "arraychunk_ids": [distinct.index(chunk) for chunk in chunks],
            }
        )
        return self._number((description, *distinct), "Array", len(distinct), len(description))

    def _add_chunk(self, chunk: memoryview) -> int:
        sample = (len(chunk), chunk[-_SAMPLE:].tobytes())
        index = _find_or_append(self._chunks.setdefault(sample, []), chunk, _same_bytes)
        return self._number((sample, index), "ArrayChunk", 0, len(chunk))

    def _add_settings(self, record: ConfigRecord | MetricRecord) -> int:
        kind = type(record).__qualname__
        body = sum(_item_length(name, value) for name, value in record.items())
        index = _find_or_append(self._settings.setdefault((kind, body), []), record, _same_settings)
        return self._number((kind, body, index), kind, 0, body)

    def _number(self, key: Hashable, kind: str, children: int, body: int) -> int:
        """Return the number of the object that ``key`` describes; its length counts once.

        It has a header "<kind> <ids of its children> <length of its body>", a null byte and a body.
        """
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._numbers)
            ids = (_ID_LENGTH + 1) * children - 1 if children else 0
            self.length += len(kind) + 1 + ids + 1 + len(str(body)) + 1 + body
        return number


def _find_or_append(alike: list[T], new: T, same: Callable[[T, T], bool]) -> int:
    """Return the index of the first element that is the same, which is the new one if none was."""
    for index, old in enumerate(alike):
        if same(old, new):
            return index
    alike.append(new)
    return len(alike) - 1


def _same_bytes(one: memoryview, other: memoryview) -> bool:
    return np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))


def _same_settings(one: ConfigRecord | MetricRecord, other: ConfigRecord | MetricRecord) -> bool:
    return one.deflate() == other.deflate()  # not ==, for which 1 and 1.0 are the same


def _item_length(name: str, value: object) -> int:
    """Return the length of one entry of a config or metric record, a protobuf message in a message.

    Every field has a tag of one byte, those of lists one of two; see Flower's ``recorddict.proto``.
    """
    key = 1 + _counted(len(name.encode())) if name else 0
    if not isinstance(value, list):
        content = 1 + _scalar_length(value)
    elif value and isinstance(value[0], str | bytes):
        content = 2 + _counted(sum(1 + _scalar_length(item) for item in value))
    else:  # numbers are packed: one tag for all
        unsigned = any(item > INT64_MAX_VALUE for item in value)
        packed = sum(_scalar_length(item, unsigned) for item in value)
        content = 2 + _counted(1 + _counted(packed) if packed else 0)
    return 1 + _counted(key + 1 + _counted(content))


def _scalar_length(value: object, unsigned: bool = False) -> int:
    if isinstance(value, float):
        return 8
    if isinstance(value, int):  # a bool is one, of one byte
        if value <= INT64_MAX_VALUE and not unsigned and not isinstance(value, bool):
            value = 2 * value if value >= 0 else -2 * value - 1  # "zigzag"
        return _varint_length(value)
    return _counted(len(value.encode() if isinstance(value, str) else cast(bytes, value)))


def _counted(length: int) -> int:
    """Return the length of ``length`` bytes behind their number."""
    return _varint_length(length) + length


def _varint_length(value: int) -> int:
    return (value.bit_length() + 6) // 7 or 1
