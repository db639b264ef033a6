from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from built_in import PICTURES
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import (
    MemoryBreakdown,
    forward_memory,
    optimizer_slots,
    step_memory,
    step_tensors,
    stored_bytes,
)
from fedprune.determinism import PORTABLE
from fedprune.models import MODELS
from fedprune.sparsity.masks import Masks

from .nets import NETS, SHAPE
from .traced_peak import __file__ as traced_peak_file
from .traced_peak import traced_peak

#: What a real step is measured on.
IMAGE, BATCH = (3, 32, 32), 8


def saved_bytes(module: nn.Module, shape: tuple[int, ...], batch: int) -> int:
    """What autograd saves in a real step on the CPU: every storage once, but for the model's own."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept: list[torch.Tensor] = []  # holding them keeps addresses from being used again
    x, y = torch.randn(batch, *shape), torch.zeros(batch, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        functional.cross_entropy(module(x), y)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for address, size in storages.items() if address not in own)


@pytest.mark.parametrize("batch", [2, 7])
def test_activations_are_what_autograd_saves_to_the_byte(case, batch):
    module, cost = case
    assert step_memory(cost, Masks(), batch).activations == saved_bytes(module, cost.input_shape, batch)


#: At their end a picture of 32 pixels is one, over which batch norm cannot train on one example.
ONE_PIXEL = {"mobilenet_v1", "mobilenet_v2", "efficientnet_lite0", "shufflenet_v2"}


@pytest.mark.parametrize("name", [name for name in PICTURES if name not in ONE_PIXEL])
def test_activations_of_a_single_example(name):
    module = MODELS[name]((3, 32, 32), 10, width=0.125)
    cost = ModelCost.of(module, (3, 32, 32))
    assert step_memory(cost, Masks(), 1).activations == saved_bytes(module, (3, 32, 32), 1)


@pytest.fixture(scope="module", params=["native", "portable"])
def peaks(request) -> tuple[str, dict[str, int]]:
    """Return instructions, and the peak of a step of each model with them: a process chooses them once."""
    given = {key: value for key, value in os.environ.items() if key not in PORTABLE}
    chosen = PORTABLE if request.param == "portable" else {}
    command = [sys.executable, traced_peak_file, json.dumps(IMAGE), str(BATCH), *PICTURES]
    done = subprocess.run(command, env=given | chosen, capture_output=True, text=True, check=True)
    return request.param, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.xdist_group("peaks")
@pytest.mark.parametrize("name", PICTURES)
def test_predicted_peak_is_close_to_the_allocator_s(peaks, name):
    """From above, since not all is held at once; but kernels have scratch space that is not predicted.

    oneDNN's AVX2 convolutions take more of it than its AVX-512 ones: most where a layer has many weights and
    few positions, as in VGG-11 on small images.
    """
    instructions, measured = peaks
    memory = step_memory(ModelCost.of(MODELS[name](IMAGE, 10), IMAGE), Masks(), BATCH)
    predicted = memory.gradients + memory.activations + memory.workspace
    scratch = 0.3 if (name, instructions) == ("vgg11", "portable") else 0.1
    assert (1 - scratch) * measured[name] <= predicted <= 1.35 * measured[name]


def test_forward_workspace_is_what_the_allocator_holds():
    """To the byte where kernels need no scratch space: linear layers."""
    module = MODELS["mlp"]((1, 8, 8), 10).eval()
    predicted = forward_memory(ModelCost.of(module, (1, 8, 8)), Masks(), 16)

    def step():
        with torch.no_grad():
            x, y = torch.randn(16, 1, 8, 8), torch.zeros(16, dtype=torch.long)
            functional.cross_entropy(module(x), y)

    assert predicted.workspace == traced_peak(step)
    assert (predicted.gradients, predicted.activations, predicted.optimizer) == (0, 0, 0)


def test_forward_memory_is_that_of_evaluation_mode():
    """A batch norm over one value refuses to train, and evaluates."""
    cost = ModelCost.of(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)), (1, 2, 2))
    assert forward_memory(cost, Masks(), 1).workspace > 0
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        step_memory(cost, Masks(), 1)


@pytest.mark.parametrize(
    ("elements", "kept", "expected"),
    [
        (1000, 1000, 4000),  # dense
        (1000, 500, 125 + 2000),  # bitmap and values
        (1000, 10, 10 * (2 + 4)),  # 16-bit index and value
        (256, 1, 1 + 4),  # 8-bit index
        (70_000, 3, 3 * (4 + 4)),  # 32-bit index
        (1000, 0, 0),
    ],
)
def test_smallest_representation_by_hand(elements, kept, expected):
    assert stored_bytes(elements, kept, 4) == expected


@given(data=st.data(), elements=st.integers(1, 5000))
def test_smallest_representation_against_real_arrays(data, elements):
    kept = data.draw(st.integers(0, elements))
    values = np.zeros(kept, np.float32)
    mask = np.arange(elements) < kept
    index = np.flatnonzero(mask).astype(np.min_scalar_type(elements - 1))
    encodings = [4 * elements, np.packbits(mask).nbytes + values.nbytes, index.nbytes + values.nbytes]
    assert stored_bytes(elements, kept, 4) == min(encodings)


def test_breakdown_by_hand():
    module = nn.Sequential(nn.Flatten(), nn.Linear(100, 10), nn.BatchNorm1d(10))
    masks = Masks({"1.weight": torch.arange(1000).reshape(10, 100) < 50})
    memory = step_memory(ModelCost.of(module, (1, 10, 10)), masks, 4, slots=2, buffers=123)
    assert memory.weights == 50 * (2 + 4) + (10 + 10 + 10) * 4
    assert memory.gradients == (50 + 10 + 10 + 10) * 4
    assert memory.optimizer == 2 * memory.gradients
    assert memory.batch_norm == 2 * 10 * 4 + 8  # running mean and variance, and the step count
    # the batch, the normed layer's input, both batch statistics, log-softmax, labels, the loss's weight
    assert memory.activations == 4 * (4 * 100 + 4 * 10 + 2 * 10 + 4 * 10) + 4 * 8 + 4
    assert memory.buffers == 123
    parts = [memory.weights, memory.gradients, memory.optimizer, memory.batch_norm]
    assert memory.total == sum(parts) + memory.activations + memory.workspace + 123


def test_masks_shrink_what_is_kept_of_weights_and_nothing_else():
    cost = ModelCost.of(NETS["assorted"](), SHAPE)
    dense = step_memory(cost, Masks(), 8, slots=1)
    half = Masks({layer.weight: torch.arange(layer.weights) % 2 == 0 for layer in cost.layers})
    sparse = step_memory(cost, half, 8, slots=1)
    pruned = 4 * sum(layer.weights // 2 for layer in cost.layers)
    assert (dense.gradients - sparse.gradients, dense.optimizer - sparse.optimizer) == (pruned, pruned)
    assert sparse.weights < dense.weights
    for part in ("batch_norm", "activations", "workspace", "buffers"):
        assert getattr(sparse, part) == getattr(dense, part)


def test_frozen_weights_have_neither_gradient_nor_optimizer_state():
    memory = step_memory(ModelCost.of(NETS["frozen"](), SHAPE), Masks(), 2, slots=1)
    assert memory.gradients == memory.optimizer == 4 * (4 * 14 * 14 * 10 + 10)


def test_bytes_follow_the_dtype():
    single = step_memory(ModelCost.of(NETS["assorted"](), SHAPE), Masks(), 4)
    double = step_memory(ModelCost.of(NETS["assorted"]().double(), SHAPE), Masks(), 4)
    assert (double.weights, double.gradients) == (2 * single.weights, 2 * single.gradients)


@pytest.mark.parametrize(
    ("name", "momentum", "make"),
    [
        ("sgd", 0.0, lambda p: torch.optim.SGD(p, lr=0.1)),
        ("sgd", 0.9, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("adam", 0.0, lambda p: torch.optim.Adam(p)),
    ],
)
def test_optimizer_slots_are_those_of_pytorch(name, momentum, make):
    weight = nn.Parameter(torch.ones(3, 5))
    optimizer = make([weight])
    weight.sum().backward()
    optimizer.step()
    state = optimizer.state[weight].values()
    slots = [value for value in state if isinstance(value, torch.Tensor) and value.shape == weight.shape]
    assert optimizer_slots(name, momentum) == len(slots)


def test_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="'lion' is unknown"):
        optimizer_slots("lion")


def test_a_step_is_traced_once_for_a_batch_size():
    cost = ModelCost.of(NETS["assorted"](), SHAPE)
    assert step_tensors(cost, 4) is step_tensors(cost, 4)
    assert step_tensors(cost, 8).activations > step_tensors(cost, 4).activations


def test_total_is_the_sum_of_the_parts():
    assert MemoryBreakdown(1, 2, 4, 8, 16, 32, 64).total == 127
