"""DisPFL and FedSpa: clients swap for the next time as RigL does; the server averages by each one's rule."""

from __future__ import annotations

import copy
import math
from itertools import islice

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from inprocess import federate, plan, same_state
from masked import Watched, assert_ledger, assert_order_does_not_matter, average, losing, trained
from torch.nn import functional

from fedprune import seeds
from fedprune.client.site import Site
from fedprune.data import batches
from fedprune.wire import decode_masks, encode_masks, set_state

ROUNDS = 3


def scenario(name, **changes):
    options = {"name": name, "density": 0.2, "alike": False, **changes.pop("options", {})}
    return plan(strategy=options, rounds=ROUNDS, **changes)


@pytest.fixture(scope="module", params=["dispfl", "fedspa"])
def watched(request):
    return Watched(scenario(request.param), tamper=losing(1, ("train",), (2,)))


def next_masks(entry):
    shapes = {name: mask.shape for name, mask in entry.sent.items()}
    return decode_masks(entry.reply.content["next-masks"]["payload"], shapes, entry.sent)


def test_a_client_is_sent_what_it_chose_last(watched):
    last = {}
    for entry in trained(watched.made):
        assert entry.masks == entry.sent  # Values travel under the masks that the client trained with.
        assert entry.sent == last.get(entry.client, entry.sent)
        last[entry.client] = next_masks(entry)
        assert last[entry.client].kept == entry.sent.kept
        assert last[entry.client] != entry.sent
    assert len(last) > 1
    union = watched.masks[-1]
    held = [watched.made.strategy.masks_for(number) for number in range(4)]
    for name, mask in union.items():
        assert torch.equal(mask, torch.stack([masks[name] for masks in held]).any(0))
    assert_ledger(watched.made)


def test_the_server_averages_as_the_method_says(watched):
    made = watched.made
    for number in range(1, ROUNDS + 1):
        replies = [entry for entry in trained(made) if entry.round == number]
        before = made.states[number - 1]
        if made.scenario.strategy.name == "dispfl":
            expected = average(before, replies)
        else:
            weight, expected = sum(entry.weight for entry in replies), {}
            for name, old in before.items():
                change = np.zeros(old.shape)
                for entry in replies:
                    held = entry.sent[name].numpy() if name in entry.sent else np.ones(old.shape, bool)
                    change += entry.weight / weight * (entry.state[name] - old).double().numpy() * held
                expected[name] = (old.double() + torch.from_numpy(change)).float()
        for name, tensor in expected.items():
            if name in watched.masks[number]:
                tensor = torch.where(watched.masks[number][name], tensor, torch.zeros(()))
            torch.testing.assert_close(made.states[number][name], tensor, rtol=1e-5, atol=1e-7)


def swapped_by_rigl(made, entry, share, count):
    """RigL's swap of the model that a client replied, by one backward pass over the whole of it."""
    site, data = Site(made.scenario, made.data), made.data.client(entry.client)
    module = copy.deepcopy(site.module).train()
    set_state(module, entry.state)
    generator = seeds.torch_generator(made.scenario.seed, "growth", entry.round, entry.client)
    picked = list(islice(batches(data.examples, data.train, site.task, 16, generator=generator), count))
    for x, y in picked:
        examples = sum(len(y) for _, y in picked)
        (functional.cross_entropy(module(x), y, reduction="sum") / examples).backward()
    found = {}
    for name, mask in entry.sent.items():
        weight, kept = module.get_parameter(name), np.flatnonzero(mask.numpy())
        size, steep = weight.detach().abs().flatten().numpy(), weight.grad.abs().flatten().numpy()
        number = math.floor(share * len(kept))
        left = set(kept) - set(kept[np.argsort(size[kept], kind="stable")[:number]])
        free = np.array(sorted(set(range(mask.numel())) - left))
        found[name] = left | set(free[np.argsort(-steep[free], kind="stable")[:number]])
    return found


def test_a_client_swaps_after_training_as_rigl_does():
    watched = Watched(scenario("dispfl", options={"growth_batches": 2}))
    first = [entry for entry in trained(watched.made) if entry.round == 2]
    share = 0.5 * (1 + math.cos(math.pi / 3)) / 2
    for entry in first:
        found = next_masks(entry)
        for name, expected in swapped_by_rigl(watched.made, entry, share, 2).items():
            assert set(np.flatnonzero(found[name].numpy())) == expected, name


def test_runs_do_not_depend_on_the_order_of_replies(watched):
    plain = federate(watched.made.scenario)
    assert_order_does_not_matter(plain.scenario, plain)


def test_masks_stay_where_nothing_is_swapped_and_clients_start_alike():
    made = Watched(scenario("fedspa", options={"swap_fraction": 0.0, "alike": True}))
    assert len({entry.sent.version for entry in trained(made.made)}) == 1
    assert made.masks[0] == made.masks[ROUNDS]
    assert made.masks[0].density == pytest.approx(0.2, abs=1e-3)
    same = Watched(scenario("dispfl", options={"swap_fraction": 0.0, "alike": True}))
    for name, tensor in made.made.strategy.state.items():
        torch.testing.assert_close(tensor, same.made.strategy.state[name], rtol=1e-5, atol=1e-6)


def test_next_masks_that_cannot_be_right_are_refused(watched):
    def tamper(message, reply):
        if message.metadata.message_type != "train" or message.metadata.dst_node_id != 3:
            return reply
        sent = watched.made.strategy.whole
        content = {**reply.content, "next-masks": ConfigRecord({"payload": encode_masks(sent)})}
        return Message(RecordDict(content), reply_to=message)

    name = watched.made.scenario.strategy.name
    made = federate(scenario(name, clients__per_round=4), tamper=tamper)
    failed = [task for task in made.tasks if task.status == "failed"]
    assert {task.client for task in failed} == {1}
    assert "own mask of" in failed[0].reason
    lost = losing(1, ("train",), (1, 2, 3))
    assert same_state(
        made.strategy.state, federate(scenario(name, clients__per_round=4), tamper=lost).strategy.state
    )
