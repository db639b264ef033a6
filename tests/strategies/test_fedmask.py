"""FedMask: clients prune once, and exchange masks of what they kept; overlaps are averaged."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from inprocess import accuracy_of, assemble, federate, plan, same_state
from masked import Watched, assert_order_does_not_matter, losing
from supermasked import altered, learned, statistics

from fedprune.client.site import Site
from fedprune.sparsity.masks import Masks
from fedprune.wire import (
    content_bytes,
    decode_masks,
    encode_masks,
    mask_bytes,
    set_state,
    take_masks,
    with_masks,
)

OPTIONS = {"name": "fedmask", "density": 0.4}
TRAINING = {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
ROUNDS = 4


def scenario(strategy=OPTIONS, **changes):
    changes = {"rounds": ROUNDS, "clients__training": TRAINING, **changes}
    return plan(strategy=strategy, data__client_test_fraction=0.25, evaluation__clients=True, **changes)


@pytest.fixture(scope="module")
def watched():
    """Three of four clients take part in a round, so that some prune later than others."""
    return Watched(scenario({**OPTIONS, "vote_bits": 4}))


def test_a_client_prunes_each_layer_once_and_stays(watched):
    own = {}
    for entry in learned(watched.made):
        whole = entry.client not in own
        assert entry.sent == own.get(entry.client, watched.masks[0])
        assert (mask_bytes(entry.reply.content) > 0) == whole
        assert (mask_bytes(entry.message.content) > 0) == whole
        for name, mask in entry.masks.items():
            assert not (mask & ~entry.sent[name]).any()
            assert abs(entry.masks.kept[name] - 0.4 * mask.numel()) <= 1
        assert entry.masks.density == pytest.approx(0.4, abs=1e-3)
        own[entry.client] = entry.masks
    assert sorted(own) == [0, 1, 2, 3]
    assert len(set(own.values())) == 4


def test_every_entry_is_the_average_over_who_holds_it(watched):
    made, entries = watched.made, learned(watched.made)
    factors = made.strategy.model.frozen(watched.masks[0]).factors
    for number in range(1, ROUNDS + 1):
        replies = [entry for entry in entries if entry.round == number]
        for name, before in made.states[number - 1].items():
            total, weights = (np.zeros(before.shape) for _ in range(2))
            for entry in replies:
                held = entry.masks[name].numpy() if name in factors else np.ones(before.shape, bool)
                if name not in factors and not name.endswith(("_mean", "_var")):
                    assert torch.equal(entry.after[name], before)
                total += np.where(held, entry.weight * entry.after[name].double().numpy(), 0)
                weights += entry.weight * held
            mean = np.where(weights > 0, total / np.maximum(weights, 1), before.double().numpy())
            if name in factors:
                mean *= watched.masks[number][name].numpy()
            np.testing.assert_allclose(made.states[number][name], mean, rtol=1e-6, atol=1e-9)


def test_the_global_model_has_what_any_client_keeps(watched):
    own = dict.fromkeys(range(4), watched.masks[0])
    for number in range(1, ROUNDS + 1):
        own |= {entry.client: entry.masks for entry in learned(watched.made) if entry.round == number}
        for name, mask in watched.masks[number].items():
            assert torch.equal(mask, torch.stack([masks[name] for masks in own.values()]).any(dim=0))
    assert 0.4 < watched.masks[-1].density < 1


def test_a_client_is_sent_the_rounded_average_of_what_it_holds(watched):
    states = watched.made.states
    for entry in learned(watched.made):
        state, levels = states[entry.round - 1], torch.linspace(0, 1, 16)
        for name, numbers in entry.downlink.numbers(entry.given).items():
            held = entry.sent[name]
            factor = watched.made.strategy.model.frozen(watched.masks[0]).factors[name][held]
            average = state[name][held] / factor
            nearest = levels[(average[:, None] - levels).abs().argmin(dim=1)]
            halfway = ((15 * average) % 1 - 0.5).abs() < 1e-4  # These go up.
            torch.testing.assert_close(numbers[~halfway], nearest[~halfway], rtol=0, atol=1e-6)
            assert ((numbers - average)[halfway] > 0).all()


def test_a_bit_each_way():
    run = federate(scenario(clients__per_round=4, rounds=2, model={"name": "cnn"}))
    for entry in learned(run):
        if entry.round == 2:
            bound = 1.02 * sum(entry.masks.kept.values()) / 8 + 4 * statistics(run) + 1024
            assert mask_bytes(entry.message.content) == 0
            assert content_bytes(entry.message.content) <= bound
            assert content_bytes(entry.reply.content) <= bound


def test_accuracies_are_those_of_each_clients_own_model(watched):
    made, own, entries = watched.made, {}, learned(watched.made)
    module = Site(made.scenario, made.data).module
    for record, state in zip(made.rounds[1:], made.states[1:], strict=True):
        right = {"personal": 0.0, "client": 0.0}
        examples = 0
        for entry in (entry for entry in entries if entry.round == record.round):
            own[entry.client] = entry.masks
            down = made.strategy.model.frozen(entry.masks).downlink
            evaluated = down.unflatten(down.decode(down.encode(down.flatten(state))))
            data = made.data.client(entry.client)
            for kind, model in (("personal", entry.after), ("client", evaluated)):
                set_state(module, model)
                accuracy = accuracy_of(made.strategy.task, module, data)
                right[kind] += accuracy * len(data.test)
            examples += len(data.test)
        assert record.personal_scores["accuracy"] == pytest.approx(right["personal"] / examples, abs=1e-9)
        assert record.client_scores["accuracy"] == pytest.approx(right["client"] / examples, abs=1e-9)


def test_a_lost_reply_takes_the_clients_pruning_with_it():
    """The client holds masks, and scores, that the server never saw; it is sent the former masks again."""
    strategy = {**OPTIONS, "keep_scores": True}
    run = Watched(scenario(strategy, clients__per_round=4), tamper=losing(1, ("train",), (1,)))
    entries = [entry for entry in learned(run.made) if entry.client == 1]
    assert [entry.round for entry in entries] == [2, 3, 4]
    assert entries[0].sent == run.masks[0]
    assert entries[0].masks != entries[0].sent
    assert entries[1].sent == entries[2].masks == entries[0].masks
    assert [record.clients_failed for record in run.made.rounds] == [0, 1, 0, 0, 0]


def fewer(masks):
    name = next(iter(masks))
    mask = masks[name].clone()
    mask.view(-1)[int(mask.flatten().nonzero()[0])] = False
    return Masks({**masks, name: mask})


def others(masks):
    """Masks of the same size, of other weights than were kept."""
    return Masks({name: mask.flatten().roll(1).reshape(mask.shape) for name, mask in masks.items()})


@pytest.fixture(scope="module")
def without_client_1():
    """Runs in which the reply of client 1 gets lost in a round, by that round."""
    asked = scenario(rounds=2, clients__per_round=4).override(evaluation__clients=False)
    return {number: federate(asked, tamper=losing(1, ("train",), (number,))) for number in (1, 2)}


MASKS = {
    "too few": (1, fewer, r"keeps \d+ weights, expected \d+"),
    "whole": (1, lambda masks: Masks({n: torch.ones_like(m) for n, m in masks.items()}), "keeps"),
    "not nested": (2, others, "keeps a weight that was pruned"),
    "fewer still": (2, fewer, r"keeps \d+ weights, expected \d+"),
    "one layer": (2, lambda masks: Masks({"head.weight": masks["head.weight"]}), "own masks are for"),
    "of values for others": (1, others, "numbers are for the mask"),
}


@pytest.mark.parametrize(("server_round", "change", "expected"), MASKS.values(), ids=MASKS)
def test_own_masks_that_are_not_allowed_are_refused(server_round, change, expected, without_client_1):
    def tamper(message, reply):
        told = message.metadata
        if (told.message_type, told.dst_node_id) != ("train", 3):
            return reply
        arrays = reply.content["arrays"]
        if (payload := take_masks(arrays)) is not None:
            known.append(decode_masks(payload, run.strategy.layout.shapes, run.strategy.masks_for(1)))
        if told.group_id != str(server_round):
            return reply
        values = ArrayRecord({"values": arrays["values"]})
        return altered(reply, message, with_masks(values, encode_masks(change(known[-1]))))

    known = []
    run = assemble(without_client_1[server_round].scenario, tamper=tamper)
    run.strategy.start(run.grid)
    failed = [task for task in run.tasks if task.status == "failed"]
    assert [(task.round, task.client) for task in failed] == [(server_round, 1)]
    assert re.search(f"^WireError: .*{expected}", failed[0].reason)
    assert same_state(run.strategy.state, without_client_1[server_round].strategy.state)


def test_neither_order_nor_lost_state_changes_a_run(watched):
    assert_order_does_not_matter(watched.made.scenario, watched.made)

    def forget(message, context):
        if message.metadata.message_type != "query.facts":
            context.state.clear()

    again = federate(watched.made.scenario, before=forget)
    assert same_state(again.strategy.state, watched.made.strategy.state)


def test_the_rest_is_trained_where_that_is_asked_for():
    run = federate(scenario({**OPTIONS, "train_dense": True, "keep": ["first"]}, rounds=2))
    assert list(run.strategy.masks) == ["block2.conv.weight", "hidden.linear.weight"]
    entry = learned(run)[0]
    still = run.strategy.model.frozen(run.strategy.masks).state["block1.conv.weight"]
    assert torch.equal(run.strategy.state["block1.conv.weight"], still)
    for name in ("head.weight", "head.bias", "hidden.linear.bias", "block1.norm.weight"):
        assert (entry.after[name] != entry.before[name]).any()


@pytest.mark.parametrize(
    "model", [{"name": "mlp", "width": 0.2}, {"name": "cnn", "batch_norm": False, "width": 0.25}]
)
def test_models_without_batch_norm(model):
    run = federate(scenario(model=model, rounds=2))
    assert [record.clients_failed for record in run.rounds] == [0, 0, 0]
    assert learned(run)[-1].uplink.size == sum(learned(run)[-1].masks.kept.values())


def test_training_costs_what_it_was_trained_under(watched):
    cost = assemble(scenario()).strategy.cost
    for entry in learned(watched.made):
        metrics = entry.reply.content.metric_records["metrics"]
        own = cost.training_flops(entry.sent, metrics["examples-seen"])
        assert own <= metrics["flops"] < 1.1 * own
