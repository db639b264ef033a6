"""What trackers have of a run, by their own readers; W&B has none: its own messages, from its file."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK, _FILE_HEADER, _HEADER = 32768, 7, 7


def tensorboard_events(run: Path) -> Any:
    """Return what TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def mlflow_client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def mlflow_runs(uri: str, experiment: str = "fedprune") -> list[Any]:
    """Return the runs of an experiment."""
    reader = mlflow_client(uri)
    return list(reader.search_runs([reader.get_experiment_by_name(experiment).experiment_id]))


def wandb_messages(file: Path) -> Iterator[Any]:
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


def wandb_runs(run: Path, *, wait: float = 0.0) -> list[list[Any]]:
    """Return the messages of each offline run in a run folder, in the order in which they were made.

    Wait up to some seconds for the end of the last: the tracker's own process may still be writing it.
    """
    until = time.monotonic() + wait
    while True:
        folders = sorted((run / "wandb").glob("offline-run-*"), key=lambda path: path.name)
        parts = [list(wandb_messages(next(folder.glob("*.wandb")))) for folder in folders]
        if wandb_records(parts[-1], "exit") or time.monotonic() > until:
            return parts
        time.sleep(0.1)


def wandb_records(found: list[Any], kind: str) -> list[Any]:
    return [getattr(each, kind) for each in found if each.WhichOneof("record_type") == kind]


def wandb_history(found: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for entry in wandb_records(found, "history"):
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.item}
        rows.append(items)
    return rows
