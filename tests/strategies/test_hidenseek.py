"""HideNseek: pruned by synaptic flow, frozen for good, learned and voted on sign by sign."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from inprocess import accuracy_of, assemble, federate, plan, same_state
from masked import assert_order_does_not_matter, losing
from supermasked import altered, learned, statistics
from torch import nn

import fedprune.client.base
from fedprune.client.site import Site
from fedprune.server.aggregation import TrainReply
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable
from fedprune.sparsity.supermasks import Supermask, initial_weights
from fedprune.strategies.hidenseek import SignVote
from fedprune.training.evaluation import score
from fedprune.wire import Layout, SupermaskCodec, content_bytes, mask_bytes, set_state
from fedprune.wire.bits import encode_vectors
from fedprune.wire.supermasks import Grid
from fedprune.wire.values import from_array, to_array

OPTIONS = {"name": "hidenseek", "density": 0.3, "iterations": 4}
#: Settings that differ from their defaults travel: the longest that a message gets.
TOLD = {
    "straight_through": "clipped",
    "score_scale": 0.1 + 0.2,
    "score_lr": 1 / 3,
    "keep_scores": True,
    "init": "kaiming_normal",
}
TRAINING = {"batch_size": 16, "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
HELD_OUT = {"data__client_test_fraction": 0.25, "evaluation__clients": True}
ROUNDS = 3


def scenario(strategy=OPTIONS, **changes):
    """Four clients with as many examples each, so that votes may tie."""
    changes = {"rounds": ROUNDS, "clients__training": TRAINING, "clients__per_round": 4, **changes}
    return plan(strategy=strategy, data__partition={"scheme": "iid"}, **HELD_OUT, **changes)


@pytest.fixture(scope="module")
def made():
    return federate(scenario())


def prepared(scenario):
    """A federation before its first round."""
    made = assemble(scenario)
    made.strategy.roll_call.open(made.grid)
    made.strategy.prepare(made.grid)
    return made


# Pruning ----------------------------------------------------------------------------------------


def synaptic_flow(module, weights, density, iterations, input_shape):
    """Iterated SynFlow (Tanaka et al. 2020, algorithm 1), written out; every layer keeps its best weight."""
    module = copy.deepcopy(module).double().eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.zero_()
            layer.running_var.fill_(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.abs())
    masks = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    total = sum(mask.numel() for mask in masks.values())
    for step in range(1, iterations + 1):
        parameters = []
        for name, weight in weights.items():
            parameter = module.get_parameter(name)
            parameter.data = weight.double().abs() * masks[name]
            parameters.append(parameter)
        flow = module(torch.ones(1, *input_shape).double()).sum()
        scores = {}
        for name, p, g in zip(weights, parameters, torch.autograd.grad(flow, parameters), strict=True):
            scores[name] = torch.where(masks[name], (p * g).abs(), -1.0).detach().flatten().numpy()
        best = [(name, int(score.argmax())) for name, score in scores.items()]
        others = [
            (-value, order, at, name)
            for order, (name, score) in enumerate(scores.items())
            for at, value in enumerate(score)
            if (name, at) not in best
        ]
        wanted = max(round(density ** (step / iterations) * total), len(weights)) - len(best)
        kept = best + [(name, at) for _, _, at, name in sorted(others)[:wanted]]
        masks = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
        for name, at in kept:
            masks[name].view(-1)[at] = True
    return Masks(masks)


@pytest.mark.parametrize("iterations", [1, 6])
@pytest.mark.parametrize(
    ("model", "density"),
    [
        ({"name": "mlp", "width": 0.1}, 0.2),
        ({"name": "cnn", "width": 0.25, "hidden": 64}, 0.3),
        ({"name": "cnn", "width": 0.25, "hidden": 64}, 0.003),
        ({"name": "resnet18", "width": 0.04}, 0.1),
    ],
    ids=["MLP", "CNN", "CNN, almost nothing", "ResNet"],
)
def test_the_mask_is_that_of_synaptic_flow(model, density, iterations):
    strategy = {"name": "hidenseek", "density": density, "iterations": iterations}
    made = prepared(scenario(strategy, model=model))
    strategy = made.strategy
    names = prunable(strategy.module, ())
    weights = initial_weights(
        {name: strategy.layout.shapes[name] for name in names}, strategy.supermasks().seed
    )
    module = assemble(made.scenario).strategy.module
    expected = synaptic_flow(module, weights, density, iterations, made.data.info.input_shape)
    assert strategy.masks == expected
    assert min(strategy.masks.kept.values()) >= 1
    # Magnitudes are then those of the layers, signs those that were drawn.
    for name, mask in strategy.masks.items():
        state = strategy.state[name]
        assert torch.equal(state.sign(), weights[name].sign() * mask)
        deviation = (2 / weights[name][0].numel() / mask.float().mean().item()) ** 0.5
        assert state[mask].abs().unique().tolist() == pytest.approx([deviation])


def test_the_criterions_own_number_of_steps_is_a_hundred():
    few = {"name": "mlp", "width": 0.02}
    masks = [
        prepared(scenario({**OPTIONS, "iterations": steps}, model=few)).strategy.masks
        for steps in (None, 100, 1)
    ]
    assert masks[0] == masks[1] != masks[2]


# What never changes, and what is sent -----------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"init": "kaiming_normal", "keep_scores": True}], ids=str)
def test_magnitudes_never_change(options, monkeypatch):
    run = assemble(scenario({**OPTIONS, **options, "keep": ["first"]}))
    strategy, checked = run.strategy, {"train": 0, "score": 0}

    def check(where, found):
        first = next(iter(strategy.layout.shapes))
        assert first not in strategy.masks
        expected = strategy.model.frozen(strategy.masks).state
        for name in strategy.masks:
            assert torch.equal(found[name].detach().abs(), expected[name].abs()), (where, name)
        if where == "score":
            for name in {first, "head.bias", "block1.norm.weight", "block1.norm.bias"}:
                assert torch.equal(found[name], expected[name]), (where, name)
        checked[where] += 1

    def watched_weights(supermask):
        found = weights(supermask)
        check("train", found)
        return found

    def watched_score(module, *args, **options):
        check("score", module.state_dict())
        return score(module, *args, **options)

    weights = Supermask.weights
    monkeypatch.setattr(Supermask, "weights", watched_weights)
    monkeypatch.setattr(fedprune.client.base, "score", watched_score)
    strategy.start(run.grid)
    assert checked["train"] > 4 * ROUNDS * 2 * 2  # clients, rounds, epochs, batches
    assert checked["score"] == 2 * 4 * ROUNDS  # Its own model and the global one.
    for state in run.states:
        check("score", state)
    flips = [
        sum(int((state[n].sign() != after[n].sign()).sum()) for n in strategy.masks)
        for state, after in zip(run.states, run.states[1:], strict=False)
    ]
    assert all(flips)


METRICS = {
    "num-examples",
    "loss",
    "examples-seen",
    "flops",
    "peak-memory-bytes",
    "peak-rss",
    "train-seconds",
    "checksum",
    "test-examples",
    "test-accuracy",
}


def test_a_reply_holds_signs_and_nothing_that_could_be_a_weight(made):
    kept = sum(made.strategy.masks.kept.values())
    for _, reply in made.trained():
        assert set(reply.content) == {"arrays", "metrics"}
        assert set(reply.content["metrics"]) == METRICS
        lists = [name for name, value in reply.content["metrics"].items() if isinstance(value, list)]
        assert lists == ["test-accuracy"]
        assert len(reply.content["metrics"]["test-accuracy"]) == 2
        (name, array), *others = reply.content["arrays"].items()
        assert (name, others) == ("values", [])
        # An .npy header has 128 bytes; the version and the codes of the layers have the rest.
        assert len(array.data) <= -(-kept // 8) + 4 * statistics(made) + 128 + 24


@pytest.mark.parametrize(
    ("options", "model", "held_out"),
    [
        ({}, {"name": "cnn"}, 0.0),
        ({}, {"name": "cnn"}, 0.25),
        (TOLD, {"name": "cnn", "width": 0.25}, 0.25),
        (TOLD, {"name": "resnet18", "width": 0.25}, 0.25),
    ],
    ids=["CNN", "CNN, held out", "small CNN, all told", "ResNet, all told"],
)
def test_a_kept_weight_takes_a_bit_each_way(options, model, held_out):
    strategy = {**OPTIONS, "iterations": 1, **options}
    run = federate(
        scenario(strategy, model=model, rounds=2).override(
            data__client_test_fraction=held_out,
            evaluation__clients=False,
            clients__count=2,
            clients__per_round=2,
            clients__training__epochs=1,
            data__train_examples=120,
            data__test_examples=20,
        )
    )
    kept = sum(run.strategy.masks.kept.values())
    bound = 1.02 * kept / 8 + 4 * statistics(run) + 1024
    messages = [(m, r) for m, r in run.trained() if m.metadata.group_id == "2"]
    assert len(messages) == 2
    for message, reply in messages:
        assert mask_bytes(message.content) == 0
        assert content_bytes(message.content) <= bound
        assert content_bytes(reply.content) <= bound
        assert ("test-accuracy" in reply.content["metrics"]) == (held_out > 0)


# The vote ---------------------------------------------------------------------------------------


def test_the_vote_of_three_clients():
    """Clients with 1, 2 and 3 examples, so that the third ties with the other two."""
    layout = Layout(
        {"w": torch.Size([7]), "mean": torch.Size([1])}, dict.fromkeys(("w", "mean"), torch.float32)
    )
    masks = Masks({"w": torch.tensor([True] * 6 + [False])})
    frozen = {"w": torch.arange(1.0, 8.0), "mean": torch.ones(1)}
    codec = SupermaskCodec(layout, masks, frozen, ["mean"], Grid(-1.0, 1))
    signs = {
        1: [+1, +1, -1, -1, +1, -1],
        2: [+1, +1, -1, -1, -1, +1],
        3: [-1, -1, +1, +1, -1, +1],
    }
    before = {"w": torch.tensor([1.0, -2, 3, -4, 5, -6, 0]), "mean": torch.zeros(1)}
    vote = SignVote()
    for _ in range(2):  # The second round knows nothing of the first.
        vote.begin(1, before, [])
        for examples, own in signs.items():
            values = torch.tensor([*own, 10 * examples], dtype=torch.float32)
            vote.add(TrainReply(examples, examples, 0.0, values, codec, {}, None))
        after = vote.finish()
    # Ties, ties, ties, ties, 1 against 5, 5 against 1; what is pruned stays 0.
    assert after["w"].tolist() == [1, -2, 3, -4, -5, 6, 0]
    assert after["mean"].tolist() == pytest.approx([10 * (1 + 4 + 9) / 6])


def weighted(entries):
    """The mean of what clients replied, by examples, in double precision."""
    total = sum(entry.weight for entry in entries)
    return sum(entry.weight * entry.found.double() for entry in entries) / total


def test_every_round_is_the_vote_of_its_clients(made):
    entries, ties = learned(made), 0
    for number in range(1, ROUNDS + 1):
        replies = [entry for entry in entries if entry.round == number]
        assert len(replies) == 4
        codec, vote = replies[0].uplink, weighted(replies)
        is_sign, before = codec.is_number, replies[0].given
        ties += int((vote[is_sign] == 0).sum())
        expected = torch.where(is_sign & (vote == 0), before, torch.where(is_sign, vote.sign(), vote).float())
        assert same_state(made.states[number], codec.unflatten(expected))
        for entry in entries:
            if entry.round == number + 1:
                assert torch.equal(entry.given, expected)
    assert ties > 50


def test_the_mean_is_sent_in_so_many_bits():
    run = federate(scenario({**OPTIONS, "aggregate": "mean", "vote_bits": 3}, rounds=2))
    first, second = ([e for e in learned(run) if e.round == number] for number in (1, 2))
    mean, is_sign = weighted(first), first[0].uplink.is_number
    torch.testing.assert_close(
        run.strategy.model.frozen(run.strategy.masks).uplink.flatten(run.states[1]).double(),
        mean,
        rtol=0,
        atol=1e-6,
    )
    assert first[0].uplink.grid == Grid(-1.0, 1)
    levels = torch.linspace(-1, 1, 8)
    for entry in second:
        assert ((entry.given[is_sign, None] - levels).abs().min(dim=1).values < 1e-6).all()
        distance = (entry.given.double() - mean)[is_sign].abs()
        assert distance.max() <= 1 / 7 + 1e-6
        torch.testing.assert_close(entry.given[~is_sign].double(), mean[~is_sign])


# Replies that are not right ---------------------------------------------------------------------


def payload_of(reply):
    return from_array("values", reply.content["arrays"]["values"], "|u1", (-1,)).tobytes()


def fewer_bits(made, payload):
    vectors = [np.ones(count - 1, dtype=np.bool_) for count in made.strategy.masks.kept.values()]
    vectors[0][::3] = vectors[1][::2] = False
    return payload[:8] + encode_vectors(vectors) + payload[-4 * statistics(made) :]


FORGED = {
    "too few bits": (fewer_bits, "too early|bytes too many|expected"),
    "of another mask": (
        lambda made, payload: bytes(8) + payload[8:],
        "numbers are for the mask 0000000000000000",
    ),
    "not finite": (
        lambda made, payload: payload[:-4] + np.float32(np.nan).tobytes(),
        "running_var' has a value that is not finite",
    ),
    "cut off": (lambda made, payload: payload[:-3], "ends 3 bytes too early"),
    "too long": (lambda made, payload: payload + b"123", "3 bytes too many"),
    "garbage": (lambda made, payload: payload[:8] + bytes(range(256)), "."),
    "empty": (lambda made, payload: b"", "ends 8 bytes too early"),
}


@pytest.fixture(scope="module")
def without_client_1():
    asked = scenario(rounds=1).override(evaluation__clients=False)
    return federate(asked, tamper=losing(1, ("train",), (1,)))


@pytest.mark.parametrize(("forge", "expected"), FORGED.values(), ids=FORGED)
def test_a_reply_that_is_not_right_is_counted_and_left_out(forge, expected, without_client_1):
    def tamper(message, reply):
        if (message.metadata.message_type, message.metadata.dst_node_id) != ("train", 3):
            return reply
        forged = np.frombuffer(forge(run, payload_of(reply)), dtype=np.uint8)
        return altered(reply, message, ArrayRecord({"values": to_array(forged)}))

    run = assemble(without_client_1.scenario, tamper=tamper)
    run.strategy.start(run.grid)
    failed = [task for task in run.tasks if task.status == "failed"]
    assert [(task.round, task.client, task.type) for task in failed] == [(1, 1, "train")]
    assert re.search(f"^WireError: .*({expected})", failed[0].reason)
    assert [record.clients_failed for record in run.rounds] == [0, 1]
    assert all(same_state(*pair) for pair in zip(run.states, without_client_1.states, strict=True))


# What is reported -------------------------------------------------------------------------------


def test_accuracies_are_those_of_the_models(made):
    module = Site(made.scenario, made.data).module
    entries, kinds = learned(made), ("personal_scores", "client_scores")
    for record, state in zip(made.rounds[1:], made.states[1:], strict=True):
        right = dict.fromkeys(kinds, 0.0)
        examples = 0
        for entry in (entry for entry in entries if entry.round == record.round):
            data = made.data.client(entry.client)
            for kind, model in zip(kinds, (entry.after, state), strict=True):
                set_state(module, model)
                accuracy = accuracy_of(made.strategy.task, module, data)
                right[kind] += accuracy * len(data.test)
                if kind == "personal_scores":
                    assert entry.reply.content["metrics"]["test-accuracy"] == [
                        round(accuracy * len(data.test)),
                        len(data.test),
                    ]
            examples += len(data.test)
        for kind in kinds:
            assert getattr(record, kind)["accuracy"] == pytest.approx(right[kind] / examples, abs=1e-9)
        assert record.density == pytest.approx(0.3, abs=1e-3)


def test_it_learns():
    """Chance is 0.1."""
    strategy, model = {**OPTIONS, "density": 0.5}, {"name": "mlp", "width": 0.5}
    run = federate(scenario(strategy, model=model, rounds=4, data__train_examples=800))
    assert run.rounds[0].scores["accuracy"] < 0.3
    assert run.rounds[-1].scores["accuracy"] > 0.5
    assert run.rounds[-1].personal_scores["accuracy"] > 0.4


# Options ----------------------------------------------------------------------------------------


def test_dense_parts_are_trained_and_sent_where_that_is_asked_for():
    run = federate(scenario({**OPTIONS, "train_dense": True}, rounds=2))
    parameters = {name for name, _ in run.strategy.module.named_parameters()}
    dense = parameters - set(run.strategy.masks)
    assert dense == {
        *(f"block{i}.norm.{kind}" for i in (1, 2) for kind in ("weight", "bias")),
        "hidden.linear.bias",
        "head.weight",
        "head.bias",
    }
    entries = [entry for entry in learned(run) if entry.round == 1]
    total = sum(entry.weight for entry in entries)
    for name in dense:
        assert all((entry.after[name] != run.states[0][name]).any() for entry in entries)
        mean = sum(entry.weight * entry.after[name].double() for entry in entries) / total
        torch.testing.assert_close(run.states[1][name].double(), mean, rtol=1e-6, atol=1e-7)
    assert all(
        torch.equal(e.before[n], run.states[1][n]) for e in learned(run) if e.round == 2 for n in dense
    )


def test_what_is_not_learned_stays_as_it_was_built(made):
    built = assemble(made.scenario).strategy.state
    still = {n for n in built if n not in made.strategy.masks and not n.endswith(("_mean", "_var"))}
    assert "head.bias" in still
    for state in made.states:
        assert all(torch.equal(state[name], built[name]) for name in still)
    # And nothing of it is sent: what travels is the signs and the statistics.
    codec = learned(made)[0].uplink
    assert codec.size == sum(made.strategy.masks.kept.values()) + statistics(made)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({"name": "mlp", "width": 0.2}, "digits"),
        ({"name": "cnn", "width": 0.25, "batch_norm": False}, "digits"),
        ({"name": "lenet5"}, "supermasked:enlarged"),
    ],
    ids=["mlp", "cnn", "lenet5"],
)
def test_models_without_batch_norm(model, data):
    run = federate(scenario(model=model, rounds=2, data__name=data))
    assert [record.clients_failed for record in run.rounds] == [0, 0, 0]
    assert learned(run)[0].uplink.size == sum(run.strategy.masks.kept.values())
    assert all(record.client_scores["accuracy"] is not None for record in run.rounds[1:])


def test_neither_order_nor_lost_state_changes_a_run(made):
    assert_order_does_not_matter(made.scenario, made)

    def forget(message, context):
        if message.metadata.message_type != "query.facts":
            context.state.clear()

    assert same_state(federate(made.scenario, before=forget).strategy.state, made.strategy.state)
