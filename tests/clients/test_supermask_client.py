"""The supermask client: local training of scores, which of them it keeps, and what they cost."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from inprocess import assemble, copied, plan
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from fedprune import seeds
from fedprune.clients.supermask import scores_of
from fedprune.costs.memory import optimizer_slots, step_memory
from fedprune.data import batches
from fedprune.protocol.client_masks import OneShotRequest
from fedprune.sparsity.supermasks import threshold
from fedprune.wire import CODEC, decode_masks, set_state, take_masks

SGD = {"name": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 0.01}
FAST = {"name": "sgd", "lr": 20.0}
ADAM = {"name": "adam", "lr": 0.02}
NAMES = {"sign": "hidenseek", "binary": "fedmask", "bernoulli": "fedpm"}
CLIENT = 1


class Asked:
    """A training message to one client, with numbers of the test's own, and what the client makes of it."""

    def __init__(self, kind, optimizer=SGD, aggregate="sign", request=None, **options):
        options = {"density": 0.5, **options}
        if kind == "sign":
            options = {"iterations": 3, "aggregate": aggregate, **options}
        self.made = assemble(
            plan(
                rounds=1,
                strategy={"name": NAMES[kind], **options},
                clients__per_round=4,
                clients__training__epochs=2,
                clients__training__optimizer=optimizer,
            )
        )
        self.kind = kind
        self.strategy = self.made.strategy
        self.strategy.roll_call.open(self.made.grid)
        self.strategy.prepare(self.made.grid)
        self.masks = self.strategy.masks
        self.network = self.strategy.model.frozen(self.masks)
        down = self.network.downlink
        draw = torch.Generator().manual_seed(4)
        flat = down.flatten(self.strategy.state)
        numbers = down.grid.low + (1 - down.grid.low) * torch.rand(down.size, generator=draw)
        self.given = down.decode(down.encode(torch.where(down.is_number, numbers, flat)))
        settings = self.strategy.supermasks()
        self.settings = settings
        config = {"round": 1, "mask-version": self.masks.version, "codec": CODEC}
        config |= settings.config() | (request.config() if request else {})
        arrays = self.strategy.exchange.with_masks(down.encode(self.given), self.masks)
        self.content = RecordDict({"arrays": arrays, "config": ConfigRecord(config)})
        self.context = Context(1, 2 + CLIENT, {"partition-id": CLIENT}, RecordDict(), {})

    def hold(self, scores, version=None):
        """Let the client have kept these scores."""
        record = {"version": version or self.masks.version, "values": scores.numpy().tobytes()}
        self.context.state["scores"] = ConfigRecord(record)

    def answer(self):
        """The reply; as a message may be answered only once, the client is sent a copy."""
        return self.made.grid._app(Message(copied(self.content), 2 + CLIENT, "train"), self.context)

    def kept(self):
        """The scores that the client kept, by name."""
        record = self.context.state["scores"]
        assert record["version"] == self.masks.version
        flat = torch.frombuffer(bytearray(record["values"]), dtype=torch.float32)
        return dict(zip(self.masks, flat.split(list(self.masks.kept.values())), strict=True))

    def numbers(self, flat=None):
        return self.network.downlink.numbers(self.given if flat is None else flat)


def written_out(asked, start):
    """Local training on whole tensors, with autograd on the weights themselves; returns scores and module."""
    scenario, masks, learning = asked.made.scenario, asked.masks, asked.settings.learning
    spec, data = scenario.clients.training.optimizer, asked.made.data.client(CLIENT)
    module = copy.deepcopy(asked.strategy.module)
    set_state(module, asked.network.downlink.unflatten(asked.given))
    scores = {name: torch.zeros(mask.shape) for name, mask in masks.items()}
    for name, mask in masks.items():
        scores[name][mask] = start[name]
        scores[name].requires_grad_()
    dense = [module.get_parameter(name) for name in sorted(asked.network.trained)]
    groups = [{"params": list(scores.values()), "lr": learning.score_lr or spec.lr}]
    groups += [{"params": dense, "lr": spec.lr}] if dense else []
    if spec.name == "adam":
        stepper = torch.optim.Adam(groups)
    else:
        stepper = torch.optim.SGD(groups, momentum=spec.momentum, weight_decay=spec.weight_decay)
    generator = seeds.torch_generator(scenario.seed, "batches", 1, CLIENT)
    module.train()
    steps, total, seen = 0, 0.0, 0
    low = -1.0 if asked.kind == "sign" else 0.0

    def put():
        with torch.no_grad():
            for name, mask in masks.items():
                numbers = torch.where(scores[name] >= 0, 1.0, low)
                module.get_parameter(name).copy_(numbers * asked.network.factors[name] * mask)

    for _ in range(scenario.clients.training.epochs):
        for x, y in batches(data.examples, data.train, asked.made.strategy.task, 16, generator):
            put()
            module.zero_grad()
            loss = functional.cross_entropy(module(x), y)
            loss.backward()
            for name, mask in masks.items():
                gradient = module.get_parameter(name).grad * asked.network.factors[name] * mask
                if learning.straight_through == "clipped":
                    gradient *= scores[name].abs() <= 1
                scores[name].grad = gradient
            stepper.step()
            steps, total, seen = steps + 1, total + loss.item() * len(y), seen + len(y)
    put()
    return {name: scores[name].detach()[mask] for name, mask in masks.items()}, module, steps, total / seen


CASES = {
    "signs": ("sign", {}),
    "signs, Adam": ("sign", {"optimizer": ADAM}),
    "signs, clipped": ("sign", {"straight_through": "clipped", "score_scale": 0.5, "optimizer": FAST}),
    "signs of a mean": ("sign", {"aggregate": "mean", "vote_bits": 4}),
    "signs and the rest": ("sign", {"train_dense": True, "score_lr": 0.5}),
    "signs, first layer frozen": ("sign", {"keep": ["first"], "init": "kaiming_normal"}),
    "mask": ("binary", {}),
    "mask and the rest": ("binary", {"train_dense": True, "optimizer": ADAM, "score_lr": 0.05}),
}


@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
def test_it_trains_scores_as_written_out(kind, options):
    asked = Asked(kind, keep_scores=True, **options)
    scale = asked.settings.learning.score_scale
    start = {n: scale * (v if kind == "sign" else 2 * v - 1) for n, v in asked.numbers().items()}
    scores, module, steps, loss = written_out(asked, start)
    reply = asked.answer().content
    found, up = asked.kept(), asked.network.uplink
    after = up.unflatten(up.decode(reply["arrays"]))
    flipped = 0
    for name, mask in asked.masks.items():
        torch.testing.assert_close(found[name], scores[name], rtol=1e-4, atol=1e-6)
        flipped += int((threshold(found[name], kind) != threshold(start[name], kind)).sum())
        assert torch.equal(after[name], module.get_parameter(name) * mask)
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, module.state_dict()[name], rtol=1e-4, atol=1e-6, msg=name)
    assert flipped > 20  # It has learned something.
    assert reply["metrics"]["loss"] == pytest.approx(loss, rel=1e-5)
    site_cost, training = asked.strategy.cost, asked.made.scenario.clients.training
    kept = sum(asked.masks.kept.values())
    flops = site_cost.training_flops(asked.masks, reply["metrics"]["examples-seen"])
    assert reply["metrics"]["flops"] == flops + 2 * steps * kept
    # A score for each weight, and the weight itself where its magnitude is not that of its layer.
    slots = optimizer_slots(training.optimizer.name, training.optimizer.momentum)
    slots += 1 + (asked.settings.learning.init == "kaiming_normal")
    expected = step_memory(site_cost, asked.masks, 16, slots=slots)
    assert reply["metrics"]["peak-memory-bytes"] == expected.total


def test_a_client_that_samples_masks_sends_one_of_its_chances():
    asked = Asked("bernoulli", optimizer={"name": "sgd", "lr": 1e-9}, density=1.0)
    sent = torch.cat(list(asked.numbers().values()))
    draws = asked.network.uplink.decode(asked.answer().content["arrays"])[asked.network.uplink.is_number]
    assert set(draws.tolist()) == {0, 1}
    assert draws.mean().item() == pytest.approx(sent.mean().item(), abs=0.02)
    for low in (0.0, 0.25, 0.5, 0.75):
        inside = (sent >= low) & (sent < low + 0.25)
        assert draws[inside].mean().item() == pytest.approx(sent[inside].mean().item(), abs=0.04)


@pytest.mark.parametrize("bits", [1, 8])
def test_scores_stand_for_what_was_sent(bits):
    signs = torch.tensor([-1.0, -0.2, 0.0, 1.0])
    assert scores_of(signs, "sign", 0.5, bits).tolist() == pytest.approx([-0.5, -0.1, 0, 0.5])
    chances = (signs + 1) / 2
    assert scores_of(chances, "binary", 0.5, bits).tolist() == pytest.approx([-0.5, -0.1, 0, 0.5])
    half = 0.5 / 2**bits  # How far from certainty a chance of 0 or 1 is taken to be.
    found = scores_of(chances, "bernoulli", 0.5, bits).sigmoid()
    assert found.tolist() == pytest.approx([half, max(0.4, half), 0.5, 1 - half])


def test_a_client_prunes_once_by_the_scores_it_has_learned():
    asked = Asked("binary", keep_scores=True, request=OneShotRequest(0.4))
    scores, *_ = written_out(asked, {n: 0.01 * (2 * v - 1) for n, v in asked.numbers().items()})
    reply = asked.answer().content["arrays"]
    masks = decode_masks(take_masks(reply), asked.strategy.layout.shapes, asked.masks)
    up = asked.strategy.model.frozen(masks).uplink
    numbers = up.numbers(up.decode(reply))
    for name, mask in masks.items():
        assert abs(int(mask.sum()) - 0.4 * mask.numel()) <= 1
        kept, pruned = scores[name][mask.flatten()], scores[name][~mask.flatten()]
        assert kept.min() >= pruned.max() - 1e-5
        assert torch.equal(numbers[name], (kept >= 0).float())
    asked.masks = masks
    for name, found in asked.kept().items():
        torch.testing.assert_close(found, scores[name][masks[name].flatten()], rtol=1e-4, atol=1e-6)


STILL = {"name": "sgd", "lr": 1e-12}


@pytest.mark.parametrize(
    ("kind", "options"), [("sign", {}), ("sign", {"aggregate": "mean"}), ("binary", {})], ids=str
)
def test_kept_scores_take_over_the_signs_of_the_federation(kind, options):
    """With a learning rate of next to nothing what is kept is what training started from."""
    asked = Asked(kind, STILL, keep_scores=True, **options)
    draw = torch.Generator().manual_seed(8)
    own = {name: torch.randn(count, generator=draw) for name, count in asked.masks.kept.items()}
    for scores in own.values():
        scores[:3] = torch.tensor([0.0, -0.0, -3.0])
    asked.hold(torch.cat(list(own.values())))
    asked.answer()
    for name, found in asked.kept().items():
        sent = asked.numbers()[name]
        sent = 0.01 * (sent if kind == "sign" else 2 * sent - 1)
        agree = (own[name] >= 0) == (sent >= 0)
        assert 0.2 < agree.float().mean() < 0.8
        other = torch.where(own[name] == 0, sent, -own[name])  # There is no minus 0.
        torch.testing.assert_close(found, torch.where(agree, own[name], other), rtol=1e-5, atol=1e-9)


def test_scores_of_another_mask_are_let_go():
    asked = Asked("sign", STILL, keep_scores=True)
    asked.hold(torch.full((sum(asked.masks.kept.values()),), 5.0), version="0" * 16)
    asked.answer()
    for name, found in asked.kept().items():
        torch.testing.assert_close(found, 0.01 * asked.numbers()[name])


def test_scores_are_kept_only_where_that_is_asked_for():
    asked = Asked("sign", STILL)
    assert asked.answer().has_content()
    assert "scores" not in asked.context.state
    damaged = Asked("sign", STILL, keep_scores=True)
    damaged.hold(torch.ones(7))
    assert "kept 7 scores for another number of weights" in damaged.answer().error.reason


def test_a_client_whose_training_diverges_says_so_and_keeps_its_former_scores():
    asked = Asked("sign", {"name": "sgd", "lr": 1e38}, keep_scores=True, train_dense=True)
    own = torch.full((sum(asked.masks.kept.values()),), 2.0)
    asked.hold(own)
    reply = asked.answer()
    assert reply.has_error()
    assert "not finite" in reply.error.reason or "diverged" in reply.error.reason
    assert torch.equal(torch.cat(list(asked.kept().values())), own)


def test_the_model_of_a_site_is_as_before():
    """Its own parameters are what was sent, all of them need gradients, none has one."""
    asked = Asked("sign")
    site = asked.made.grid._app._find_site(asked.context)
    asked.answer()
    assert all(p.requires_grad and p.grad is None for p in site.module.parameters())
    assert math.isfinite(parameters_to_vector(site.module.parameters()).sum().item())
