"""A client: what it answers, and that it never trains on a mask that the server does not mean."""

from __future__ import annotations

import re

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from inprocess import copied, federate, plan

from fedprune.protocol.faults import CODES, Fault
from fedprune.sparsity.masks import Masks
from fedprune.wire import CODEC, encode_masks, mask_bytes, with_masks


@pytest.fixture(scope="module")
def made():
    strategy = {"name": "static", "density": 0.2}
    return federate(
        plan(strategy=strategy, clients__per_round=4, rounds=1, clients__training__epochs=2)
        .override(data__client_test_fraction=0.3)
        .override(evaluation__clients=True)
    )


@pytest.fixture
def context():
    return Context(1, 2, {"partition-id": 0}, RecordDict(), {})


def question(made, kind="train"):
    """Return a copy of what was sent to client 0, with the mask in training messages."""
    sent = next(
        m for m, _ in made.grid.exchanges if (m.metadata.message_type, m.metadata.dst_node_id) == (kind, 2)
    )
    return Message(copied(sent.content), 2, kind, group_id="1")


def reason_of(reply):
    assert reply.has_error()
    assert "\n" not in reply.error.reason
    return reply.error.reason


def test_the_same_message_gets_the_same_answer(made, context):
    answers = [made.grid._app(question(made), context).content for _ in range(2)]
    assert answers[0]["arrays"] == answers[1]["arrays"]
    timed = [{k: v for k, v in a["metrics"].items() if k != "train-seconds"} for a in answers]
    assert timed[0] == timed[1]


def test_an_answer_does_not_depend_on_who_used_the_model_before(made, context):
    first = made.grid._app(question(made), context).content["arrays"]
    other = Context(1, 3, {"partition-id": 3}, RecordDict(), {})
    made.grid._app(question(made), other)
    torch.manual_seed(99)
    assert made.grid._app(question(made), context).content["arrays"] == first


def test_facts(made, context):
    question = RecordDict({"config": ConfigRecord({"codec": CODEC})})
    facts = made.grid._app(Message(question, 2, "query.facts"), context).content["facts"]
    client = made.data.client(0)
    assert (facts["client"], facts["examples"], facts["test-examples"]) == (
        0,
        len(client.train),
        len(client.test),
    )
    assert facts["device"] == "raspberry-pi-4"
    assert min(facts[key] for key in ("memory", "compute", "downlink", "uplink")) > 0


def test_a_server_of_another_version_is_told_at_once(made, context):
    question = RecordDict({"config": ConfigRecord({"codec": "fedprune-0"})})
    reply = made.grid._app(Message(question, 2, "query.facts"), context)
    assert "install the same version" in reply.error.reason


def test_metrics_of_training(made, context):
    metrics = made.grid._app(question(made), context).content["metrics"]
    examples = len(made.data.client(0).train)
    left_out = examples % 16 == 1  # a last batch of one is not trained on
    assert metrics["num-examples"] == examples
    assert metrics["test-examples"] == len(made.data.client(0).test)
    assert metrics["examples-seen"] == 2 * (examples - left_out)
    assert metrics["flops"] == made.strategy.cost.training_flops(
        made.strategy.masks, metrics["examples-seen"]
    )


def test_a_mask_that_is_not_held_is_asked_for(made, context):
    asked = question(made)
    del asked.content["arrays"]["__mask__"]
    reply = made.grid._app(asked, context)
    assert reply.error.code == CODES[Fault.UNKNOWN_MASK]
    version = made.strategy.masks.version
    assert reason_of(reply) == f"client 0 holds mask none, the message names {version}"
    made.grid._app(question(made), context)
    assert not made.grid._app(asked, context).has_error()
    asked.content["config"]["mask-version"] = "0123456789abcdef"
    assert f"holds mask {version}" in reason_of(made.grid._app(asked, context))


def test_a_mask_of_another_version_is_refused_and_not_kept(made, context):
    masks = made.strategy.masks
    other = Masks({name: mask.roll(1) for name, mask in masks.items()})
    asked = question(made)
    arrays = asked.content["arrays"]
    asked.content["arrays"] = with_masks(ArrayRecord({"values": arrays["values"]}), encode_masks(other))
    reply = made.grid._app(asked, context)
    assert masks.version in reason_of(reply)
    assert reply.error.code != CODES[Fault.UNKNOWN_MASK]
    assert not context.state


def test_what_is_held_is_the_mask_as_it_was_sent(made, context):
    asked = question(made)
    assert mask_bytes(asked.content) > 0
    made.grid._app(asked, context)
    held = context.state["mask"]
    assert (held["version"], held["payload"]) == (
        made.strategy.masks.version,
        encode_masks(made.strategy.masks),
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("config"), "WireError: the message has no record 'config'"),
        (lambda c: c.pop("arrays"), "WireError: the message has no record 'arrays'"),
        (lambda c: c["config"].update({"codec": "fedprune-0"}), "WireError: the server speaks codec"),
        (lambda c: c["config"].pop("codec"), "WireError: the server speaks codec None"),
        (lambda c: c["config"].update({"mask-version": 3}), "WireError: 'mask-version' is 3"),
        (lambda c: c["config"].pop("mask-version"), "WireError: 'mask-version' is None"),
        (lambda c: c["config"].update({"mask-version": ""}), "ShapeError: .*'values' has shape"),
        (lambda c: c["config"].update({"round": "one"}), "WireError: 'round' is 'one'"),
        (lambda c: c["arrays"].pop("values"), "WireError: the record has the arrays"),
    ],
)
def test_a_message_that_is_not_right_gets_an_error_reply(made, context, change, expected):
    asked = question(made)
    change(asked.content)
    reply = made.grid._app(asked, context)
    assert reply.error.code != CODES[Fault.UNKNOWN_MASK]
    assert re.match(expected, reason_of(reply))


@pytest.mark.parametrize("kind", ["query.secrets", "query"])
def test_a_message_without_an_answer_says_so(made, context, kind):
    reply = made.grid._app(Message(RecordDict({"config": ConfigRecord()}), 2, kind), context)
    assert f"a Sparse client has no answer to '{kind}' messages" in reason_of(reply)


def test_a_client_that_does_not_exist(made):
    context = Context(1, 2, {"partition-id": 17}, RecordDict(), {})
    reply = made.grid._app(Message(RecordDict(), 2, "query.facts"), context)
    assert reason_of(reply) == "IndexError: client 17: there are clients 0 to 3"
    nameless = Context(1, 2, {}, RecordDict(), {})
    assert "partition-id" in reason_of(made.grid._app(Message(RecordDict(), 2, "query.facts"), nameless))


def test_evaluation_leaves_nothing_behind(made, context):
    made.grid._app(question(made), context)
    before = copied(context.state)
    asked = question(made, "evaluate")
    metrics = made.grid._app(asked, context).content["metrics"]
    assert context.state == before
    assert metrics["num-examples"] == len(made.data.client(0).test) > 0
    assert metrics == {
        **made.grid._app(asked, context).content["metrics"],
        "train-seconds": metrics["train-seconds"],
    }
    assert metrics["flops"] == made.strategy.cost.forward_flops(made.strategy.masks, metrics["num-examples"])
