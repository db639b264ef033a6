"""content_bytes against the objects that Flower itself serializes."""

from __future__ import annotations

import sys
import timeit

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st

from fedprune.wire import content_bytes, size

CHUNK = 200  # bytes; real chunks have 5 MiB

names = st.sampled_from(["arrays", "x", "", "größe", 'a\n"b"', "名前" * 30]) | st.text(max_size=200)
integers = st.integers(-(2**63), 2**63 - 1)
unsigned = st.integers(0, 2**64 - 1)  # Flower writes lists with a value beyond 2**63 otherwise
floats = st.floats() | st.sampled_from([0.0, -0.0, 1.0])
settings_values = st.one_of(
    *[kind | st.lists(kind, max_size=5) for kind in (st.booleans(), integers, unsigned, floats)],
    *[kind | st.lists(kind, max_size=5) for kind in (st.text(max_size=150), st.binary(max_size=150))],
)
metric_values = st.one_of(*[kind | st.lists(kind, max_size=20) for kind in (integers, unsigned, floats)])
arrays = st.builds(
    lambda dtype, count, fill, last: Array(np.append(np.full(count, fill, dtype), dtype(last))),
    st.sampled_from([np.float32, np.int8, np.uint16]),
    st.sampled_from([0, 1, 100, 250, 600]),
    st.integers(0, 1),
    st.integers(0, 1),
)
records = st.one_of(
    st.dictionaries(names, arrays, max_size=4).map(ArrayRecord),
    st.dictionaries(names, settings_values, max_size=5).map(ConfigRecord),
    st.dictionaries(names, metric_values, max_size=5).map(MetricRecord),
)


def flower_bytes(content: RecordDict) -> int:
    return sum(len(part.deflate()) for part in get_all_nested_objects(content).values())


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    array_module = sys.modules[Array.__module__]
    monkeypatch.setattr(array_module, "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(size, "CHUNK_SIZE", CHUNK)


@pytest.mark.usefixtures("small_chunks")
def test_it_is_what_flower_serializes() -> None:
    multi_chunk = 0

    @given(st.dictionaries(names, records, max_size=5).map(RecordDict))
    def check(content: RecordDict) -> None:
        nonlocal multi_chunk
        objects = get_all_nested_objects(content).values()
        multi_chunk += any(isinstance(part, Array) and len(part.slice_array()) > 1 for part in objects)
        assert content_bytes(content) == sum(len(part.deflate()) for part in objects)

    check()
    assert multi_chunk


@pytest.mark.usefixtures("small_chunks")
def test_what_is_the_same_counts_once() -> None:
    zeros = Array(np.zeros(1000, np.uint8))
    half = Array(np.append(np.zeros(500, np.uint8), np.ones(500, np.uint8)))
    content = RecordDict(
        {
            "one": ArrayRecord({"a": zeros, "b": Array(np.zeros(1000, np.uint8)), "c": half}),
            "two": ArrayRecord({"a": zeros, "b": zeros, "c": half}),
            "three": ArrayRecord({"a": half}),
            "config": ConfigRecord({"flag": 1}),
            "same": ConfigRecord({"flag": 1}),
            "unlike": ConfigRecord({"flag": True}),
            "metrics": MetricRecord({"flag": 1}),
            "zero": MetricRecord({"loss": 0.0}),
            "negative zero": MetricRecord({"loss": -0.0}),
        }
    )
    assert content_bytes(content) == flower_bytes(content)
    assert content_bytes(content) < sum(len(array.data) for array in (zeros, half)) + 3000


def test_real_chunks_count_as_flower_counts_them() -> None:
    values = np.random.default_rng(0).standard_normal(3_000_000, dtype=np.float32)
    for data in (values, np.zeros_like(values)):
        content = RecordDict({"arrays": ArrayRecord([data])})
        assert content_bytes(content) == flower_bytes(content)


def test_it_does_not_read_the_data() -> None:
    """Counting a hundred times the data takes nowhere near a hundred times as long."""

    def seconds(count: int) -> float:
        values = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
        content = RecordDict({"arrays": ArrayRecord([values])})
        return min(timeit.repeat(lambda: content_bytes(content), number=20, repeat=5))

    assert seconds(3_000_000) < 20 * seconds(30_000)
