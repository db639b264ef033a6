"""Frozen parts of a model: which parts patterns name, and that nothing moves them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedprune.errors import UserError
from fedprune.sparsity.frozen import freeze, frozen_by, frozen_names, thawed, training_mode
from fedprune.sparsity.pruning import prunable

ALL = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight", "2.bias"]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("frozen", "trainable", "expected"),
    [
        (["1"], None, ALL[2:6]),
        (["*.bias"], None, ["0.bias", "1.bias", "2.bias", "3.bias"]),
        ([], ["3"], ALL),
        (["3.bias"], ["2", "3"], [*ALL[:6], "3.bias"]),
        (["[01].*"], None, ALL[:6]),
    ],
)
def test_patterns_name_parameters_buffers_and_layers(frozen, trainable, expected):
    assert frozen_by(model(), frozen, trainable) == expected


@pytest.mark.parametrize(
    ("frozen", "trainable", "said"),
    [
        (["1.wieght"], None, "model.frozen: '1.wieght' matches no part of the model"),
        ([], ["blocks"], "model.trainable: 'blocks' matches no part"),
        (["*"], None, "nothing is left to train"),
        ([], ["1.running_mean"], "nothing is left to train"),
    ],
)
def test_what_matches_nothing_or_all_is_refused(frozen, trainable, said):
    with pytest.raises(UserError) as refused:
        frozen_by(model(), frozen, trainable)
    assert said in str(refused.value)


def test_a_copy_of_a_frozen_model_is_frozen_and_can_be_thawed():
    frozen = freeze(model(), ALL[:6])
    twin = copy.deepcopy(frozen)
    assert frozen_names(twin) == frozen_names(frozen) == set(ALL[:6])
    assert frozen_names(thawed(twin)) == frozenset()
    assert frozen_names(frozen) == set(ALL[:6])


def test_frozen_statistics_normalise_in_training_and_stay():
    frozen = freeze(model(), ALL[2:6])
    x = torch.randn(8, 3)
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    found = training_mode(frozen)(x)
    assert torch.equal(found, copy.deepcopy(frozen).eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert not torch.allclose(found, training_mode(thawed(copy.deepcopy(frozen)))(x))


def test_frozen_weights_are_not_prunable():
    assert prunable(model(), []) == ["0.weight", "2.weight", "3.weight"]
    assert prunable(freeze(model(), ["0.weight"]), []) == ["2.weight", "3.weight"]
