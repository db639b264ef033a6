"""Runs of strategies whose clients learn supermasks, read off the messages."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from flwr.app import Message, RecordDict

from fedprune.data.dataset import Examples
from fedprune.data.source import Request, Source
from fedprune.data.sources import digits
from fedprune.sparsity.masks import Masks
from fedprune.wire import SupermaskCodec, decode_masks, take_masks


@dataclass
class Learned:
    """A reply to a training message: under which masks a client was sent what, and what it learned."""

    round: int
    client: int
    weight: int
    sent: Masks
    masks: Masks
    downlink: SupermaskCodec
    uplink: SupermaskCodec
    given: torch.Tensor
    found: torch.Tensor
    message: Message
    reply: Message

    @property
    def before(self):
        """The state that was sent."""
        return self.downlink.unflatten(self.given)

    @property
    def after(self):
        """The state that was learned."""
        return self.uplink.unflatten(self.found)


def learned(made):
    """Return the accepted training replies, by round and client."""
    strategy, known, found = made.strategy, {}, []
    accepted = {(t.round, t.client) for t in made.tasks if (t.type, t.status) == ("train", "ok")}
    numbers = {facts.node_id: number for number, facts in strategy.clients.items()}
    for message, reply in made.grid.exchanges:
        if (arrays := message.content.array_records.get("arrays")) is None:
            continue
        version = message.content["config"]["mask-version"]
        if (payload := take_masks(arrays)) is not None:
            known[version] = decode_masks(payload, strategy.layout.shapes, version=version)
        server_round, client = int(message.metadata.group_id), numbers[message.metadata.dst_node_id]
        if message.metadata.message_type != "train" or (server_round, client) not in accepted:
            continue
        sent = masks = known[version]
        answer = reply.content["arrays"]
        if (payload := take_masks(answer)) is not None:
            masks = decode_masks(payload, strategy.layout.shapes, sent)
            known[masks.version] = masks
        down, up = strategy.model.frozen(sent).downlink, strategy.model.frozen(masks).uplink
        weight = reply.content["metrics"]["num-examples"]
        entry = Learned(
            server_round,
            client,
            weight,
            sent,
            masks,
            down,
            up,
            down.decode(arrays),
            up.decode(answer),
            message,
            reply,
        )
        found.append(entry)
    return sorted(found, key=lambda entry: (entry.round, entry.client))


def statistics(made):
    """Return how many batch-norm statistics the model has."""
    return sum(s.numel() for n, s in made.strategy.layout.shapes.items() if n.endswith(("_mean", "_var")))


def entropy_bytes(bits):
    """Return the least that bits of this density take on average, in bytes."""
    ones = bits.double().mean().item()
    return -sum(p * math.log2(p) for p in (ones, 1 - ones) if p) * bits.numel() / 8


def altered(reply, message, arrays):
    """Return a reply with other arrays."""
    return Message(RecordDict({**reply.content, "arrays": arrays}), reply_to=message)


def enlarged(request: Request) -> Source:
    """A data source: digits of 16x16 pixels, which LeNet-5 can take."""
    made = digits(request)

    def grown(images: Examples) -> Examples:
        return Examples(images.inputs.repeat(2, axis=2).repeat(2, axis=3), images.targets)

    return Source(grown(made.train), grown(made.test), made.class_names, made.mean, made.std)
