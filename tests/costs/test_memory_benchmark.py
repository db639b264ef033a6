"""The memory benchmark measures: what it says of a small model holds, and it fails where it must."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from fedprune.models import MODELS

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Two rows of a small network with Adam, dense and pruned, each measured in a fresh process."""
    path = tmp_path_factory.mktemp("memory") / "rows.csv"
    case = ["--models", "cnn", "--shape", "1", "8", "8", "--densities", "1", "0.1", "--batches", "4"]
    command = [sys.executable, SCRIPT, *case, "--optimizer", "adam", "--csv", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.xdist_group("memory")
def test_predictions_are_what_is_allocated(rows):
    """Within 5 %: dense parts and activations; under a mask the dense prediction is the one that holds."""
    parameters = 4 * sum(p.numel() for p in MODELS["cnn"]((1, 8, 8), 10).parameters())
    assert [row["execution"] for row in rows] == ["dense", "dense under a mask"]
    for row in rows:
        assert int(row["allocated_gradients"]) == parameters
        for part in ("weights", "gradients", "optimizer", "activations"):
            assert float(row[f"dense_{part}"]) == pytest.approx(float(row[f"allocated_{part}"]), rel=0.05)
    dense, pruned = rows
    for part in ("weights", "gradients", "optimizer", "total"):
        assert dense[f"kept_{part}"] == dense[f"dense_{part}"] == pruned[f"dense_{part}"]
        assert int(pruned[f"kept_{part}"]) < int(pruned[f"dense_{part}"])


@pytest.mark.slow
@pytest.mark.xdist_group("memory")
@pytest.mark.parametrize("part", ["weights", "gradients", "optimizer", "activations"])
def test_what_is_off_by_more_than_the_tolerance_is_named(rows, part):
    spec = importlib.util.spec_from_file_location("memory_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    row = {key: int(value) if value.isdigit() else value for key, value in rows[1].items()}
    row["density"] = 0.1
    assert module.missed(row) == []
    (mistake,) = module.missed(row | {f"dense_{part}": int(1.06 * row[f"allocated_{part}"])})
    assert part in mistake
