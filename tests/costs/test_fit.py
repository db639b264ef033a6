"""What fits a memory, against step_memory on real masks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedprune.costs.fit import TrainingStep, largest_batch, largest_density, last
from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import Overhead, step_memory
from fedprune.errors import UserError
from fedprune.models import MODELS
from fedprune.sparsity.distributions import DISTRIBUTIONS
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable, prune

SHAPE = (1, 8, 8)
MODULE = MODELS["cnn"](SHAPE, 10, width=0.5)
COST = ModelCost.of(MODULE, SHAPE)
SHAPES = {name: tuple(MODULE.get_parameter(name).shape) for name in prunable(MODULE)}
WEIGHTS = sum(MODULE.get_parameter(name).numel() for name in SHAPES)


def step(**changes: object) -> TrainingStep:
    return TrainingStep(**{"cost": COST, "shapes": SHAPES, "slots": 1, **changes})


def pruned(density: float, distribution: str) -> Masks:
    """Masks as a strategy makes them."""

    def any_scores(module, names, **_):
        return {name: torch.rand(module.get_parameter(name).shape) for name in names}

    return prune(
        MODULE,
        list(SHAPES),
        criterion=any_scores,
        distribution=DISTRIBUTIONS[distribution],
        density=density,
        example=torch.ones(1, *SHAPE),
        iterations=1,
    )


def peak(masks: Masks, batch: int, slots: int = 1) -> int:
    return step_memory(COST, masks, batch, slots=slots).total


@given(
    density=st.floats(0, 1, exclude_min=True),
    batch=st.integers(1, 9),
    distribution=st.sampled_from(["uniform", "erk"]),
)
@settings(max_examples=25, deadline=None)
def test_memory_is_that_of_the_masks_that_a_strategy_makes(density, batch, distribution):
    asked = step(distribution=DISTRIBUTIONS[distribution], overhead=Overhead(slots=2))
    expected = peak(pruned(density, distribution), batch, slots=3)
    assert asked.memory(density, batch).total == expected


@given(memory=st.integers(1, 2_000_000), distribution=st.sampled_from(["uniform", "erk"]))
@settings(max_examples=25, deadline=None)
def test_the_largest_density_fits_and_one_more_weight_does_not(memory, distribution):
    density = largest_density(step(distribution=DISTRIBUTIONS[distribution]), memory, 4)
    if density is None:
        assert peak(pruned(1e-9, distribution), 4) > memory  # a weight a layer
        return
    assert peak(pruned(density, distribution), 4) <= memory
    if density < 1:
        more = (round(density * WEIGHTS) + 1) / WEIGHTS
        assert peak(pruned(more, distribution), 4) > memory
    else:
        assert peak(Masks(), 4) <= memory


@given(memory=st.integers(1, 4_000_000), density=st.sampled_from([0.01, 0.3, 1.0]))
@settings(max_examples=25, deadline=None)
def test_the_largest_batch_fits_and_one_more_example_does_not(memory, density):
    masks = pruned(density, "uniform")
    batch = largest_batch(step(), memory, density, 64)
    if batch is None:
        assert peak(masks, 1) > memory
        return
    assert peak(masks, batch) <= memory
    assert batch == 64 or peak(masks, batch + 1) > memory


@given(memories=st.tuples(st.integers(1, 2_000_000), st.integers(1, 2_000_000)).map(sorted))
@settings(max_examples=20, deadline=None)
def test_more_memory_holds_no_less(memories):
    for least, most in (
        [largest_density(step(), memory, 4) or 0 for memory in memories],
        [largest_batch(step(), memory, 0.1, 64) or 0 for memory in memories],
    ):
        assert least <= most


def test_the_edge_is_a_byte_wide():
    dense = peak(Masks(), 4)
    assert largest_density(step(), dense, 4) == 1.0
    assert largest_density(step(), dense - 1, 4) < 1.0
    assert largest_batch(step(), dense, 1.0, 64) == 4
    assert largest_batch(step(), dense - 1, 1.0, 64) == 3
    single = peak(Masks(), 1)
    assert largest_batch(step(), single, 1.0, 64) == 1
    assert largest_batch(step(), single - 1, 1.0, 64) is None


def test_pruned_activations_leave_room_for_more():
    cost = ModelCost.of(MODELS["resnet18"]((3, 32, 32), 10, width=0.125), (3, 32, 32))
    memory = step_memory(cost, Masks(), 16).total
    asked = TrainingStep(cost, {}, overhead=Overhead(activation_density=0.1))
    batch = largest_batch(asked, memory, 1.0, 64)
    assert batch > 16
    assert step_memory(cost, Masks(), batch, activation_density=0.1).total <= memory
    assert step_memory(cost, Masks(), batch + 1, activation_density=0.1).total > memory


def test_a_model_without_prunable_weights_fits_whole_or_not():
    dense = peak(Masks(), 4)
    assert largest_density(step(shapes={}), dense, 4) == 1.0
    assert largest_density(step(shapes={}), dense - 1, 4) is None


def test_a_batch_of_one_that_cannot_be_trained_does_not_fit():
    single_values = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    small = TrainingStep(ModelCost.of(single_values, (1, 2, 2)), {})
    two = small.memory(1.0, 2).total
    assert largest_batch(small, two, 1.0, 64) == 2
    assert largest_batch(small, two - 1, 1.0, 64) is None


@given(low=st.integers(-50, 50), length=st.integers(0, 5000), edge=st.integers(-100, 6000))
def test_the_last_number_is_found_in_few_looks_none_far_beyond_it(low, length, edge):
    looked = []

    def holds(number):
        looked.append(number)
        return number <= edge

    high = low + length
    assert last(holds, low, high) == (None if edge < low else min(edge, high))
    assert all(low <= number <= high for number in looked)
    assert len(looked) <= 2 * 13 + 2
    assert max(looked) - low <= 2 * max(edge - low, 0) + 1


def test_an_impossible_density_is_refused():
    with pytest.raises(UserError, match=r"density is 1\.5"):
        step().memory(1.5, 4)
