"""Each type of layer that can be pruned, alone between two others: its costs are PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import Cells
from torch import nn

from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import step_memory
from fedprune.sparsity.layers import weights
from fedprune.sparsity.masks import Masks

from .test_flops import counted
from .test_memory import saved_bytes

CHANNELS, SIDES = 4, (6, 5, 4)

LAYERS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "Conv1d": (1, lambda: nn.Conv1d(4, 6, 3, stride=2)),
    "Conv2d": (2, lambda: nn.Conv2d(4, 6, (3, 1), padding=1, dilation=2)),
    "Conv3d": (3, lambda: nn.Conv3d(4, 6, 2)),
    "ConvTranspose1d": (1, lambda: nn.ConvTranspose1d(4, 6, 3, stride=2)),
    "ConvTranspose2d": (2, lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1)),
    "ConvTranspose3d": (3, lambda: nn.ConvTranspose3d(4, 6, 2, bias=False)),
    "Linear of each position": (1, lambda: nn.Linear(6, 7)),
}


def between(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network with the layer behind a pointwise one, and the shape of its input."""
    dimensions, layer = LAYERS[name]
    shape = (2, *SIDES[:dimensions])
    first = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](2, CHANNELS, 1)
    body = nn.Sequential(first, layer(), nn.Flatten())
    features = body(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(body, nn.Linear(features, 3)), shape


@pytest.mark.parametrize("name", LAYERS)
def test_products_and_saved_bytes_are_those_of_pytorch(name: str) -> None:
    module, shape = between(name)
    cost = ModelCost.of(module, shape)
    assert cost.matmul_flops(Masks(), 3) == counted(module, shape, 3)
    assert step_memory(cost, Masks(), 3).activations == saved_bytes(module, shape, 3)
    assert {layer.weight for layer in cost.layers} == {
        weight.name for weight in weights(module) if weight.why_dense is None
    }


@pytest.mark.parametrize("kind", ["GRUCell", "LSTMCell", "RNNCell"])
def test_a_cell_counts_once_for_each_step(kind: str) -> None:
    shape = (1, 5, 4)
    module = Cells(shape, 3, kind=kind)
    cost = ModelCost.of(module, shape)
    assert cost.matmul_flops(Masks(), 3) == counted(module, shape, 3)
    assert [layer.positions for layer in cost.layers] == [5, 5, 1]


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.GroupNorm, nn.LayerNorm])
def test_normalisation_is_eight_and_nine_flops_a_value(kind: type[nn.Module]) -> None:
    norm = {
        nn.GroupNorm: lambda: nn.GroupNorm(2, 4),
        nn.LayerNorm: lambda: nn.LayerNorm((4, 6)),
    }.get(kind, lambda: kind(4))
    with_it, bare = (
        ModelCost.of(
            nn.Sequential(nn.Conv1d(2, 4, 1), *layers, nn.Flatten(), nn.Linear(24, 3)), (2, 6)
        ).elementwise
        for layers in ([norm()], [])
    )
    assert (with_it.forward - bare.forward, with_it.backward - bare.backward) == (8 * 24, 9 * 24)
