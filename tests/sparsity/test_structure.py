"""Structured pruning: which channels go together, how they are chosen, and the smaller model that is left."""

from __future__ import annotations

import copy

import pytest
import torch
from losses import cross_entropy
from torch import nn

from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import forward_memory, step_memory
from fedprune.errors import UserError
from fedprune.models import build
from fedprune.sparsity.criteria import CRITERIA
from fedprune.sparsity.distributions import DISTRIBUTIONS
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.sparsity.structure import channel_groups, masks_of, prune_units, shrink
from fedprune.tasks import classification_of
from fedprune.training.execution import smaller_model, without_values
from fedprune.wire import Layout, StateCodec, get_state

MODELS = {
    "cnn": ((1, 8, 8), {"width": 0.25}, 3),
    "resnet8": ((3, 8, 8), {}, 6),
    "resnet18": ((3, 8, 8), {"width": 0.125}, 12),
    "mobilenet_v1": ((3, 16, 16), {"width": 0.25}, 14),
    "mobilenet_v2": ((3, 16, 16), {"width": 0.25}, 25),
    "ds_cnn": ((1, 12, 10), {}, 5),
    "cnn1d": ((3, 32), {}, 3),
    "autoencoder": ((1, 8, 8), {}, 9),
    "vit": ((3, 8, 8), {"patch": 4, "size": 16, "layers": 2, "heads": 4}, 4),
    "unet": ((3, 16, 16), {"width": 0.25}, 17),
}


def made(name):
    shape, options, _ = MODELS[name]
    model = build(name, shape, 10, seed=0, options=options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():  # Statistics and scales other than the first ones.
                tensor.add_(0.1 * (torch.rand(tensor.shape, generator=generator) - 0.3))
    return model.double().eval(), torch.rand(2, *shape, generator=generator).double()


def pruned(model, groups, example, density=0.3, criterion="magnitude", distribution="erk", **options):
    return prune_units(
        model,
        groups,
        criterion=CRITERIA[criterion],
        distribution=DISTRIBUTIONS[distribution],
        density=density,
        example=example[:1],
        loss=cross_entropy,
        **options,
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_smaller_model_computes_what_the_whole_one_computes_under_the_masks(name):
    model, x = made(name)
    groups = channel_groups(model, x)
    assert len(groups) == MODELS[name][2]
    masks = pruned(model, groups, x)
    small = shrink(model, masks)
    model.load_state_dict(apply_masks(model.state_dict(), masks))
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)
    kept = {n: m.sum().item() for n, m in masks.items()}
    assert {n: t.numel() for n, t in small.state_dict().items() if n in kept} == kept


@pytest.mark.parametrize("name", ["cnn", "resnet8", "mobilenet_v2", "vit"])
def test_its_values_travel_as_those_of_the_whole_model_do(name):
    model, x = made(name)
    model, x = model.float(), x.float()
    masks = pruned(model, channel_groups(model, x), x)
    task = classification_of(MODELS[name][0])
    small = smaller_model(without_values(model), masks, task)
    codec = StateCodec(Layout.of(model), masks)
    flat = codec.flatten(get_state(model))
    small.load(flat)
    assert torch.equal(small.values(), flat)
    assert not small.held
    whole = codec.unflatten(flat)
    for weight in masks:
        if weight in dict(small.module.named_parameters()):
            assert torch.equal(small.kept(weight), whole[weight][masks[weight]])


class ByHand(nn.Module):
    """`Residual` with fewer channels, as one would write it."""

    def __init__(self, wide, inner, hidden):
        super().__init__()
        self.stem = nn.Conv2d(1, wide, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(wide)
        self.one = nn.Conv2d(wide, inner, 3, padding=1)
        self.two = nn.Conv2d(inner, wide, 3, padding=1)
        self.hidden, self.head = nn.Linear(wide * 4, hidden), nn.Linear(hidden, 3)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.two(self.one(x).relu())
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(self.hidden(x).sigmoid())


def test_groups_are_those_that_one_finds_by_hand():
    found = {
        group.name: {(part.tensor, part.dim): tuple(part.positions.shape) for part in group.parts}
        for group in channel_groups(ByHand(6, 5, 4), torch.rand(2, 1, 8, 8))
    }
    assert found == {
        "stem.weight": {
            ("stem.weight", 0): (6, 1),
            ("norm.weight", 0): (6, 1),
            ("norm.bias", 0): (6, 1),
            ("norm.running_mean", 0): (6, 1),
            ("norm.running_var", 0): (6, 1),
            ("one.weight", 1): (6, 1),
            ("two.weight", 0): (6, 1),
            ("two.bias", 0): (6, 1),
            ("hidden.weight", 1): (6, 4),
        },
        "one.weight": {("one.weight", 0): (5, 1), ("one.bias", 0): (5, 1), ("two.weight", 1): (5, 1)},
        "hidden.weight": {
            ("hidden.weight", 0): (4, 1),
            ("hidden.bias", 0): (4, 1),
            ("head.weight", 1): (4, 1),
        },
    }


def test_it_is_the_model_that_one_would_build_by_hand():
    """The same training, step by step, and the same costs."""
    model, x = ByHand(6, 5, 4), torch.rand(4, 1, 8, 8)
    first, second, third = channel_groups(model, x[:2])
    masks = masks_of(
        {
            first: torch.tensor([True, False, True, True, False, False]),
            second: torch.tensor([False, True, True, False, False]),
            third: torch.tensor([True, False, False, True]),
        },
        model,
    )
    small, hand = shrink(model, masks), ByHand(3, 2, 2)
    hand.load_state_dict(small.state_dict())
    for trained in (small, hand):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(x), torch.tensor([0, 1, 2, 0])).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), hand.parameters(), strict=True))
    assert repr(small) == repr(hand)

    cost, expected = ModelCost.of(model, (1, 8, 8)), ModelCost.of(hand, (1, 8, 8))
    for batch in (2, 7):
        assert cost.training_flops(masks, batch) == expected.training_flops(Masks(), batch)
        assert cost.forward_flops(masks, batch) == expected.forward_flops(Masks(), batch)
        assert step_memory(cost, masks, batch, slots=1) == step_memory(expected, Masks(), batch, slots=1)
        assert forward_memory(cost, masks, batch) == forward_memory(expected, Masks(), batch)


def test_masks_of_single_weights_leave_the_costs_as_they_are():
    model = ByHand(6, 5, 4)
    cost = ModelCost.of(model, (1, 8, 8))
    masks = Masks({"one.weight": torch.rand(5, 6, 3, 3) < 0.5})
    assert cost.under(masks) is cost
    with pytest.raises(ValueError, match="single weights"):
        shrink(model, masks)
    assert smaller_model(without_values(model), masks, classification_of((1, 8, 8))) is None


@pytest.mark.parametrize("reduction", ["sum", "mean", "norm"])
def test_a_channel_scores_what_its_weights_score(reduction):
    """The smallest L1 norm, mean or L2 norm of all that a channel is made of goes first."""
    model, x = ByHand(6, 5, 4), torch.rand(2, 1, 8, 8)
    group = channel_groups(model, x)[0]
    masks = pruned(model, [group], x, 0.8, distribution="uniform", reduction=reduction)
    slices = [
        torch.cat(
            [
                model.stem.weight[c].flatten(),
                model.one.weight[:, c].flatten(),
                model.two.weight[c].flatten(),
                model.hidden.weight[:, 4 * c : 4 * c + 4].flatten(),
            ]
        )
        for c in range(6)
    ]
    of = {"sum": lambda w: w.abs().sum(), "mean": lambda w: w.abs().mean(), "norm": lambda w: w.norm()}
    scores = torch.stack([of[reduction](weights) for weights in slices])
    kept = masks["norm.weight"]
    assert 0 < kept.sum() < 6
    assert scores[kept].min() > scores[~kept].max()


def test_the_scale_of_batch_norm_scores_channels():
    model, x = ByHand(6, 5, 4), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([3.0, -4, 0.1, 2, 0.2, -0.3]))
    groups = channel_groups(model, x)
    masks = pruned(model, groups[:1], x, 0.55, "batch_norm_scale", "uniform")
    assert masks["norm.weight"].tolist() == [True, True, False, True, False, False]
    with pytest.raises(UserError, match=r"one\.weight have no batch norm"):
        pruned(model, groups, x, 0.5, "batch_norm_scale")


@pytest.mark.parametrize(
    ("criterion", "distribution"),
    [
        ("magnitude", "global"),
        ("synflow", "global"),
        ("snip", "erk"),
        ("taylor", "uniform"),
        ("random", "erk"),
    ],
)
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_the_density_is_kept_to_and_nearly_used(criterion, distribution, density):
    model, x = made("resnet8")
    batches = [(x, torch.tensor([1, 2]))]
    masks = pruned(
        model,
        channel_groups(model, x),
        x,
        density,
        criterion,
        distribution,
        batches=batches,
        generator=torch.Generator().manual_seed(0),
        iterations=3 if criterion == "synflow" else None,
    )
    assert density - 0.03 < masks.density <= density
    assert shrink(model, masks)(x).isfinite().all()


def test_a_density_below_one_channel_a_place_is_refused():
    model, x = made("cnn")
    with pytest.raises(
        UserError, match=r"density 0\.001 is less than one channel in each place leaves: 0\.0"
    ):
        pruned(model, channel_groups(model, x), x, 0.001)


def test_kept_layers_keep_their_outputs():
    model, x = made("cnn")
    names = [group.name for group in channel_groups(model, x)]
    assert names == ["block1.conv.weight", "block2.conv.weight", "hidden.linear.weight"]
    assert [group.name for group in channel_groups(model, x, ["first", "hidden.*"])] == names[1:2]


class Sized(nn.Module):
    """A model whose code hangs on the size of its layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.conv(x).view(-1, 16))


@pytest.mark.parametrize(
    "model",
    [
        build("gru", (10, 8), 10, seed=0, options={}),
        Sized(),
        nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(64, 3)),
    ],
    ids=["recurrent", "by size", "group norm"],
)
def test_a_model_without_channels_to_prune_is_refused(model):
    x = torch.rand(2, 10, 8) if not isinstance(model, Sized | nn.Sequential) else torch.rand(2, 1, 4, 4)
    with pytest.raises(UserError, match="no channels that can be pruned"):
        channel_groups(model, x)


def test_frozen_layers_are_not_cut():
    model, x = made("cnn")
    model.get_submodule("block2").requires_grad_(False)
    assert [group.name for group in channel_groups(model, x)] == ["hidden.linear.weight"]


def test_nothing_of_the_model_changes():
    model, x = made("resnet8")
    before = copy.deepcopy(model.state_dict())
    masks = pruned(model, channel_groups(model, x), x)
    shrink(model, masks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize(("one", "other"), [(0.5, 0.3), (0.3, 0.1)])
def test_a_lower_density_of_one_ranking_is_part_of_a_higher(one, other):
    """By magnitude each group keeps a prefix of one ranking."""
    model, x = made("resnet8")
    groups = channel_groups(model, x)
    larger, smaller = (pruned(model, groups, x, density) for density in (one, other))
    assert all((smaller[name] <= larger[name]).all() for name in larger)
