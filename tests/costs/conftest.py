from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import nn

from fedprune.costs.flops import ModelCost
from fedprune.models import MODELS

from .nets import NETS, SHAPE

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    **{name: (factory, SHAPE) for name, factory in NETS.items()},
    **{
        name: (partial(factory, (3, 32, 32), 10, width=0.125), (3, 32, 32))
        for name, factory in MODELS.items()
        if name in ("resnet18", "vgg11", "cnn", "lenet5", "mlp")  # The others: test_built_in_costs.
    },
    "cnn-8x8": (partial(MODELS["cnn"], (1, 8, 8), 10), (1, 8, 8)),
    "lenet5-28x28": (partial(MODELS["lenet5"], (1, 28, 28), 10), (1, 28, 28)),
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Steps this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CASES)
def build(request: pytest.FixtureRequest) -> tuple[Callable[[], nn.Module], tuple[int, int, int]]:
    """A function that makes a new model, and its input shape."""
    return CASES[request.param]


@pytest.fixture(scope="session", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, ModelCost]:
    """A model and its costs: every one of fedprune's and the nets of this folder."""
    build, shape = CASES[request.param]
    module = build()
    return module, ModelCost.of(module, shape)
