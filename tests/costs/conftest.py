from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from fedprune.costs.flops import ModelCost
from fedprune.models import MODELS

from .nets import NETS, SHAPE

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    **{name: (factory, SHAPE) for name, factory in NETS.items()},
    **{
        f"{name}-{'x'.join(map(str, shape))}": (
            lambda factory=factory, shape=shape: factory(shape, 10, width=0.5),
            shape,
        )
        for name, factory in MODELS.items()
        for shape in ((3, 32, 32), (1, 28, 28))
    },
}


@pytest.fixture(scope="session", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, ModelCost]:
    """A model and its costs: every one of fedprune's, at two input shapes, and the nets of this folder."""
    build, shape = CASES[request.param]
    module = build()
    return module, ModelCost.of(module, shape)
