"""What RayGrid promises of messages and replies when all goes well."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import ray
from flwr.app import Array, ArrayRecord, Message, RecordDict

from engine.apps import make_obedient, scaled
from engine.conftest import NODES, WORKERS, echoes, message, metrics
from fedprune.engine.grid import CALLS_PER_WORKER, RayGrid
from fedprune.errors import RunError


def test_replies_come_in_the_order_of_the_messages_whichever_ends_first(grid):
    nodes = list(grid.get_node_ids())[:12]
    slow = nodes[0]
    messages = [message(slow, "sleep", seconds=0.5), *(message(node) for node in reversed(nodes[1:]))]
    replies = list(grid.send_and_receive(messages))
    assert [reply.metadata.src_node_id for reply in replies] == [slow, *reversed(nodes[1:])]
    ended = [metrics(reply)["ended"] for reply in replies]
    assert sum(end < ended[0] for end in ended) >= 6
    for sent, reply in zip(messages, replies, strict=True):
        assert reply.metadata.reply_to_message_id == sent.metadata.message_id != ""


@pytest.mark.parametrize("count", [10, 1000])
def test_messages_are_taken_only_as_workers_become_free(grid, count):
    """However many there are, and however slow the one that reads the replies is."""
    nodes = list(grid.get_node_ids())
    taken = 0

    def messages() -> Iterator[Message]:
        nonlocal taken
        for number in range(count):
            taken += 1
            # The first holds up all replies; the others are too long for several to make a call.
            yield message(nodes[number % NODES], "sleep", seconds=0.6 if number == 0 else 0.025)

    bound = 2 * CALLS_PER_WORKER * WORKERS
    replies = grid.send_and_receive(messages())
    assert taken == 0
    next(replies)
    assert WORKERS < taken <= bound
    for read in range(2, 8):
        time.sleep(0.05)
        next(replies)
        assert taken <= read - 1 + bound
    if count == 10:
        assert len(list(replies)) == 3
        assert taken == 10
    replies.close()


@pytest.mark.slow
def test_work_goes_on_after_someone_stops_reading(grid):
    nodes = list(grid.get_node_ids())
    for reply in grid.send_and_receive(message(node, "sleep", seconds=0.05) for node in nodes):
        assert reply.has_content()
        break
    del reply
    replies = list(grid.send_and_receive([message(node) for node in nodes]))
    assert all(echoes(reply, node) for reply, node in zip(replies, nodes, strict=True))


def test_two_exchanges_at_a_time_do_not_lock_each_other(grid):
    nodes = list(grid.get_node_ids())
    one = grid.send_and_receive([message(node, "sleep", seconds=0.02) for node in nodes[:20]])
    first = [next(one)]
    other = list(grid.send_and_receive([message(node) for node in nodes[20:]]))
    replies = [*first, *one, *other]
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    assert all(reply.has_content() for reply in replies)


def test_pushed_messages_are_pulled_as_they_are_answered(grid):
    """The way Flower's documentation shows: push, then poll until all replies are there."""
    nodes = list(grid.get_node_ids())[:12]
    slow = list(grid.push_messages([message(node, "sleep", seconds=0.3) for node in nodes[:4]]))
    quick = list(grid.push_messages([message(node) for node in nodes[4:]]))
    assert len({*slow, *quick}) == 12
    began = time.monotonic()
    early = list(grid.pull_messages(slow))
    assert time.monotonic() - began < 0.2
    assert len(early) < 4
    replies = early
    # What is sent in between waits for the workers, but gets its own replies and no others.
    between = list(grid.send_and_receive([message(node) for node in nodes]))
    assert all(echoes(reply, node) for reply, node in zip(between, nodes, strict=True))
    while len(replies) < 12 and time.monotonic() - began < 20:
        replies += grid.pull_messages([*slow, *quick])
        time.sleep(0.01)
    assert Counter(reply.metadata.reply_to_message_id for reply in replies) == Counter([*slow, *quick])
    assert all(echoes(reply, reply.metadata.src_node_id) for reply in replies)
    assert list(grid.pull_messages([*slow, *quick])) == []


def test_a_large_record_is_stored_once_for_all_who_receive_it(grid, monkeypatch):
    nodes = list(grid.get_node_ids())[:20]
    record = ArrayRecord({"w": Array(np.ones(2**21, np.float32)), "b": Array(np.ones(5, np.float32))})
    stored = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or put(value))
    # Each client empties what it received, which the next one in the same process must not see.
    replies = list(grid.send_and_receive([message(node, "sum", arrays=record) for node in nodes]))
    assert len(stored) == 1
    assert {metrics(reply)["sum"] for reply in replies} == {2**21 + 5}
    assert len({metrics(reply)["pid"] for reply in replies}) == WORKERS


def test_a_record_changed_in_place_between_two_exchanges_is_sent_as_it_is_now(grid):
    nodes = list(grid.get_node_ids())[:4]
    record = ArrayRecord({"w": Array(np.ones(10_000, np.float32))})
    for factor in (1, 2, 3):
        record["w"] = Array(np.full(10_000, factor, np.float32))
        replies = list(grid.send_and_receive([message(node, "sum", arrays=record) for node in nodes]))
        assert {metrics(reply)["sum"] for reply in replies} == {factor * 10_000}


def test_what_is_sent_arrives_and_comes_back_unchanged(grid):
    generator = np.random.default_rng(0)
    arrays = {
        "scalar": np.array(1.5),
        "empty": np.zeros((0, 3), np.float16),
        "big": generator.normal(size=(70, 300)).astype(np.float32),
        "whole": np.arange(-3, 3, dtype=np.int8),
        "bits": np.array([True, False]),
    }
    record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([message(node, arrays=record)])
    assert list(reply.content["arrays"]) == list(arrays)
    for name, value in arrays.items():
        back = reply.content["arrays"][name].numpy()
        assert (back.dtype, back.shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(back, value)


def test_a_message_without_records_and_no_messages_at_all(grid):
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([Message(RecordDict(), node, "train")])
    assert reply.has_content()
    assert list(grid.send_and_receive([])) == []


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_map_is_the_function_of_every_item_in_order(grid, count):
    items = [float(item) for item in range(count)]
    assert grid.map(scaled, 3.0, items) == [10 * 3.0 * item for item in items]


def test_a_closed_grid_says_so(shared_ray):
    with RayGrid(make_obedient, [{}], workers=1) as grid:
        replies = grid.send_and_receive([message(node) for node in grid.get_node_ids()])
    with pytest.raises(RunError, match="closed"):
        next(replies)
