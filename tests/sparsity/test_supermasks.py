"""Supermasks: draws that are the same anywhere, and gradients that pass straight through to the scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune import seeds
from fedprune.scenario import OptimizerSpec
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.supermasks import (
    MaskKind,
    StraightThrough,
    Supermask,
    constant_magnitudes,
    frozen_but,
    initial_weights,
    normal_draws,
    threshold,
)
from fedprune.tasks import classification_of
from fedprune.training.loop import train

# Draws ------------------------------------------------------------------------------------------


CLASSIFICATION = classification_of((4,))


def philox(counter: int, key: int) -> list[int]:
    """The four 64-bit words of a block of Philox4x64-10 (Salmon et al., SC 2011), in plain integers."""
    low = 2**64 - 1
    c = [counter >> 64 * i & low for i in range(4)]
    k = [key >> 64 * i & low for i in range(2)]
    for _ in range(10):
        one, two = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [two >> 64 ^ c[1] ^ k[0], two & low, one >> 64 ^ c[3] ^ k[1], one & low]
        k = [k[0] + 0x9E3779B97F4A7C15 & low, k[1] + 0xBB67AE8584CAA73B & low]
    return c


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_draws_are_the_written_out_formula(seed: int) -> None:
    words = [word for block in range(1, 4) for word in philox(block, seed)]
    expected = []
    for draw in range(4):
        parts = [w >> 16 * i & 65535 for w in words[3 * draw : 3 * draw + 3] for i in range(4)]
        # The sum of twelve has mean 12 * 65535 / 2 and variance 65536**2 - 1, as each has that over 12.
        expected.append((2 * sum(parts) - 12 * 65535 or 1) / math.sqrt(4 * (65536**2 - 1)))
    assert normal_draws(4, seed).tolist() == expected


def test_draws_have_mean_0_and_variance_1_and_none_is_0() -> None:
    count = 2**20
    draws = normal_draws(count, 5)
    assert abs(draws.mean()) < 5 / math.sqrt(count)
    assert abs(draws.var() - 1) < 5 * math.sqrt(2 / count)
    # As of a normal variable, with what a sum of twelve leaves of its tails.
    for limit, share in ((1, 0.683), (2, 0.954), (3, 0.998)):
        assert (abs(draws) < limit).mean() == pytest.approx(share, abs=4e-3)
    assert draws.all()
    assert abs(np.corrcoef(draws, normal_draws(count, 6))[0, 1]) < 5 / math.sqrt(count)


def test_a_layers_weights_have_his_deviation_and_depend_on_seed_and_name_alone() -> None:
    shapes = {"conv": torch.Size([64, 32, 3, 3]), "fc": torch.Size([100, 300])}
    weights = initial_weights(shapes, 3)
    again = initial_weights(dict(reversed(shapes.items())), 3)
    for name, fan_in in (("conv", 288), ("fc", 300)):
        weight = weights[name]
        assert (weight.dtype, weight.shape) == (torch.float32, shapes[name])
        assert torch.equal(weight, again[name])
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
        expected = normal_draws(weight.numel(), seeds.derive(3, name)) * math.sqrt(2 / fan_in)
        assert np.array_equal(weight.flatten().numpy(), expected.astype(np.float32))
    other = initial_weights(shapes, 4)
    assert not any((other[name] == weight).all() for name, weight in weights.items())


def test_constant_magnitudes_carry_the_signal_of_the_whole_layer() -> None:
    weights = initial_weights({"a": torch.Size([50, 8]), "b": torch.Size([5, 10, 3, 3])}, 1)
    masks = Masks({"a": torch.arange(400).reshape(50, 8) % 4 == 0})
    found = constant_magnitudes(weights, masks)
    assert all(torch.equal(found[name].sign(), weight.sign()) for name, weight in weights.items())
    assert found["a"].abs().unique().tolist() == pytest.approx([math.sqrt(2 / 8 / 0.25)])
    assert found["b"].abs().unique().tolist() == pytest.approx([math.sqrt(2 / 90)])
    # Kept weights of one magnitude have the sum of squares that all weights have on average.
    assert found["a"][masks["a"]].square().sum().item() == pytest.approx(400 * 2 / 8)


# Scores and gradients ---------------------------------------------------------------------------

WEIGHTS = ("0.weight", "4.weight")
KINDS = ("sign", "binary", "bernoulli")
RATE, DECAY = 0.3, 0.1


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
        )


class Case:
    """Masks, frozen weights and scores of a network, some of these exactly 0, -0, 1 and -1; a batch."""

    def __init__(self, kind: MaskKind, straight_through: StraightThrough = "identity") -> None:
        draw = torch.Generator().manual_seed(2)
        self.net = network()
        shapes = {name: self.net.get_parameter(name).shape for name in WEIGHTS}
        self.masks = Masks({name: torch.rand(shape, generator=draw) < 0.6 for name, shape in shapes.items()})
        kept = self.masks.kept
        self.frozen = {name: torch.randn(count, generator=draw) for name, count in kept.items()}
        self.scores = {name: 1.5 * torch.randn(count, generator=draw) for name, count in kept.items()}
        for score in self.scores.values():
            score[:6] = torch.tensor([0.0, -0.0, 1.0, -1.0, 1.0001, -1.0001])
        self.batch = torch.randn(8, 2, 4, 4, generator=draw), torch.arange(8) % 4
        self.kind, self.straight_through = kind, straight_through
        self.supermask = Supermask(
            self.net, self.masks, self.frozen, self.scores, kind=kind, straight_through=straight_through
        )
        torch.manual_seed(3)
        numbers = self.supermask.numbers()
        torch.manual_seed(3)  # What is done next draws the same masks.
        self.numbers = {name: number.detach() for name, number in numbers.items()}

    def expected(self, *others: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Output, and gradients to scores and to other parameters, of a network with these very weights."""
        net = network()
        with torch.no_grad():
            for name, mask in self.masks.items():
                net.get_parameter(name).zero_()[mask] = self.numbers[name] * self.frozen[name]
        output = net(self.batch[0])
        loss = functional.cross_entropy(output, self.batch[1])
        names = [*WEIGHTS, *others]
        gradients = torch.autograd.grad(loss, [net.get_parameter(name) for name in names])
        found = dict(zip(names, gradients, strict=True))
        for name, score in self.scores.items():
            if self.kind == "bernoulli":
                through = torch.exp(-score) / (1 + torch.exp(-score)) ** 2
            else:
                through = (score.abs() <= 1).float() if self.straight_through == "clipped" else 1
            found[name] = found[name][self.masks[name]] * self.frozen[name] * through
        return output, found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("straight_through", ["identity", "clipped"])
def test_gradients_pass_straight_through(kind: MaskKind, straight_through: StraightThrough) -> None:
    case = Case(kind, straight_through)
    output, gradients = case.expected()
    found = case.supermask(case.batch[0])
    torch.testing.assert_close(found, output, rtol=0, atol=0)
    functional.cross_entropy(found, case.batch[1]).backward()
    for parameter, (name, gradient) in zip(case.supermask.score_parameters, gradients.items(), strict=False):
        assert parameter.shape == (case.masks.kept[name],)
        torch.testing.assert_close(parameter.grad, gradient)
    clipped = straight_through == "clipped" and kind != "bernoulli"
    assert (gradients["0.weight"][4:6] == 0).all() == clipped


@pytest.mark.parametrize(("kind", "low"), [("sign", -1), ("binary", 0)])
def test_a_score_of_0_counts_as_one(kind: MaskKind, low: int) -> None:
    scores = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 2.0, -2.0])
    assert threshold(scores, kind).tolist() == [1, 1, 1, low, 1, low]
    numbers = Case(kind).numbers["0.weight"]
    assert numbers[:6].tolist() == [1, 1, 1, low, 1, low]
    assert set(numbers.tolist()) == {1, low}


def test_chances_are_the_sigmoids_of_scores() -> None:
    case = Case("bernoulli")
    draws = torch.stack([case.supermask.numbers()["4.weight"].detach() for _ in range(4000)])
    assert set(draws.unique().tolist()) == {0, 1}
    torch.testing.assert_close(draws.mean(0), case.scores["4.weight"].sigmoid(), atol=0.04, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", [(), ("1.weight", "1.bias", "4.bias")], ids=["frozen", "dense too"])
def test_a_step_of_sgd_is_the_written_out_step(kind: MaskKind, trained: tuple[str, ...]) -> None:
    case = Case(kind)
    _, gradients = case.expected(*trained)
    before = {name: parameter.detach().clone() for name, parameter in case.net.named_parameters()}
    spec = OptimizerSpec(name="sgd", lr=1.0, momentum=0.9, weight_decay=DECAY)
    with frozen_but(case.net, frozenset(trained)):
        parameters = [p for p in case.supermask.parameters() if p.requires_grad]
        dense = sum(case.net.get_parameter(name).numel() for name in trained)
        assert sum(p.numel() for p in parameters) == sum(case.masks.kept.values()) + dense
        train(case.supermask, [case.batch], CLASSIFICATION, spec, lr=RATE, masks=Masks())
    for name, score in case.scores.items():
        step = RATE * (gradients[name] + DECAY * score)
        torch.testing.assert_close(case.supermask.scores[name], score - step)
    for name, parameter in case.net.named_parameters():
        step = RATE * (gradients[name] + DECAY * before[name]) if name in trained else 0
        torch.testing.assert_close(parameter.detach(), before[name] - step)
        assert parameter.requires_grad
        assert parameter.grad is None
    assert case.net[1].running_mean.any()  # Batch norm's statistics are those of training.


def test_what_was_trained_is_as_before_also_after_a_failure() -> None:
    net = network()
    net[4].bias.requires_grad_(False)
    inside = []

    def fail() -> None:
        with frozen_but(net, frozenset({"0.bias"})):
            inside.extend(name for name, p in net.named_parameters() if p.requires_grad)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert inside == ["0.bias"]
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["4.bias"]
