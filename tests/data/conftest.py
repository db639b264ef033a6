"""What the tests of data share: a scenario around a data section, and caches that vanish with the test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedprune.scenario import Scenario


@pytest.fixture
def scenario() -> Callable[..., Scenario]:
    def make(
        data: dict[str, Any],
        count: int = 5,
        batch_size: int = 4,
        seed: int = 0,
        directory: Path | None = None,
    ) -> Scenario:
        training = {"batch_size": batch_size, "optimizer": {"name": "sgd", "lr": 0.1}}
        mapping = {
            "name": "test",
            "seed": seed,
            "rounds": 1,
            "model": {"name": "cnn"},
            "data": data,
            "clients": {"count": count, "training": training},
            "strategy": {"name": "fedavg"},
        }
        return Scenario.from_mapping(mapping, **({} if directory is None else {"directory": directory}))

    return make


@pytest.fixture
def no_cache_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``datasets`` keep its files in the test's own folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
