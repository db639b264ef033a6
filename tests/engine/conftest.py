"""What the tests of the engine share: a grid of obedient clients, and messages for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

pytest.importorskip("ray")

from engine.apps import make_obedient
from fedprune.engine.grid import RayGrid

NODES = 40
WORKERS = 2


@pytest.fixture(scope="module")
def grid(shared_ray: None) -> Iterator[RayGrid]:
    """A grid of two workers; tests that kill one leave another in its place."""
    with RayGrid(make_obedient, [{}] * NODES, workers=WORKERS, resources={"table": np.arange(5.0)}) as made:
        yield made


def message(node: int, act: str = "echo", *, arrays: ArrayRecord | None = None, **config: Any) -> Message:
    """Return a message that tells a node what to do; without ``arrays`` it carries one of 3 numbers."""
    if arrays is None:
        arrays = ArrayRecord({"w": Array(np.array([node, 2, 3], np.float32))})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"act": act, **config})})
    return Message(content, node, "train")


def metrics(reply: Message) -> dict[str, Any]:
    """Return what a reply says, or fail with the reason of its error."""
    assert reply.has_content(), reply.error.reason
    return dict(reply.content["metrics"])


def echoes(reply: Message, node: int) -> bool:
    """Say whether a reply is the good answer of that node to an echo message."""
    if not reply.has_content() or reply.metadata.src_node_id != node:
        return False
    return metrics(reply)["node"] == node and reply.content["arrays"]["w"].numpy().tolist() == [node, 2, 3]
