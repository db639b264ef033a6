"""A run whose process was killed, and that goes on: every tracker has each round once, in the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from loggers.made_logged import ROUNDS, killed, logged_run
from loggers.read_back import (
    mlflow_client,
    mlflow_runs,
    tensorboard_events,
    wandb_history,
    wandb_records,
    wandb_runs,
)

for _tracker in ("tensorboard", "mlflow", "wandb"):
    pytest.importorskip(_tracker)


@pytest.mark.slow
def test_a_killed_run_goes_on_in_every_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, every = tmp_path / "run", list(range(ROUNDS + 1))
    store = f"sqlite:///{run / 'mlflow' / 'mlflow.db'}"
    killed(run, ["tensorboard", "mlflow", "wandb"])
    assert [event.step for event in tensorboard_events(run).Scalars("density")] == [0, 1, 2, 3]
    [before] = mlflow_runs(store)
    assert before.info.status == "RUNNING"

    logged_run(run, ["tensorboard", "mlflow", "wandb"], resume=True)
    assert [event.step for event in tensorboard_events(run).Scalars("density")] == every
    [after] = mlflow_runs(store)
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    history = mlflow_client(store).get_metric_history(after.info.run_id, "density")
    assert sorted(metric.step for metric in history) == every
    parts = wandb_runs(run, wait=60)
    assert len({wandb_records(part, "run")[0].run_id for part in parts}) == 1
    assert [row["_step"] for part in parts for row in wandb_history(part)] == every
