"""The offline run of Weights & Biases, read back as the tracker's own messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedprune.loggers.base import scalars
from loggers.made_logged import ROUNDS, broken_off, logged_run
from loggers.read_back import wandb_history, wandb_records, wandb_runs

pytest.importorskip("wandb")

# The tracker has a process of its own, which takes a while to start.
pytestmark = pytest.mark.slow

NAMED = [{"name": "wandb", "project": "pruning", "group": "trials", "tags": ["small"]}]


def test_a_run_stays_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    done = logged_run(tmp_path / "run", NAMED, figures=True)
    [found] = wandb_runs(tmp_path / "run", wait=60)
    run = wandb_records(found, "run")[0]
    assert (run.project, run.run_group, run.display_name, list(run.tags)) == (
        "pruning",
        "trials",
        "test",
        ["small"],
    )
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["strategy"]["density"] == 0.2
    assert "logging" not in config
    rows = wandb_history(found)
    assert [row["_step"] for row in rows] == list(range(ROUNDS + 1))
    for row, record in zip(rows, done.rounds, strict=True):
        assert {key: value for key, value in row.items() if not key.startswith("_")} == scalars(record)
    assert [entry.exit_code for entry in wandb_records(found, "exit")] == [0]
    files = next((tmp_path / "run" / "wandb").glob("offline-run-*")) / "files"
    assert (files / "model.safetensors").read_bytes() == done.model_file.read_bytes()
    assert {"summary.json", "scenario.yaml", "accuracy.png"} <= {file.name for file in files.iterdir()}
    summary = {}
    for update in wandb_records(found, "summary"):
        summary |= {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in update.update
        }
    assert summary["status"] == "complete"
    assert summary["summary/final_accuracy"] == done.summary["final_accuracy"]


def test_a_run_that_goes_on_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    broken_off(tmp_path / "run", NAMED)
    logged_run(tmp_path / "run", NAMED, resume=True)
    one, two = wandb_runs(tmp_path / "run", wait=60)
    assert wandb_records(one, "run")[0].run_id == wandb_records(two, "run")[0].run_id
    assert [row["_step"] for row in wandb_history(one)] == [0, 1, 2, 3]
    assert [row["_step"] for row in wandb_history(two)] == [4, 5]
    assert [wandb_records(each, "exit")[0].exit_code for each in (one, two)] == [255, 0]


def test_a_run_that_is_told_late_has_the_rounds_before(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", [])
    logged_run(tmp_path / "run", [{"name": "wandb", "mode": "offline"}], resume=True)
    [found] = wandb_runs(tmp_path / "run", wait=60)
    assert [row["_step"] for row in wandb_history(found)] == list(range(ROUNDS + 1))
