"""MLflow's store, read back with MLflow's own client."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fedprune.loggers.base import scalars
from fedprune.results.run import Run
from loggers.made_logged import broken_off, logged_run
from loggers.read_back import mlflow_client, mlflow_runs

pytest.importorskip("mlflow")

# Its import and the tables that it makes take seconds.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mlflow")]  # They share a store.

NAMED = ["mlflow"]


def assert_every_round_once(uri: str, run_id: str, done: Run) -> None:
    reader = mlflow_client(uri)
    for name in {name for record in done.rounds for name in scalars(record)}:
        wanted = [
            (record["round"], scalars(record)[name]) for record in done.rounds if name in scalars(record)
        ]
        history = reader.get_metric_history(run_id, name)
        assert sorted(metric.step for metric in history) == [number for number, _ in wanted], name
        if name != "wall_seconds":  # What comes again after a checkpoint takes another time.
            found = sorted((metric.step, metric.value) for metric in history)
            assert found == [(step, pytest.approx(value)) for step, value in wanted], name


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database for the tests of the module: making one takes the most time."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'shared.db'}"


def test_a_run_and_how_it_goes_on_in_the_run_folder(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", NAMED)
    uri = f"sqlite:///{tmp_path / 'run' / 'mlflow' / 'mlflow.db'}"
    [run] = mlflow_runs(uri)
    assert run.info.status == "KILLED"
    assert run.data.tags["fedprune.reason"] == "stopped by Ctrl-C"
    assert run.data.params["strategy.density"] == "0.2"
    assert [metric.step for metric in mlflow_client(uri).get_metric_history(run.info.run_id, "density")] == [
        0,
        1,
        2,
        3,
    ]

    done = logged_run(tmp_path / "run", NAMED, resume=True)
    [again] = mlflow_runs(uri)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    assert again.info.run_name == "test"
    assert_every_round_once(uri, again.info.run_id, done)
    assert again.data.metrics["summary/final_accuracy"] == done.summary["final_accuracy"]
    kept = {file.path for file in mlflow_client(uri).list_artifacts(again.info.run_id)}
    assert kept == {"scenario.yaml", "summary.json", "model.safetensors"}
    model = Path(mlflow_client(uri).download_artifacts(again.info.run_id, "model.safetensors", str(tmp_path)))
    assert model.read_bytes() == done.model_file.read_bytes()


def test_a_new_run_in_a_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """In one process, too, in which the tracker keeps its database open."""
    uri = f"sqlite:///{tmp_path / 'run' / 'mlflow' / 'mlflow.db'}"
    logged_run(tmp_path / "run", NAMED)
    [before] = mlflow_runs(uri)
    done = logged_run(tmp_path / "run", NAMED, overwrite=True)
    [after] = mlflow_runs(uri)
    assert after.info.run_id != before.info.run_id
    assert_every_round_once(uri, after.info.run_id, done)


def test_runs_share_a_store_at_a_uri(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(
        tmp_path
    )  # MLflow puts artifacts below the working directory where nothing else is said.
    settings = {"name": "mlflow", "uri": store, "experiment": "shared", "tags": {"kind": "trial"}}
    for number in (1, 2):
        logged_run(tmp_path / f"run-{number}", [settings])
    found = mlflow_runs(store, "shared")
    assert len(found) == 2
    assert {run.data.tags["kind"] for run in found} == {"trial"}
    assert not (tmp_path / "run-1" / "mlflow" / "mlflow.db").exists()
    # Another run in the folder is another run there.
    logged_run(tmp_path / "run-1", [settings], overwrite=True)
    assert len(mlflow_runs(store, "shared")) == 3


def test_a_run_that_the_store_does_not_have_is_made_anew(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    settings = {"name": "mlflow", "experiment": "elsewhere"}
    broken_off(tmp_path / "run", [])
    (tmp_path / "run" / "mlflow").mkdir()
    (tmp_path / "run" / "mlflow" / "run_id").write_text("0123456789abcdef0123456789abcdef\n")
    done = logged_run(tmp_path / "run", [settings], resume=True)
    [run] = mlflow_runs(store, "elsewhere")
    assert_every_round_once(store, run.info.run_id, done)


def test_a_store_that_breaks_ends_no_run(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fedprune.loggers import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow, "_SECONDS", 0.0)
    copy = tmp_path / "copy.db"
    logged_run(tmp_path / "before", [{"name": "mlflow", "uri": store}])
    with (
        closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as one,
        closing(sqlite3.connect(copy)) as two,
    ):
        one.backup(two)

    class Breaks:
        def on_task(self, task: object) -> None: ...

        def on_round(self, round: Any) -> None:
            if round.round == 1:
                with closing(sqlite3.connect(copy, timeout=60)) as database:
                    database.execute("DROP TABLE metrics")

    done = logged_run(
        tmp_path / "run", [{"name": "mlflow", "uri": f"sqlite:///{copy}"}], listeners=[Breaks()]
    )
    assert done.summary["status"] == "complete"
    said = [record.getMessage() for record in caplog.records if "logger mlflow" in record.getMessage()]
    assert len(said) == 1
    assert "the run goes on" in said[0]
    assert "MlflowException" in said[0]
