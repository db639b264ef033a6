"""Frozen parts in a federation: sent once, never changed, never trained, and counted so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Error, Message
from inprocess import assemble, federate, plan, same_state

from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run
from fedprune.errors import ScenarioError, UserError
from fedprune.protocol.faults import CODES, Fault
from fedprune.server.check import resolve
from fedprune.wire import StateCodec, content_bytes

BATCH_NORMED: dict[str, Any] = {"name": "resnet8", "width": 0.25, "frozen": ["layer1", "stem"]}


def layers(made, name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in made.strategy.state.items() if key.startswith(name)}


@pytest.mark.parametrize(
    "strategy", [{"name": "fedavg"}, {"name": "static", "density": 0.3, "aggregator": "overlap_mean"}]
)
def test_a_client_is_sent_frozen_values_once(strategy):
    made = federate(plan(model=BATCH_NORMED, strategy=strategy, rounds=3, clients__per_round=4))
    carried = [
        (message.metadata.group_id, "frozen" in message.content)
        for message, _ in made.grid.exchanges
        if message.metadata.message_type == "train"
    ]
    assert carried == [("1", True)] * 4 + [("2", False)] * 4 + [("3", False)] * 4
    frozen = made.strategy.model.frozen_values
    (first, reply), *_, (last, _) = made.trained()
    values = StateCodec(made.strategy.model.travelling, made.strategy.masks)
    assert reply.content["arrays"]["values"].shape == (values.size,)
    masks = 0 if not made.strategy.masks else made.tasks[4].mask_bytes_down
    more = content_bytes(first.content) - content_bytes(last.content)
    assert more > sum(len(array.data) for array in frozen.record.values()) + masks * 0.9
    assert [task.bytes_down for task in made.tasks if task.type == "train"][:1] == [
        content_bytes(first.content)
    ]


def test_what_is_frozen_stays_and_the_rest_is_trained():
    made = assemble(plan(model=BATCH_NORMED))
    before = dict(made.strategy.state)
    made.strategy.start(made.grid)
    after = made.strategy.state
    frozen = {name for name in before if name.startswith(("layer1.", "stem."))}
    assert any("running_mean" in name for name in frozen)
    assert {name for name in before if torch.equal(before[name], after[name])} == frozen


@pytest.mark.parametrize("strategy", ["fedtiny", "gradual", "prunefl", "feddst", "fedmef"])
def test_methods_that_move_masks_work_around_what_is_frozen(strategy):
    model = {"name": "cnn", "width": 0.25, "hidden": 16, "frozen": ["block1"]}
    made = assemble(plan(model=model, strategy={"name": strategy, "density": 0.5}, rounds=2))
    before = layers(made, "block1.")
    made.strategy.start(made.grid)
    assert [task.reason for task in made.tasks if task.status != "ok"] == []
    assert same_state(layers(made, "block1."), before)
    assert not made.strategy.masks.keys() & before.keys()


def test_the_clients_start_from_frozen_values_of_the_server_and_not_their_own():
    made = assemble(plan(model=BATCH_NORMED, rounds=1))
    for name, value in made.strategy.state.items():
        if name.startswith("layer1.") and value.is_floating_point():
            made.strategy.state[name] = value + 0.25
    made.strategy.start(made.grid)
    other = federate(plan(model=BATCH_NORMED, rounds=1))
    assert not same_state(layers(made, "head"), layers(other, "head"))


def test_a_client_that_lost_them_is_sent_them_again():
    lost: list[int] = []

    def forgetful(message, context):
        if message.metadata.group_id == "2" and not lost:
            lost.append(message.metadata.dst_node_id)
            context.state.clear()

    scenario = plan(model=BATCH_NORMED, clients__per_round=4)
    made, undisturbed = federate(scenario, before=forgetful), federate(scenario)
    sent = [
        (message.metadata.dst_node_id, "frozen" in message.content)
        for message, _ in made.grid.exchanges
        if message.metadata.message_type == "train" and message.metadata.group_id == "2"
    ]
    assert sorted(sent) == [(2, False), (2, True), (3, False), (4, False), (5, False)]
    assert same_state(made.strategy.state, undisturbed.strategy.state)


def test_a_client_whose_first_reply_was_lost_is_sent_them_again():
    def loses(message: Message, reply: Message) -> Message:
        if (message.metadata.group_id, message.metadata.dst_node_id) == ("1", 3):
            return Message(Error(CODES[Fault.GONE], "gone"), reply_to=message)
        return reply

    made = federate(plan(model=BATCH_NORMED, clients__per_round=4, rounds=3), tamper=loses)
    sent = [
        "frozen" in message.content
        for message, _ in made.grid.exchanges
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 3
    ]
    assert sent == [True, True, False]


def test_dense_fedavg_beside_it_trains_the_whole_model():
    few = federate(plan(model={**BATCH_NORMED, "trainable": ["head"], "frozen": []}))
    whole = federate(plan(model={"name": "resnet8", "width": 0.25}))
    assert few.strategy.dense.totals == whole.strategy.dense.totals
    flops = sum(record.flops for record in few.rounds), sum(record.flops for record in whole.rounds)
    assert flops[0] < 0.5 * flops[1]
    peaks = max(r.peak_memory_bytes for r in few.rounds), max(r.peak_memory_bytes for r in whole.rounds)
    assert peaks[0] < 0.5 * peaks[1]


def test_one_process_and_a_resumed_run_give_the_same(tmp_path: Path):
    """A simulation keeps one copy of frozen values for all clients; each of the grid above its own."""
    scenario = resolve(plan(model=BATCH_NORMED, rounds=3, engine__workers=1))
    host = InProcess()
    whole = run(scenario, out=tmp_path / "whole", host=host, progress=False)
    alone = federate(scenario)
    assert whole.summary["bytes_down"] == sum(record.bytes_down for record in alone.rounds)
    assert [r["accuracy"] for r in whole.rounds] == [r.scores["accuracy"] for r in alone.rounds]

    class Stop:
        def on_task(self, task):
            if task.round == 2:
                raise KeyboardInterrupt

        def on_round(self, round):
            pass

    with pytest.raises(KeyboardInterrupt):
        run(scenario, out=tmp_path / "cut", host=host, progress=False, listeners=[Stop()])
    resumed = run(scenario, out=tmp_path / "cut", host=host, progress=False, resume=True)
    for one, other in zip(whole.rounds, resumed.rounds, strict=True):
        assert {k: v for k, v in one.items() if k != "wall_seconds"} == {
            k: v for k, v in other.items() if k != "wall_seconds"
        }


def test_a_pattern_that_matches_nothing_is_refused_with_its_place():
    with pytest.raises(UserError, match=r"model\.frozen: 'layer9' matches no part"):
        assemble(plan(model={"name": "resnet8", "frozen": ["layer9"]}))


def test_supermasks_freeze_by_themselves():
    with pytest.raises(ScenarioError, match=r"leave model\.frozen"):
        resolve(plan(model=BATCH_NORMED, strategy={"name": "hidenseek", "density": 0.5}))


def test_a_scenario_without_patterns_has_the_digest_that_it_had():
    assert plan().digest == plan(model__frozen=[]).digest != plan(model__frozen=["head"]).digest
    assert plan().model_dump(mode="json")["model"] == {"name": "cnn", "width": 0.25, "hidden": 64}
