"""What holds for every built-in strategy, found through the registry: a new file is tested here at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inprocess import SPLIT, density_of, same_state

from fedprune import registry
from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run as simulate
from fedprune.scenario import Scenario
from fedprune.server.check import resolve

#: Options that let a short run reach what a strategy does later.
OPTIONS: dict[str, dict[str, Any]] = {
    "feddst": {"adjust_every": 1, "stop_adjusting_at": 3},
    "fedmef": {"adjust_every": 2, "stop_adjusting_at": 4},
    "fedtiny": {"adjust_every": 1, "stop_adjusting_at": 4, "candidates": 2},
    "fedmask": {"keep_scores": True},
    "fedpm": {"reset_every": 2},
    "fedrts": {"adjust_every": 1},
    "flash": {"sensing_epochs": 2, "joint": True},
    "feddip": {"reconfigure_every": 2},
    "gradual": {"end": 2, "regrow": True},
    "hidenseek": {"keep_scores": True, "train_dense": True},
    "lotteryfl": {"accuracy_threshold": 0.05, "prune_step": 0.5},
    "prunefl": {"adjust_every": 1},
}


def cases() -> Iterator[tuple[str, str]]:
    """Yield every strategy with how its clients train: with layers executed sparse where they can be.

    How a client trains and where it does so have nothing to do with each other: one strategy shows it.
    """
    for name in registry.names("strategy"):
        sparse = registry.load("client", registry.load("strategy", name).client).executes_sparse
        yield name, "sparse" if sparse and name != "fedavg" else "dense"
    yield "static", "dense"


def scenario(name: str, workers: int, execution: str) -> Scenario:
    options = {**density_of(name, 0.2), **OPTIONS.get(name, {})}
    return Scenario.from_mapping(
        {
            "name": name,
            "rounds": 3,
            "model": {"name": "cnn", "width": 0.25},
            "data": {"name": "digits", "server_fraction": 0.1, "client_test_fraction": 0.2},
            "clients": {
                "count": 6,
                "per_round": 3,
                "training": {
                    "batch_size": 16,
                    "optimizer": {"lr": 0.1, "momentum": 0.9},
                    "execution": execution,
                },
            },
            "strategy": {"name": name, **options},
            "engine": {"workers": workers},
        }
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [timeless(json.loads(line)) for line in path.read_text().splitlines()]


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "wall_seconds"}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "execution"), cases())
def test_one_process_and_two_workers_give_the_same_bits(
    shared_ray: None, tmp_path: Path, name: str, execution: str
) -> None:
    """One process: everything in it, client after client, without Ray, as in a study."""
    plan = resolve(scenario(name, 2, execution))
    one = simulate(plan, out=tmp_path / "one", progress=False, host=InProcess(), figures=False)
    two = simulate(plan, out=tmp_path / "two", progress=False, figures=False)
    for file in ("rounds.jsonl", "clients.jsonl"):
        assert lines(one.directory / file) == lines(two.directory / file)
    assert same_state(one.model().state_dict(), two.model().state_dict())
    assert two.summary["clients_failed"] == 0
    if name not in SPLIT:  # Whose clients hold no whole model.
        assert all(0 <= record["personal_accuracy"] <= 1 for record in two.rounds[1:])
