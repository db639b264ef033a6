"""What a step takes as this process executes it: predicted, and what PyTorch's allocator says."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import executed_memory, index_bytes, step_memory
from fedprune.models import MODELS
from fedprune.sparsity.execution import index_masks, sparse_copy
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable
from fedprune.tasks import classification_of

SHAPE = (3, 16, 16)
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "sparse.py"


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    module = MODELS["resnet18"](SHAPE, 10, width=0.25)
    shapes = {name: module.get_parameter(name).shape for name in prunable(module, ("first", "last"))}
    return module, Masks({name: torch.rand(shape) < 0.02 for name, shape in shapes.items()})


def test_of_a_dense_model_it_is_that_of_the_traced_step(case):
    module, _ = case
    assert executed_memory(copy.deepcopy(module), classification_of(SHAPE), 6, slots=2) == step_memory(
        ModelCost.of(module, SHAPE), Masks(), 6, slots=2
    )


def test_of_a_sparse_model_the_parts_are_the_bytes_that_are_held(case):
    module, masks = case
    sparse = sparse_copy(module, index_masks(module, masks))
    found = executed_memory(sparse, classification_of(SHAPE), 6, slots=1)
    values = 4 * (
        sum(masks.kept.values()) + sum(p.numel() for n, p in module.named_parameters() if n not in masks)
    )
    assert found.gradients == found.optimizer == values
    assert found.weights == values + index_bytes(sparse)
    assert 4 * sum(masks.kept.values()) < index_bytes(sparse) < 12 * sum(masks.kept.values())
    dense = executed_memory(copy.deepcopy(module), classification_of(SHAPE), 6, slots=1)
    assert found.batch_norm == dense.batch_norm
    # What is saved for the backward pass is about the same: activations, in another order.
    assert found.activations == pytest.approx(dense.activations, rel=0.2)


@pytest.mark.slow
def test_it_bounds_what_is_allocated():
    spec = importlib.util.spec_from_file_location("benchmark_sparse", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    rows = benchmark.measure("cnn", "erk", 0.05, 16, repeats=1)
    assert [row["execution"] for row in rows] == ["dense", "sparse", "auto"]
    for row in rows:
        assert row["peak_mib"] <= row["predicted_mib"] <= 1.4 * row["peak_mib"]
    dense, sparse, _ = rows
    assert sparse["peak_mib"] < dense["peak_mib"]
    assert sparse["state_bytes"] < dense["state_bytes"] / 5
