"""Any Flower app runs on RayGrid: quickstart-style clients under Flower's own strategies."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Krum, Result, Strategy
from inprocess import InProcessGrid
from torch import nn

from engine.apps import fit, make_data, make_quickstart
from fedprune.engine.grid import RayGrid

pytestmark = pytest.mark.slow

CLIENTS, ROUNDS, LR, EPOCHS = 5, 3, 0.3, 2
RUN_CONFIG = {"local-epochs": EPOCHS}


@pytest.fixture(scope="module")
def quickstart(shared_ray: None) -> Iterator[RayGrid]:
    with RayGrid(make_quickstart, [{}] * CLIENTS, workers=2, run_config=RUN_CONFIG) as made:
        yield made


def first_model() -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(4, 3)


def start(strategy: Strategy, grid: Any) -> Result:
    arrays = ArrayRecord(first_model().state_dict())
    return strategy.start(
        grid, initial_arrays=arrays, num_rounds=ROUNDS, train_config=ConfigRecord({"lr": LR})
    )


def trained_apart(model: nn.Linear) -> list[dict[str, np.ndarray]]:
    """Return what each client makes of a model, in float64."""
    states = []
    for client in range(CLIENTS):
        own = copy.deepcopy(model)
        fit(own, client, LR, EPOCHS)
        states.append({name: value.double().numpy() for name, value in own.state_dict().items()})
    return states


def by_hand(combine: Any) -> nn.Linear:
    """Return the model after all rounds; ``combine`` maps stacked values (clients, ...) to one."""
    model = first_model()
    for _ in range(ROUNDS):
        states = trained_apart(model)
        merged = {name: combine(np.stack([state[name] for state in states])) for name in states[0]}
        model.load_state_dict({name: torch.from_numpy(value).float() for name, value in merged.items()})
    return model


SIZES = np.array([len(make_data(client)[0]) for client in range(CLIENTS)], float)


@pytest.mark.parametrize(
    ("strategy", "combine"),
    [
        (FedAvg(), lambda stacked: np.tensordot(SIZES / SIZES.sum(), stacked, axes=1)),
        (FedMedian(), lambda stacked: np.sort(stacked, axis=0)[CLIENTS // 2]),
    ],
    ids=["fedavg", "fedmedian"],
)
def test_averaging_strategies_give_what_their_formula_says(quickstart, strategy, combine):
    result = start(strategy, quickstart)
    expected = by_hand(combine)
    for name, value in result.arrays.to_torch_state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-5, atol=1e-6)
    scores = []
    for client in range(CLIENTS):
        inputs, labels = make_data(client)
        scores.append(float((expected(inputs).argmax(dim=1) == labels).float().mean()))
    accuracy = result.evaluate_metrics_clientapp[ROUNDS]["eval_acc"]
    assert accuracy == pytest.approx(np.dot(SIZES, scores) / SIZES.sum(), abs=1e-6)


@pytest.mark.parametrize(
    "make", [lambda: FedAdam(eta=0.05), lambda: Krum(num_malicious_nodes=1)], ids=["fedadam", "krum"]
)
def test_other_strategies_give_what_they_give_on_a_grid_in_one_process(quickstart, make):
    on_ray = start(make(), quickstart)
    nodes = {node: {"partition-id": client} for client, node in enumerate(quickstart.get_node_ids())}
    plain = InProcessGrid(make_quickstart(), nodes)
    for context in plain.contexts.values():
        context.run_config = RUN_CONFIG
    in_process = start(make(), plain)
    here, there = (result.arrays.to_torch_state_dict() for result in (on_ray, in_process))
    for name, before in first_model().state_dict().items():
        # The strategies add up in the order in which they sampled, which is random.
        torch.testing.assert_close(here[name], there[name], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(here[name].float(), before)
