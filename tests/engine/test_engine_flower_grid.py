"""`FlowerGrid` makes of Flower's grid one that answers for nodes which cannot."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedprune.engine import flower_grid
from fedprune.engine.flower_grid import FlowerGrid
from fedprune.protocol.faults import Fault, fault_of


class Nodes(Grid):
    """Three nodes behind a SuperLink: what each of them answers, and after how many questions."""

    def __init__(self, after: dict[int, int], *, missed: Iterable[int] = (), unknown: Iterable[int] = ()):
        self.after, self.missed, self.unknown = after, set(missed), set(unknown)
        self.sent: dict[str, Message] = {}
        self.activated = dict.fromkeys(after, "monday")
        self.pulls = 0
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID

    def push_messages(self, messages):
        [message] = messages  # One at a time: a round's messages are never all in memory.
        if message.metadata.dst_node_id in self.unknown:
            return [None]
        message.metadata.__dict__["_message_id"] = str(len(self.sent))
        self.sent[message.metadata.message_id] = message
        return [message.metadata.message_id]

    def pull_messages(self, message_ids):
        self.pulls += 1
        replies = []
        for message_id in message_ids:
            message = self.sent[message_id]
            node = message.metadata.dst_node_id
            if node in self.missed:
                reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat"), reply_to=message)
                reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
                replies.append(reply)
            elif self.pulls > self.after[node]:
                replies.append(Message(RecordDict({"said": ConfigRecord({"by": node})}), reply_to=message))
        return replies

    def get_node_ids(self):
        return list(self.after)

    def get_nodes(self):
        return [NodeInfo(node_id=node, last_activated_at=at) for node, at in self.activated.items()]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError  # It waits for all replies before it returns any.

    def create_message(self, *args, **options):
        raise NotImplementedError

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError


def ask(nodes, timeout=30.0):
    """Return, by node, what came of a message to each."""
    messages = (Message(RecordDict(), node, "query.facts", group_id="1") for node in nodes.after)
    replies = FlowerGrid(nodes).send_and_receive(messages, timeout=timeout)
    return {reply.metadata.src_node_id: reply for reply in replies}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(flower_grid, "_SHORTEST", 0.001)
    monkeypatch.setattr(flower_grid, "_LONGEST", 0.002)
    monkeypatch.setattr(flower_grid, "_LOOK_AT_NODES", 0.01)


def test_replies_come_as_they_are_sent():
    nodes = Nodes({7: 5, 8: 0, 9: 2})
    found = ask(nodes)
    assert list(found) == [8, 9, 7]
    assert all(reply.content["said"]["by"] == node for node, reply in found.items())


def test_a_node_without_heartbeats_has_an_error_of_its_own():
    found = ask(Nodes({7: 0, 8: 0}, missed=[7]))
    assert fault_of(found[7].error.code) is Fault.GONE
    assert found[8].has_content()


def test_a_message_that_the_superlink_does_not_take_is_answered_at_once():
    found = ask(Nodes({7: 0, 8: 0}, unknown=[8]))
    assert fault_of(found[8].error.code) is Fault.GONE
    assert found[7].has_content()


def test_a_node_that_was_started_again_has_lost_its_message():
    nodes = Nodes({7: 10**9, 8: 0})
    pull = nodes.pull_messages

    def restarting(message_ids):
        if nodes.pulls == 3:
            nodes.activated[7] = "tuesday"
        return pull(message_ids)

    nodes.pull_messages = restarting
    found = ask(nodes)
    assert fault_of(found[7].error.code) is Fault.GONE
    assert "restarted" in found[7].error.reason


def test_whoever_says_nothing_until_the_timeout_is_left_out():
    assert list(ask(Nodes({7: 0, 8: 10**9}), timeout=0.1)) == [7]
