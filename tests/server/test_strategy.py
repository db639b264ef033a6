"""What every strategy does: messages and their bytes, masks that get lost, order, faulty replies."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from inprocess import assemble, federate, plan, same_state
from masked import trained

from fedprune import data as datasets
from fedprune.client.app import FederatedClientApp
from fedprune.client.site import Site
from fedprune.clients.sparse import Sparse
from fedprune.errors import RunError
from fedprune.protocol.faults import CODES, Fault
from fedprune.wire import mask_bytes, set_state

STATIC = {"name": "static", "density": 0.2}
MOVING = {"name": "moving:Moving"}
CLIENTS_EVALUATE = {"evaluation__clients": True, "data__client_test_fraction": 0.3}


def flower_bytes(content):
    """What Flower itself serializes of a content."""
    return sum(len(part.deflate()) for part in get_all_nested_objects(content).values())


def kind_of(message):
    return message.metadata.message_type


def tasks_of(made, kind):
    return [task for task in made.tasks if task.type == kind]


def untimed(records):
    """Return the records without what a clock on the wall says."""
    return [replace(record, wall_seconds=0.0) for record in records]


def assert_same_run(one, other):
    assert same_state(one.strategy.state, other.strategy.state)
    assert untimed(one.rounds) == untimed(other.rounds)
    assert untimed(one.tasks) == untimed(other.tasks)


# Bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("strategy", [{"name": "fedavg"}, STATIC, MOVING], ids=lambda s: s["name"])
def test_the_ledger_holds_what_flower_serializes(strategy, values):
    made = federate(plan(strategy=strategy, wire__values=values, **CLIENTS_EVALUATE))
    assert len(made.tasks) == len(made.grid.exchanges) == 4 + 2 * (3 + 3)
    for task, (message, reply) in zip(made.tasks, made.grid.exchanges, strict=True):
        assert task.type == kind_of(message)
        assert task.bytes_down == flower_bytes(message.content)
        assert task.bytes_up == flower_bytes(reply.content)
    for record in made.rounds:
        tasks = [task for task in made.tasks if task.round == record.round]
        assert record.bytes_down == sum(task.bytes_down for task in tasks)
        assert record.bytes_up == sum(task.bytes_up for task in tasks)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1, 0.01])
def test_a_round_costs_the_kept_weights_and_little_else(density):
    made = federate(plan(strategy={"name": "static", "density": density}, rounds=3))
    masks, shapes = made.strategy.masks, made.strategy.layout.shapes
    dense = sum(shape.numel() for name, shape in shapes.items() if name not in masks)
    values = 4 * (round(density * masks.total) + dense)
    for task in tasks_of(made, "train"):
        assert values < task.bytes_down - task.mask_bytes_down <= values + 2048
        assert values < task.bytes_up <= values + 2048
        assert task.mask_bytes_up == 0


@pytest.mark.parametrize("strategy", [STATIC, MOVING], ids=lambda s: s["name"])
def test_a_client_is_sent_each_mask_once(strategy):
    made = federate(plan(strategy=strategy, rounds=5, **CLIENTS_EVALUATE))
    sent = {}
    for message, _ in made.grid.exchanges:
        if kind_of(message) == "query.facts":
            continue
        node, version = message.metadata.dst_node_id, message.content["config"]["mask-version"]
        sent.setdefault((node, version), []).append(mask_bytes(message.content))
    assert any(len(lengths) > 1 for lengths in sent.values())
    for lengths in sent.values():
        assert lengths[0] > 0
        assert not any(lengths[1:])
    by_message = [mask_bytes(message.content) for message, _ in made.grid.exchanges]
    assert [task.mask_bytes_down for task in made.tasks] == by_message


@pytest.mark.parametrize(("values", "itemsize"), [("float16", 2), ("bfloat16", 2), ("int8", 1)])
def test_smaller_values_take_less(values, itemsize):
    """The same messages but for the values; int8 has two more numbers for each tensor."""

    def lengths(chosen):
        made = federate(plan(strategy=STATIC, rounds=1, wire__values=chosen))
        tensors = len(made.strategy.layout.shapes)
        return (
            made.strategy.codec.size,
            tensors,
            [(t.bytes_down, t.bytes_up) for t in tasks_of(made, "train")],
        )

    size, tensors, full = lengths("float32")
    _, _, small = lengths(values)
    scales, envelope = (8 * tensors, 600) if values == "int8" else (0, 0)
    saved = (4 - itemsize) * size - scales
    for lengths_full, lengths_small in zip(full, small, strict=True):
        for length, smaller in zip(lengths_full, lengths_small, strict=True):
            assert saved - envelope - 20 <= length - smaller <= saved + 20


# A mask that the client does not hold ------------------------------------------------------------


def forgetting(kind, server_round):
    """Return a hook by which every node loses its state just before a kind of message in a round."""

    def before(message, context):
        if (kind_of(message), message.metadata.group_id) == (kind, str(server_round)):
            context.state.clear()

    return before


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_client_that_lost_its_state_is_sent_the_mask_again(kind):
    scenario = plan(strategy=STATIC, rounds=3, clients__per_round=4, **CLIENTS_EVALUATE)
    whole = federate(scenario)
    made = federate(scenario, before=forgetting(kind, 2))
    assert same_state(made.strategy.state, whole.strategy.state)
    assert [r.client_scores["accuracy"] for r in made.rounds] == [
        r.client_scores["accuracy"] for r in whole.rounds
    ]
    assert [(r.clients_ok, r.clients_failed) for r in made.rounds] == [(4, 0), (8, 0), (8, 0), (8, 0)]
    asked_twice = 0
    for task in (t for t in made.tasks if (t.type, t.round) == (kind, 2)):
        node = made.strategy.clients[task.client].node_id
        exchanges = [
            (message, reply)
            for message, reply in made.grid.exchanges
            if (kind_of(message), message.metadata.group_id, message.metadata.dst_node_id)
            == (kind, "2", node)
        ]
        (first, refusal), (second, answer) = exchanges
        assert refusal.error.code == CODES[Fault.UNKNOWN_MASK]
        assert made.strategy.masks.version in refusal.error.reason
        assert mask_bytes(first.content) == 0 < mask_bytes(second.content)
        assert task.bytes_down == flower_bytes(first.content) + flower_bytes(second.content)
        assert task.mask_bytes_down == mask_bytes(second.content)
        assert task.bytes_up == flower_bytes(answer.content)
        asked_twice += 1
    assert asked_twice == 4


def test_a_client_that_never_holds_the_mask_fails():
    def tamper(message, reply):
        if message.metadata.dst_node_id == 2 and kind_of(message) == "train":
            return Message(Error(CODES[Fault.UNKNOWN_MASK], "none of mine"), reply_to=message)
        return reply

    made = federate(plan(strategy=STATIC, rounds=1, clients__per_round=4), tamper=tamper)
    asked = [m for m, _ in made.grid.exchanges if m.metadata.dst_node_id == 2 and kind_of(m) == "train"]
    assert len(asked) == 2
    assert [t.reason for t in tasks_of(made, "train") if t.status == "failed"] == ["none of mine"]
    assert made.rounds[1].clients_failed == 1


# Order and grid ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [{"name": "fedavg"}, MOVING, {**STATIC, "aggregator": "flwr.serverapp.strategy.Krum"}],
    ids=["fedavg", "moving", "Krum"],
)
def test_neither_order_nor_node_ids_matter(strategy):
    scenario = plan(strategy=strategy, rounds=3, clients__count=6, clients__per_round=4, **CLIENTS_EVALUATE)
    plain = federate(scenario)
    draw = random.Random(5)
    numbers = draw.sample(range(6), 6)
    node_ids = [draw.getrandbits(63) for _ in numbers]
    other = federate(scenario, numbers=numbers, node_ids=node_ids, shuffle=random.Random(1))
    assert_same_run(plain, other)


def test_a_lost_mask_changes_no_order():
    """Who is asked again is aggregated in its place all the same."""
    scenario = plan(strategy=STATIC, rounds=3, clients__per_round=4)
    seen = []

    def run(**options):
        made = assemble(scenario, **options)
        made.strategy.observe = lambda server_round, reply: seen.append((server_round, reply.client))
        made.strategy.start(made.grid)
        return [seen.pop(0) for _ in range(len(seen))]

    def before(message, context):
        if context.node_config["partition-id"] == 1 and message.metadata.group_id == "2":
            context.state.clear()

    assert run(before=before) == run() == [(r, n) for r in (1, 2, 3) for n in range(4)]


def test_sampling_depends_on_seed_and_round_alone():
    def sampled(**changes):
        made = federate(plan(rounds=6, clients__count=6, **changes))
        return [(task.round, task.client) for task in tasks_of(made, "train")]

    first = sampled()
    assert first == sampled(strategy=STATIC) == sampled(wire__values="int8", clients__training__epochs=2)
    assert first != sampled(seed=4)
    by_round = [tuple(client for number, client in first if number == r) for r in range(1, 7)]
    assert all(len(set(clients)) == 3 and list(clients) == sorted(clients) for clients in by_round)
    assert len(set(by_round)) > 1
    strategy = federate(plan(rounds=1, clients__count=6)).strategy
    assert [tuple(strategy.sample(r)) for r in range(6, 0, -1)] == by_round[::-1]


# Faulty replies ----------------------------------------------------------------------------------


def values_of(content):
    return content["arrays"]["values"].numpy().copy()


def with_values(content, values, name="values"):
    return RecordDict({**content, "arrays": ArrayRecord({name: Array(values)})})


def with_metric(content, **changes):
    metrics = {**content["metrics"], **{key.replace("_", "-"): value for key, value in changes.items()}}
    return RecordDict(
        {**content, "metrics": MetricRecord({k: v for k, v in metrics.items() if v is not None})}
    )


def with_one(content, value):
    values = values_of(content)
    values[7] = value
    return with_values(content, values)


def with_data(content, data):
    array = content["arrays"]["values"]
    return RecordDict(
        {**content, "arrays": ArrayRecord({"values": Array(array.dtype, array.shape, array.stype, data)})}
    )


FAULTS = {
    "NaN": lambda c: with_one(c, np.nan),
    "infinity": lambda c: with_one(c, -np.inf),
    "too short": lambda c: with_values(c, values_of(c)[:-1]),
    "too long": lambda c: with_values(c, np.append(values_of(c), np.float32(0))),
    "empty": lambda c: with_values(c, np.zeros(0, np.float32)),
    "two dimensions": lambda c: with_values(c, values_of(c)[None]),
    "float64": lambda c: with_values(c, values_of(c).astype(np.float64)),
    "integers": lambda c: with_values(c, values_of(c).astype(np.int32)),
    "pickled objects": lambda c: with_data(c, b"\x80\x04]q\x00."),
    "cut off": lambda c: with_data(c, c["arrays"]["values"].data[:-5]),
    "other name": lambda c: with_values(c, values_of(c), name="weights"),
    "no arrays": lambda c: RecordDict({"metrics": c["metrics"]}),
    "no metrics": lambda c: RecordDict({"arrays": c["arrays"]}),
    "nothing": lambda c: RecordDict(),
    "no num-examples": lambda c: with_metric(c, num_examples=None),
    "0 examples": lambda c: with_metric(c, num_examples=0),
    "negative examples": lambda c: with_metric(c, num_examples=-3),
    "float examples": lambda c: with_metric(c, num_examples=20.0),
    "listed examples": lambda c: with_metric(c, num_examples=[20]),
    "huge examples": lambda c: with_metric(c, num_examples=2**64 - 1),
    "no loss": lambda c: with_metric(c, loss=None),
    "NaN loss": lambda c: with_metric(c, loss=float("nan")),
    "no examples-seen": lambda c: with_metric(c, examples_seen=None),
    "negative examples-seen": lambda c: with_metric(c, examples_seen=-1),
    "negative flops": lambda c: with_metric(c, flops=-1),
    "float flops": lambda c: with_metric(c, flops=1e9),
    "huge flops": lambda c: with_metric(c, flops=2**64 - 1),
    "negative memory": lambda c: with_metric(c, peak_memory_bytes=-1),
    "no test accuracy": lambda c: with_metric(c, test_examples=10),
    "no test examples": lambda c: with_metric(c, test_accuracy=[5.0, 10.0]),
    "0 test examples": lambda c: with_metric(c, test_examples=0, test_accuracy=[0.0, 0.0]),
    "no right answers": lambda c: with_metric(c, test_examples=10),
    "test accuracy as a share": lambda c: with_metric(c, test_examples=10, test_accuracy=0.5),
    "more right than there are": lambda c: with_metric(c, test_examples=10, test_accuracy=[11.0, 10.0]),
    "right of other examples": lambda c: with_metric(c, test_examples=10, test_accuracy=[5.0, 9.0]),
    "NaN test accuracy": lambda c: with_metric(c, test_examples=10, test_accuracy=[float("nan"), 10.0]),
}


def replacing(client, change):
    """Return a tamper by which one client's training replies are changed; None: they get lost."""

    def tamper(message, reply):
        if message.metadata.dst_node_id != client + 2 or kind_of(message) != "train":
            return reply
        return Message(change(reply.content), reply_to=message) if change else None

    return tamper


@pytest.fixture(scope="module", params=["fedavg", "static with FedAdam"])
def strategy_and_rest(request):
    """A strategy, and its run from which one client's replies are simply absent."""
    strategy = {"name": "fedavg"}
    if request.param != "fedavg":
        strategy = {**STATIC, "aggregator": {"name": "flwr.serverapp.strategy.FedAdam", "eta": 0.01}}
    return strategy, federate(plan(strategy=strategy, clients__per_round=4), tamper=replacing(1, None))


def assert_failed(made, rest):
    failed = [task for task in made.tasks if task.status == "failed"]
    assert [(task.round, task.type, task.client) for task in failed] == [(1, "train", 1), (2, "train", 1)]
    assert all(task.flops == task.peak_memory_bytes == task.examples == 0 for task in failed)
    assert [(r.clients_ok, r.clients_failed) for r in made.rounds] == [(4, 0), (3, 1), (3, 1)]
    assert same_state(made.strategy.state, rest.strategy.state)
    assert [(r.scores["accuracy"], r.train_loss, r.flops) for r in made.rounds] == [
        (r.scores["accuracy"], r.train_loss, r.flops) for r in rest.rounds
    ]
    return {task.reason for task in failed}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_faulty_reply_is_as_if_it_were_absent(fault, strategy_and_rest):
    strategy, rest = strategy_and_rest
    made = federate(plan(strategy=strategy, clients__per_round=4), tamper=replacing(1, fault))
    (reason,) = assert_failed(made, rest)
    assert reason.startswith("WireError: ")
    assert "\n" not in reason
    replies = [reply for _, reply in made.grid.exchanges if reply and reply.metadata.src_node_id == 3]
    failed = [task for task in made.tasks if task.status == "failed"]
    assert [task.bytes_up for task in failed] == [flower_bytes(reply.content) for reply in replies[1:]]


def test_an_absent_reply_is_told(strategy_and_rest):
    _, rest = strategy_and_rest
    assert assert_failed(rest, rest) == {"no reply within 3600 s"}


@pytest.mark.parametrize("strategy_and_rest", ["fedavg"], indirect=True)
def test_a_client_that_raises_is_as_if_it_were_absent(strategy_and_rest, monkeypatch):
    strategy, rest = strategy_and_rest
    fit = Sparse.fit

    def broken(self, order):
        if self.number == 1:
            raise ZeroDivisionError("the device is on fire\nand more")
        return fit(self, order)

    monkeypatch.setattr(Sparse, "fit", broken)
    made = federate(plan(strategy=strategy, clients__per_round=4))
    assert assert_failed(made, rest) == {"ZeroDivisionError: the device is on fire"}


@pytest.mark.parametrize("strategy_and_rest", ["fedavg"], indirect=True)
def test_a_client_that_diverges_is_as_if_it_were_absent(strategy_and_rest, monkeypatch):
    strategy, rest = strategy_and_rest
    fit = Sparse.fit

    def diverging(self, order):
        done = fit(self, order)
        return replace(done, values=done.values / 0) if self.number == 1 else done

    monkeypatch.setattr(Sparse, "fit", diverging)
    (reason,) = assert_failed(federate(plan(strategy=strategy, clients__per_round=4)), rest)
    assert "not finite" in reason


@pytest.mark.parametrize("aggregator", [None, "flwr.serverapp.strategy.FedAvg"])
def test_a_metric_of_ones_own_is_no_fault(aggregator):
    """A client may report more than the others do."""
    strategy = {**STATIC, "aggregator": aggregator}
    plain = federate(plan(strategy=strategy, clients__per_round=4))
    made = federate(
        plan(strategy=strategy, clients__per_round=4),
        tamper=replacing(1, lambda content: with_metric(content, temperature=[20.5, 21.0])),
    )
    assert [r.clients_failed for r in made.rounds] == [0, 0, 0]
    assert same_state(made.strategy.state, plain.strategy.state)


def test_a_round_without_a_good_reply_ends_the_run():
    def tamper(message, reply):
        if (kind_of(message), message.metadata.group_id) != ("train", "2"):
            return reply
        node = message.metadata.dst_node_id
        if node == 2:
            return Message(FAULTS["NaN"](reply.content), reply_to=message)
        return Message(Error(ErrorCode.UNKNOWN, "out of battery"), reply_to=message)

    made = assemble(plan(clients__per_round=4), tamper=tamper)
    expected = r"round 2: none of 4 clients gave a usable reply: 3 x out of battery; 1 x WireError: .*finite"
    with pytest.raises(RunError, match=expected):
        made.strategy.start(made.grid)
    assert [record.round for record in made.rounds] == [0, 1]
    assert len([task for task in made.tasks if task.round == 2]) == 4


# Who is there ------------------------------------------------------------------------------------


def test_two_nodes_of_one_number_are_refused():
    made = assemble(plan(), numbers=[0, 1, 1, 2])
    with pytest.raises(RunError, match="two nodes say that they are client 1"):
        made.strategy.start(made.grid)


def test_without_an_answer_there_is_no_run():
    def tamper(message, reply):
        return Message(Error(ErrorCode.UNKNOWN, f"node {message.metadata.dst_node_id % 2}"), reply_to=message)

    made = assemble(plan(), tamper=tamper)
    expected = "no node says which client it is: 2 x node [01]; 2 x node [01]"
    with pytest.raises(RunError, match=expected):
        made.strategy.start(made.grid)
    lost = assemble(plan(), tamper=lambda message, reply: None)
    with pytest.raises(RunError, match="no node says which client it is: 4 x no reply within"):
        lost.strategy.start(lost.grid)
    alone = assemble(plan(engine__timeout=0.1), numbers=[])
    with pytest.raises(RunError, match=r"no node has been there for 0\.1 s"):
        alone.strategy.start(alone.grid)


def test_fewer_nodes_than_clients_train_without_the_others():
    scenario = plan(engine__timeout=0.5, clients__per_round=3)
    made = federate(scenario, numbers=[3, 0])
    assert [(task.round, task.client) for task in made.tasks] == [(r, c) for r in (0, 1, 2) for c in (0, 3)]


@pytest.mark.parametrize(
    ("key", "value"),
    [("compute", 0.0), ("downlink", -1.0), ("memory", 1.5), ("examples", -1), ("device", 3), ("client", -1)],
)
def test_a_node_with_impossible_facts_takes_no_part(key, value):
    def tamper(message, reply):
        if kind_of(message) == "query.facts" and message.metadata.dst_node_id == 3:
            reply.content["facts"][key] = value
        return reply

    made = federate(plan(clients__per_round=4), tamper=tamper)
    assert {task.client for task in made.tasks} == {None, 0, 2, 3}
    [refused] = [task for task in made.tasks if task.client is None]
    assert (refused.round, refused.type, refused.status, refused.fault) == (
        *(0, "query.facts", "failed"),
        "unreadable",
    )
    assert key in refused.reason or "client -1" in refused.reason
    assert [record.clients_failed for record in made.rounds] == [1, 0, 0]


def test_an_app_that_cannot_be_built_says_so():
    def broken(context):
        raise FileNotFoundError("no data here")

    made = assemble(plan(), app=FederatedClientApp(broken))
    with pytest.raises(RunError, match="4 x FileNotFoundError: no data here"):
        made.strategy.start(made.grid)


# Evaluation --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4, 5]), (9, [0, 5])])
def test_evaluation_every_so_many_rounds_and_at_the_end(every, expected):
    made = federate(plan(rounds=5, evaluation__every=every, **CLIENTS_EVALUATE))
    assert [record.round for record in made.rounds] == [0, 1, 2, 3, 4, 5]
    assert [
        r.round for r in made.rounds if r.scores["accuracy"] is not None and r.loss is not None
    ] == expected
    assert [r.round for r in made.rounds if r.client_scores["accuracy"] is not None] == expected[1:]
    assert [r.round for r in made.rounds if r.personal_scores["accuracy"] is not None] == [1, 2, 3, 4, 5]
    assert sorted({task.round for task in tasks_of(made, "evaluate")}) == expected[1:]
    assert len(made.states) == len(expected)


def answered_right(made, state, client):
    """Return which of a client's held-out examples a state gets right, bool, shape (n,); plain PyTorch."""
    module = Site(made.scenario, made.data).module.eval()
    module.load_state_dict(state, strict=False)
    indices, info = made.data.client_test.of(client), made.data.info
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (info.inputs.mean, info.inputs.std))
    x = (torch.from_numpy(made.data.train.inputs[indices]) / 255 - mean) / std
    with torch.no_grad():
        return module(x).argmax(dim=1).numpy() == made.data.train.targets[indices]


@pytest.mark.parametrize("strategy", [{"name": "fedavg"}, STATIC, MOVING], ids=lambda s: s["name"])
def test_client_accuracy_is_that_of_the_state_that_the_server_has(strategy):
    made = federate(plan(strategy=strategy, rounds=3, **CLIENTS_EVALUATE))
    for record, state in zip(made.rounds[1:], made.states[1:], strict=True):
        clients = [task.client for task in tasks_of(made, "evaluate") if task.round == record.round]
        right = np.concatenate([answered_right(made, state, client) for client in clients])
        assert record.client_scores["accuracy"] == pytest.approx(right.mean(), abs=1e-12)


@pytest.mark.parametrize("strategy", [{"name": "fedavg"}, MOVING], ids=lambda s: s["name"])
def test_every_task_has_the_accuracy_on_what_its_client_holds_out(strategy):
    made = federate(plan(strategy=strategy, rounds=2, **CLIENTS_EVALUATE))
    own = {(entry.round, entry.client): entry.state for entry in trained(made)}
    for task in made.tasks:
        if task.type not in ("evaluate", "train"):
            assert task.scores["accuracy"] is None
            continue
        state = made.states[task.round] if task.type == "evaluate" else own[task.round, task.client]
        expected = answered_right(made, state, task.client).mean()
        assert task.scores["accuracy"] == pytest.approx(expected, abs=1e-12)
    assert {task.type for task in made.tasks if task.scores["accuracy"] is not None} == {"evaluate", "train"}


def test_a_task_that_failed_or_a_client_that_holds_nothing_out_has_no_accuracy():
    def tamper(message, reply):
        if (kind_of(message), message.metadata.dst_node_id) == ("evaluate", 3):
            return Message(with_metric(reply.content, accuracy=1.5), reply_to=message)
        if (kind_of(message), message.metadata.dst_node_id) == ("evaluate", 2):
            return Message(with_metric(reply.content, num_examples=0), reply_to=message)
        return reply

    made = federate(plan(rounds=1, clients__per_round=4, **CLIENTS_EVALUATE), tamper=tamper)
    known = {task.client: task.scores["accuracy"] is not None for task in tasks_of(made, "evaluate")}
    assert known == {0: False, 1: False, 2: True, 3: True}
    assert all(task.scores["accuracy"] is None for task in federate(plan()).tasks)


def test_a_client_that_claims_to_be_right_more_than_always_is_refused():
    def tamper(message, reply):
        if (kind_of(message), message.metadata.dst_node_id) == ("evaluate", 3):
            return Message(with_metric(reply.content, accuracy=1.5), reply_to=message)
        return reply

    made = federate(plan(rounds=1, clients__per_round=4, **CLIENTS_EVALUATE), tamper=tamper)
    assert [t.client for t in made.tasks if t.status == "failed"] == [1]
    right = np.concatenate([answered_right(made, made.states[1], client) for client in (0, 2, 3)])
    assert made.rounds[1].client_scores["accuracy"] == pytest.approx(right.mean(), abs=1e-12)


OWN_MASKS = [
    {"name": "feddst", "density": 0.2, "adjust_every": 1, "stop_adjusting_at": 4},
    {"name": "lotteryfl", "density": 0.2, "prune_step": 0.5, "accuracy_threshold": 0.0},
]


@pytest.mark.parametrize(
    "strategy", [{"name": "fedavg"}, STATIC, MOVING, *OWN_MASKS], ids=lambda s: s["name"]
)
def test_personal_accuracy_is_that_of_each_clients_own_model(strategy, monkeypatch):
    """The trained states are read off the replies, each under the masks that its client made."""
    fit = Sparse.fit

    def leaving_another_model(self, order):
        done = fit(self, order)
        set_state(self.site.module, self.site.initial)
        return done

    monkeypatch.setattr(Sparse, "fit", leaving_another_model)
    made = federate(plan(strategy=strategy, rounds=3, data__client_test_fraction=0.3))
    entries = trained(made)
    assert any(entry.masks != entry.sent for entry in entries) == (strategy in OWN_MASKS)
    assert made.rounds[0].personal_scores["accuracy"] is None
    for record in made.rounds[1:]:
        own = [entry for entry in entries if entry.round == record.round]
        right = np.concatenate([answered_right(made, entry.state, entry.client) for entry in own])
        assert record.personal_scores["accuracy"] == pytest.approx(right.mean(), abs=1e-12)
        assert record.client_scores["accuracy"] is None


def test_without_held_out_examples_there_is_no_personal_accuracy_and_no_byte_for_it():
    made = federate(plan(strategy=STATIC))
    assert [record.personal_scores["accuracy"] for record in made.rounds] == [None] * 3
    metrics = {"num-examples", "loss", "examples-seen", "flops", "peak-memory-bytes"}
    metrics |= {"train-seconds", "peak-rss", "checksum"}
    assert all(set(reply.content["metrics"]) == metrics for _, reply in made.trained())


@pytest.mark.parametrize("aggregator", [None, "flwr.serverapp.strategy.FedAvg"])
def test_a_client_without_held_out_examples_has_no_part_in_personal_accuracy(aggregator):
    strategy = {**STATIC, "aggregator": aggregator}
    scenario = plan(strategy=strategy, clients__per_round=4, data__client_test_fraction=0.3)
    plain = federate(scenario)
    nothing = replacing(1, lambda content: with_metric(content, test_examples=None, test_accuracy=None))
    made = federate(scenario, tamper=nothing)
    assert same_state(made.strategy.state, plain.strategy.state)
    assert [record.clients_failed for record in made.rounds] == [0, 0, 0]
    for record in made.rounds[1:]:
        own = [e for e in trained(made) if e.round == record.round and e.client != 1]
        right = np.concatenate([answered_right(made, entry.state, entry.client) for entry in own])
        assert record.personal_scores["accuracy"] == pytest.approx(right.mean(), abs=1e-12)


# What devices measure -----------------------------------------------------------------------------


def test_what_a_device_has_measured_stands_beside_what_is_modelled():
    scenario = plan(strategy=STATIC)
    site = Site(scenario, datasets.load(scenario))
    made = assemble(scenario, app=FederatedClientApp(lambda context: site, lambda: 3.0 * 2**20))
    made.strategy.start(made.grid)
    trained = [task for task in made.tasks if task.type == "train"]
    assert {task.measured_memory_bytes for task in trained} == {3 * 2**20}
    assert all(task.measured_seconds > 0 and task.peak_memory_bytes > 0 for task in trained)
    simulated = federate(scenario)
    assert {(t.measured_memory_bytes, t.measured_seconds) for t in simulated.tasks} == {(None, None)}
    # To say it, or that there is nothing to say, takes as many bytes.
    assert [task.bytes_up for task in made.tasks] == [task.bytes_up for task in simulated.tasks]


@pytest.mark.parametrize("said", [float("inf"), float("nan"), -1.0, 3, None])
def test_a_measurement_that_cannot_be_is_none(said):
    made = federate(plan(), tamper=replacing(1, lambda content: with_metric(content, peak_rss=said)))
    assert all(task.measured_memory_bytes is None for task in made.tasks)
    assert made.rounds[-1].clients_failed == 0


# Nodes that come and go ---------------------------------------------------------------------------


def changing(made, server_round, change):
    """Have ``change`` called with the nodes' contexts when a round's first training message is answered."""
    done = []

    def tamper(message, reply):
        if message.metadata.group_id == str(server_round) and kind_of(message) == "train" and not done:
            done.append(change(made.grid.contexts))
        return reply

    made.grid._tamper = tamper
    return made


def node(made, number):
    return Context(1, 100 + number, {"partition-id": number}, RecordDict(), {})


def history_of(made, number):
    return [(t.round, t.type, t.status) for t in made.tasks if t.client == number]


def test_a_client_that_joins_late_is_met_and_takes_part():
    made = assemble(plan(rounds=3, clients__per_round=4, strategy=STATIC), numbers=[0, 1, 2])
    made.strategy.roll_call.start_with = 3
    changing(made, 1, lambda contexts: contexts.update({103: node(made, 3)}))
    made.strategy.start(made.grid)
    assert [record.clients_ok for record in made.rounds] == [3, 3, 5, 4]
    assert history_of(made, 3) == [(2, "query.facts", "ok"), (2, "train", "ok"), (3, "train", "ok")]


def test_who_waits_says_for_how_many_devices():
    made = assemble(plan())
    nodes, present, steps = list(made.grid.get_node_ids()), iter([1, 1, 2]), []
    made.grid.get_node_ids = lambda: nodes[: next(present, 4)]
    made.strategy.federation.listeners.append(Steps(steps))
    made.strategy.start(made.grid)
    assert steps[:3] == [
        "waiting for 3 of 4 devices",
        "waiting for 2 of 4 devices",
        "round 0: asking 4 clients who they are",
    ]


class Steps:
    def __init__(self, steps):
        self.on_step = steps.append
        self.on_task = self.on_round = lambda record: None


def test_a_client_whose_node_is_gone_is_offline_until_it_is_back_under_another():
    made = assemble(plan(rounds=4, clients__per_round=4, strategy=STATIC))
    changing(made, 1, lambda contexts: contexts.pop(3))
    made.strategy.start(made.grid, num_rounds=2)
    assert [record.clients_offline for record in made.rounds] == [0, 0, 1]
    made.grid.contexts[101] = node(made, 1)
    made.strategy.start(made.grid)
    assert [record.clients_offline for record in made.rounds] == [0, 0, 1, 0, 0]
    # The new node holds no masks: they are sent with its first task, and not again.
    trained = [task for task in made.tasks if task.client == 1 and task.type == "train"]
    assert [task.fault for task in trained] == ["gone", None, None]
    assert [task.mask_bytes_down > 0 for task in trained] == [True, True, False]


def test_a_node_that_says_it_is_a_client_who_is_there_is_refused_later_on():
    made = assemble(plan(rounds=3, clients__per_round=4))
    changing(made, 1, lambda contexts: contexts.update({101: node(made, 1), 109: node(made, 9)}))
    made.strategy.start(made.grid)
    refused = [task for task in made.tasks if task.client is None]
    assert [(task.round, task.fault) for task in refused] == [(2, "unreadable"), (2, "raised")]
    assert "node 101: two nodes say that they are client 1" in refused[0].reason
    assert "node 109: IndexError: client 9: there are clients 0 to 3" in refused[1].reason
    assert [record.clients_ok for record in made.rounds] == [4] * 4


def test_a_node_that_is_lost_when_it_is_met_is_asked_again():
    lost = [3, 3, 3]

    def tamper(message, reply):
        if kind_of(message) == "query.facts" and message.metadata.dst_node_id in lost:
            lost.pop()
            return Message(Error(CODES[Fault.GONE], "gone"), reply_to=message)
        return reply

    made = federate(plan(clients__per_round=4), tamper=tamper)
    assert [record.clients_ok for record in made.rounds] == [4] * 3
    assert [(task.round, task.fault) for task in made.tasks if task.client is None] == [(0, "gone")] * 3


def test_a_round_waits_for_a_node():
    made = assemble(plan(rounds=2))
    changing(made, 1, lambda contexts: contexts.clear())
    made.strategy.roll_call.patience = 0.3
    with pytest.raises(RunError, match=r"no node has been there for 0\.3 s"):
        made.strategy.start(made.grid)
