"""What tests of deployments share."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from deployment import Deployment

from fedprune.scenario import Scenario

PLAN: dict[str, Any] = {
    "name": "deployed",
    "seed": 3,
    "rounds": 2,
    "model": {"name": "cnn", "width": 1.0, "hidden": 256},
    "data": {
        "name": "digits",
        "train_examples": 300,
        "test_examples": 100,
        "server_fraction": 0.2,
        "client_test_fraction": 0.2,
        "partition": {"scheme": "dirichlet", "alpha": 1.0},
    },
    "clients": {
        "count": 3,
        "per_round": 3,
        "training": {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
    },
    "strategy": {"name": "fedavg"},
}


@pytest.fixture
def plan() -> dict[str, Any]:
    """Return a small federation of three devices; a test may change it."""
    return copy.deepcopy(PLAN)


@pytest.fixture
def deployment(tmp_path, plan) -> Iterator[Deployment]:
    """Return a deployment of three devices: its SuperLink runs and knows their keys."""
    made = Deployment(tmp_path / "deployment", Scenario.from_mapping(plan))
    try:
        made.start_superlink()
        made.register()
        yield made
    finally:
        made.close()
