"""Runs of strategies whose masks move: what was sent and replied under which masks, and what must hold.

Everything is read off the messages, not off the strategy; averages are computed weight by weight.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from inprocess import assemble, same_state

from fedprune.sparsity.masks import Masks
from fedprune.wire import StateCodec, decode_masks, take_masks


class Watched:
    """A federation that was run, with the masks at the end of every round."""

    def __init__(self, scenario, **options):
        self.masks = []
        self.made = assemble(scenario, **options)
        self.made.strategy.federation.listeners.append(self)
        self.made.strategy.start(self.made.grid)

    def on_task(self, task):
        pass

    def on_round(self, record):
        self.masks.append(self.made.strategy.masks)


@dataclass
class Trained:
    """A reply that was accepted: what its client was sent, and what it made of it."""

    round: int
    client: int
    weight: int
    sent: Masks
    masks: Masks
    state: dict
    message: Message
    reply: Message


def trained(made):
    """Return the accepted training replies, by round and client."""
    accepted = {(t.round, t.client) for t in made.tasks if (t.type, t.status) == ("train", "ok")}
    shapes, layout = made.strategy.layout.shapes, made.strategy.layout
    numbers = {facts.node_id: number for number, facts in made.strategy.clients.items()}
    known, found = {"": Masks()}, []
    for message, reply in made.grid.exchanges:
        arrays = message.content.array_records.get("arrays")
        if arrays is None:
            continue
        version = message.content["config"]["mask-version"]
        if (payload := take_masks(arrays)) is not None:
            known[version] = decode_masks(payload, shapes, version=version)
        if reply is None or not reply.has_content() or message.metadata.message_type != "train":
            continue
        server_round, client = int(message.metadata.group_id), numbers[message.metadata.dst_node_id]
        if (server_round, client) not in accepted:
            continue
        sent = masks = known[version]
        if (payload := take_masks(reply.content["arrays"])) is not None:
            masks = decode_masks(payload, shapes, sent)
            known[masks.version] = masks
        if (chosen := reply.content.config_records.get("next-masks")) is not None:
            own = decode_masks(chosen["payload"], shapes, sent)
            known[own.version] = own
        codec = StateCodec(layout, masks, made.scenario.wire.values)
        state = codec.unflatten(codec.decode(reply.content["arrays"]))
        weight = reply.content["metrics"]["num-examples"]
        found.append(Trained(server_round, client, weight, sent, masks, state, message, reply))
    return sorted(found, key=lambda entry: (entry.round, entry.client))


def average(before, replies):
    """Return the mean of every weight over who kept it, by examples; kept by nobody, what it was."""
    result = {}
    for name, old in before.items():
        total, weights = np.zeros(old.shape), np.zeros(old.shape)
        for entry in replies:
            keeps = entry.masks[name].numpy() if name in entry.masks else np.ones(old.shape, bool)
            total += np.where(keeps, entry.weight * entry.state[name].double().numpy(), 0)
            weights += entry.weight * keeps
        mean = np.where(weights > 0, total / np.maximum(weights, 1), old.double().numpy())
        result[name] = torch.from_numpy(mean).float()
    return result


def assert_sound(watched, rounds):
    """What holds for every method: zeros, averages, and the ledger; returns the replies."""
    made, masks = watched.made, watched.masks
    replies = trained(made)
    assert len(made.states) == len(masks) == rounds + 1
    for entry in replies:
        for name, mask in entry.masks.items():
            assert not entry.state[name][~mask].any(), name
            assert entry.state[name][mask].any(), name
    for number, (state, kept) in enumerate(zip(made.states, masks, strict=True)):
        for name, mask in kept.items():
            assert not state[name][~mask].any(), (number, name)
        assert made.rounds[number].density == kept.density
        if number == 0:
            continue
        expected = average(made.states[number - 1], [e for e in replies if e.round == number])
        for name, tensor in expected.items():
            if name in kept:
                tensor = torch.where(kept[name], tensor, torch.zeros(()))
            torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-9, msg=f"{number} {name}")
    assert_ledger(made)
    return replies


def assert_ledger(made):
    """The bytes of each task are those that Flower serializes; a message may have been sent again."""
    sent, replied = Counter(), {}
    for message, reply in made.grid.exchanges:
        told = message.metadata
        task = told.message_type, int(told.group_id), told.dst_node_id
        sent[task] += flower_bytes(message.content)
        replied[task] = flower_bytes(reply.content) if reply is not None and reply.has_content() else 0
    clients = made.strategy.clients
    down = {(t.type, t.round, clients[t.client].node_id): t.bytes_down for t in made.tasks}
    up = {(t.type, t.round, clients[t.client].node_id): t.bytes_up for t in made.tasks}
    assert (down, up) == (dict(sent), replied)
    assert len(down) == len(made.tasks)


def flower_bytes(content):
    """What Flower itself serializes of a content."""
    return sum(len(part.deflate()) for part in get_all_nested_objects(content).values())


def assert_order_does_not_matter(scenario, plain):
    """Other node ids and another order of replies give the same run."""
    draw = random.Random(5)
    count = scenario.clients.count
    numbers = draw.sample(range(count), count)
    node_ids = [draw.getrandbits(63) for _ in numbers]
    other = assemble(scenario, numbers=numbers, node_ids=node_ids, shuffle=random.Random(1))
    other.strategy.start(other.grid)
    assert same_state(plain.strategy.state, other.strategy.state)
    for one, two in ((plain.rounds, other.rounds), (plain.tasks, other.tasks)):
        assert [replace(r, wall_seconds=0.0) for r in one] == [replace(r, wall_seconds=0.0) for r in two]


def losing(client, kinds, rounds):
    """Return a tamper by which a client's replies to these kinds of messages get lost in these rounds."""

    def tamper(message, reply):
        lost = message.metadata.dst_node_id == client + 2 and message.metadata.message_type in kinds
        return None if lost and int(message.metadata.group_id) in rounds else reply

    return tamper
