"""A worker without Ray around it, and the forms in which records and states travel."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.apps import make_obedient
from engine.conftest import message
from fedprune.engine.records import (
    INLINE_BYTES,
    content_fault,
    pack_content,
    pack_state,
    shapes_of,
    unpack_content,
    unpack_state,
)
from fedprune.engine.worker import Outcome, Task, Worker
from fedprune.protocol.faults import CODES, Fault
from fedprune.wire import payload_bytes

NODE = 7


@pytest.fixture
def run() -> Callable[..., Outcome]:
    """Run one message in a worker of this process, from a given state."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
    worker = Worker(make_obedient, 1, {}, True, inf, ())

    def run_one(act: str, state: bytes = b"", **config: Any) -> Outcome:
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        sent = message(NODE, act, **config)
        task = Task(sent.metadata, pack_content(sent.content), {"partition-id": 0}, state)
        (outcome,), seconds = worker.run([task], [])
        assert seconds >= 0
        return outcome

    return run_one


def test_only_a_state_that_changed_travels_back(run):
    first = run("count")
    assert unpack_state(first.state)["seen"] == ConfigRecord({"count": 1})
    assert run("echo", first.state).state is None
    assert run("echo").state is None
    assert run("remember").state is not None
    # The same thing stored again is no change.
    assert run("remember", run("remember").state).state is None
    assert unpack_state(run("count", first.state).state)["seen"] == ConfigRecord({"count": 2})


def test_a_task_that_raises_is_an_outcome_and_leaves_the_state(run):
    outcome = run("raise", run("count").state)
    assert (outcome.content, outcome.state) == (None, None)
    assert outcome.reason == "LookupError: no such thing"


def test_a_reply_that_is_too_large_stays_in_the_worker_but_the_state_travels():
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
    sent = message(NODE, "remember")
    task = Task(sent.metadata, pack_content(sent.content), {"partition-id": 0}, b"")
    size = payload_bytes(sent.content)
    codes = {}
    for largest in (100, 10 * size):
        (outcome,), _ = Worker(make_obedient, 1, {}, True, largest, ()).run([task], [])
        codes[largest], state = outcome.code, outcome.state
        assert unpack_state(state)["mask"]
    assert codes == {100: CODES[Fault.TOO_LARGE], 10 * size: 0}


scalars = st.integers(-(2**62), 2**62) | st.floats(allow_nan=False)
arrays = st.builds(
    lambda dtype, shape, fill: Array(np.full(shape, fill, dtype)),
    st.sampled_from(["float32", "float16", "int8", "uint8", "int64", "bool"]),
    st.lists(st.integers(0, 5), max_size=3).map(tuple) | st.just((INLINE_BYTES,)),
    st.integers(0, 100),
)
records = st.one_of(
    st.dictionaries(st.text(max_size=4), arrays, max_size=3).map(ArrayRecord),
    st.dictionaries(st.text(max_size=4), scalars | st.lists(st.floats(), max_size=2), max_size=3).map(
        MetricRecord
    ),
    st.dictionaries(
        st.text(max_size=4), scalars | st.booleans() | st.text(max_size=3) | st.binary(max_size=9), max_size=3
    ).map(ConfigRecord),
)
contents = st.dictionaries(st.text(max_size=4), records, max_size=3).map(RecordDict)


def same(one: RecordDict, other: RecordDict) -> bool:
    """Compare by what Flower would send; NaN equals NaN there."""
    return list(one) == list(other) and pack_state(one) == pack_state(other)


@given(contents)
def test_content_and_state_come_back_as_they_were(content):
    assert same(unpack_content(pack_content(content)), content)
    assert same(unpack_state(pack_state(content)), content)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # NumPy parses the header as Python.
@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(0, 140), st.booleans())
def test_no_bytes_make_the_check_of_a_reply_fail(garbage, position, splice):
    """Whatever a client sends as an array: the check says that it is unusable, or it is finite."""
    good = Array(np.arange(4, dtype=np.float32)).data
    data = good[:position] + garbage + good[position + len(garbage) :] if splice else garbage
    content = RecordDict({"arrays": ArrayRecord({"w": Array("float32", (4,), "numpy.ndarray", data)})})
    fault = content_fault(content, {})
    if fault is None:
        values = content["arrays"]["w"].numpy()
        assert values.shape == (4,)
        assert np.isfinite(values).all()
    else:
        assert "'w'" in fault[1]


def test_a_reply_is_judged_by_the_shapes_that_were_sent():
    sent = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros((2, 3)))}), "config": ConfigRecord({})})
    assert shapes_of(sent) == {"w": (2, 3)}

    def reply(shape: tuple[int, ...], name: str) -> RecordDict:
        return RecordDict({"other": ArrayRecord({name: Array(np.zeros(shape))})})

    assert content_fault(reply((2, 3), "w"), shapes_of(sent)) is None
    assert content_fault(reply((6,), "new"), shapes_of(sent)) is None
    assert content_fault(reply((6,), "w"), {}) is None
    kind, reason = content_fault(reply((6,), "w"), shapes_of(sent))
    assert (kind, "shape [6], expected [2, 3]" in reason) == (Fault.WRONG_SHAPE, True)
