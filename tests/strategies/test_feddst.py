"""FedDST: clients swap as RigL does, the server averages overlaps and prunes back; what is refused."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict
from inprocess import federate, plan, same_state
from masked import Watched, assert_order_does_not_matter, assert_sound, average, losing, trained
from torch.nn import functional

from fedprune.clients import sparse
from fedprune.sparsity.masks import Masks
from fedprune.strategies.feddst import FedDST
from fedprune.wire import encode_masks, mask_bytes, with_masks

OPTIONS = {"name": "feddst", "density": 0.2, "adjust_every": 2, "stop_adjusting_at": 4, "alpha": 0.4}
ROUNDS = 5


def scenario(**changes):
    return plan(strategy={**OPTIONS, **changes.pop("options", {})}, rounds=ROUNDS, **changes)


@pytest.fixture(scope="module")
def watched():
    return Watched(scenario())


def test_a_run_is_sound(watched):
    replies = assert_sound(watched, ROUNDS)
    assert {entry.round for entry in replies if entry.masks != entry.sent} == {2}  # at round 4 the share is 0
    assert_order_does_not_matter(watched.made.scenario, watched.made)


def test_every_mask_keeps_every_layers_number(watched):
    first = watched.masks[0]
    assert first.density == pytest.approx(0.2, abs=1e-3)
    assert all(masks.kept == first.kept for masks in watched.masks)
    assert all(entry.masks.kept == first.kept for entry in trained(watched.made))


def test_the_server_keeps_the_largest_of_each_layer(watched):
    made = watched.made
    mean = average(made.states[1], [entry for entry in trained(made) if entry.round == 2])
    for name, before in watched.masks[1].items():
        size = mean[name].abs().flatten().numpy()
        largest = np.sort(np.argsort(-size, kind="stable")[: int(before.sum())])
        assert np.array_equal(np.flatnonzero(watched.masks[2][name].numpy()), largest), name
    assert watched.masks[2] != watched.masks[1]
    assert [m == watched.masks[2] for m in watched.masks[3:]] == [True] * 3


def test_what_grew_somewhere_survives_the_server(watched):
    """Clients train on after the swap, so a grown weight is not 0 when the server prunes."""
    before, after = watched.masks[1], watched.masks[2]
    assert sum(int((after[name] & ~before[name]).sum()) for name in before) > 0


def test_a_client_swaps_as_rigl_does(monkeypatch):
    seen = []
    inner = sparse.largest_gradients

    def watching(module, name, picked, mask, count, loss):
        picked = list(picked)
        if not seen or seen[-1][2] == name:
            seen.append((copy.deepcopy(module), picked, name))
        return inner(module, name, picked, mask, count, loss)

    monkeypatch.setattr(sparse, "largest_gradients", watching)
    watched = Watched(plan(strategy={**OPTIONS, "growth_batches": 2}, rounds=2))
    replies = [entry for entry in trained(watched.made) if entry.round == 2]
    share = 0.4 * (1 + math.cos(math.pi * 2 / 4)) / 2
    assert len(replies) == len(seen) == 3
    for entry, (module, picked, _) in zip(replies, seen, strict=True):
        module.zero_grad()
        module.train()
        examples = sum(len(y) for _, y in picked)
        for x, y in picked:
            (functional.cross_entropy(module(x), y, reduction="sum") / examples).backward()
        for name, mask in entry.sent.items():
            weight, slope = module.get_parameter(name), module.get_parameter(name).grad
            kept = np.flatnonzero(mask.numpy())
            count = math.floor(share * len(kept))
            size, steep = weight.detach().abs().flatten().numpy(), slope.abs().flatten().numpy()
            left = set(kept) - set(kept[np.argsort(size[kept], kind="stable")[:count]])
            free = np.array(sorted(set(range(mask.numel())) - left))
            grown = free[np.argsort(-steep[free], kind="stable")[:count]]
            assert set(np.flatnonzero(entry.masks[name].numpy())) == left | set(grown), name
            assert count > 0


def test_training_goes_on_where_it_was_interrupted():
    batches = iter([(torch.zeros(1), torch.zeros(size)) for size in (4, 4, 3)])
    assert [len(y) for _, y in sparse.up_to(batches, 5.5)] == [4, 4]
    assert [len(y) for _, y in batches] == [3]


@pytest.mark.parametrize("server_round", [2, 3])
def test_a_lost_reply_leaves_the_average_of_the_others(server_round):
    """After round 2 the client holds a mask that the server never saw."""
    tamper = losing(1, ("train",), (server_round,))
    watched = Watched(scenario(clients__per_round=4), tamper=tamper)
    replies = assert_sound(watched, ROUNDS)
    by_round = {n: [e.client for e in replies if e.round == n] for n in range(1, ROUNDS + 1)}
    assert by_round == {n: [0, 2, 3] if n == server_round else [0, 1, 2, 3] for n in by_round}


def test_a_mask_is_sent_as_what_changed(watched):
    for entry in trained(watched.made):
        if entry.masks != entry.sent:
            assert 0 < mask_bytes(entry.reply.content) <= len(encode_masks(entry.masks, entry.sent))
        else:
            assert mask_bytes(entry.reply.content) == 0


def test_a_client_that_lost_its_state_changes_nothing(watched):
    def before(message, context):
        if message.metadata.message_type == "train":
            context.state.clear()

    assert same_state(federate(scenario(), before=before).strategy.state, watched.made.strategy.state)


def moved(masks):
    return Masks({name: mask.flatten().roll(1).reshape(mask.shape) for name, mask in masks.items()})


def fuller(masks):
    name = next(iter(masks))
    return Masks({**masks, name: torch.ones_like(masks[name])})


MASKS = {
    "not asked for": (1, lambda sent: encode_masks(moved(sent), sent), "were not asked for"),
    "too many": (2, lambda sent: encode_masks(fuller(sent)), r"keeps \d+ weights, expected \d+"),
    "one too few": (2, lambda sent: encode_masks(Masks(dict(list(sent.items())[1:]))), "own masks are for"),
    "garbage": (2, lambda sent: b"\x07masks", "begins with 7"),
    "of others": (2, lambda sent: encode_masks(sent, moved(sent)), "builds on masks of version"),
    "nothing": (2, lambda sent: b"", "payload"),
}


@pytest.mark.parametrize(("server_round", "forge", "expected"), MASKS.values(), ids=MASKS)
def test_a_mask_that_is_not_allowed_is_refused(server_round, forge, expected, watched):
    def tamper(message, reply):
        told = message.metadata
        if (told.message_type, told.group_id, told.dst_node_id) != ("train", str(server_round), 3):
            return reply
        sent = watched.masks[server_round - 1]
        arrays = with_masks(reply.content["arrays"], forge(sent))
        return Message(RecordDict({**reply.content, "arrays": arrays}), reply_to=message)

    made = federate(plan(strategy=OPTIONS, rounds=2, clients__per_round=4), tamper=tamper)
    failed = [task for task in made.tasks if task.status == "failed"]
    assert [(task.round, task.client) for task in failed] == [(server_round, 1)]
    assert re.search(f"^WireError: .*{expected}", failed[0].reason)
    absent = losing(1, ("train",), (server_round,))
    lost = federate(plan(strategy=OPTIONS, rounds=2, clients__per_round=4), tamper=absent)
    assert same_state(made.strategy.state, lost.strategy.state)


def test_options_that_do_not_fit_are_found():
    def found(**options):
        made = FedDST.Options(density=0.1, **options)
        return [key for key, _ in FedDST.validation_errors(plan(), made)]

    assert found() == []
    assert found(distribution="none") == ["distribution"]
    assert found(aggregator="flwr.serverapp.strategy.FedAdam") == ["aggregator"]
