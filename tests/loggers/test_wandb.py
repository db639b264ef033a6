"""The offline run of Weights & Biases, read back as the tracker's own messages."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedprune.loggers.base import scalars
from loggers.made_logged import ROUNDS, broken_off, logged_run

pytest.importorskip("wandb")

# The tracker has a process of its own, which takes a while to start.
pytestmark = pytest.mark.slow

NAMED = [{"name": "wandb", "project": "pruning", "group": "trials", "tags": ["small"]}]
_BLOCK, _FILE_HEADER, _HEADER = 32768, 7, 7


def messages(file: Path) -> Iterator[Any]:
    """Yield the messages of a ``.wandb`` file: records of LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place, whole = _FILE_HEADER, b""
    while place + _HEADER <= len(data):
        if _BLOCK - place % _BLOCK < _HEADER:
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _HEADER])
        whole += data[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):  # Whole, or the last part of one.
            yield Record.FromString(whole)
            whole = b""


def offline_runs(run: Path) -> list[list[Any]]:
    """Return the messages of each offline run in a run folder, in the order in which they were made."""
    folders = sorted((run / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
    return [list(messages(next(folder.glob("*.wandb")))) for folder in folders]


def of_kind(found: list[Any], kind: str) -> list[Any]:
    return [getattr(each, kind) for each in found if each.WhichOneof("record_type") == kind]


def history(found: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for entry in of_kind(found, "history"):
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.item}
        rows.append(items)
    return rows


def test_a_run_stays_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    done = logged_run(tmp_path / "run", NAMED, figures=True)
    [found] = offline_runs(tmp_path / "run")
    run = of_kind(found, "run")[0]
    assert (run.project, run.run_group, run.display_name, list(run.tags)) == (
        "pruning",
        "trials",
        "test",
        ["small"],
    )
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["strategy"]["density"] == 0.2
    assert "logging" not in config
    rows = history(found)
    assert [row["_step"] for row in rows] == list(range(ROUNDS + 1))
    for row, record in zip(rows, done.rounds, strict=True):
        assert {key: value for key, value in row.items() if not key.startswith("_")} == scalars(record)
    assert [entry.exit_code for entry in of_kind(found, "exit")] == [0]
    files = next((tmp_path / "run" / "wandb").glob("offline-run-*")) / "files"
    assert (files / "model.safetensors").read_bytes() == done.model_file.read_bytes()
    assert {"summary.json", "scenario.yaml", "accuracy.png"} <= {file.name for file in files.iterdir()}
    summary = {}
    for update in of_kind(found, "summary"):
        summary |= {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in update.update
        }
    assert summary["status"] == "complete"
    assert summary["summary/final_accuracy"] == done.summary["final_accuracy"]


def test_a_run_that_goes_on_is_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    broken_off(tmp_path / "run", NAMED)
    logged_run(tmp_path / "run", NAMED, resume=True)
    one, two = offline_runs(tmp_path / "run")
    assert of_kind(one, "run")[0].run_id == of_kind(two, "run")[0].run_id
    assert [row["_step"] for row in history(one)] == [0, 1, 2, 3]
    assert [row["_step"] for row in history(two)] == [4, 5]
    assert [of_kind(each, "exit")[0].exit_code for each in (one, two)] == [255, 0]


def test_a_run_that_is_told_late_has_the_rounds_before(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", [])
    logged_run(tmp_path / "run", [{"name": "wandb", "mode": "offline"}], resume=True)
    [found] = offline_runs(tmp_path / "run")
    assert [row["_step"] for row in history(found)] == list(range(ROUNDS + 1))
