"""TensorBoard's event files, read back with TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import Context, RecordDict
from inprocess import InProcessGrid

from fedprune import client_app, server_app
from fedprune.loggers.base import scalars
from fedprune.results.run import Run, load_run
from loggers.made_logged import ROUNDS, broken_off, federation, logged_run
from loggers.read_back import tensorboard_events

pytest.importorskip("tensorboard")

NAMED = ["tensorboard"]


def assert_every_round_once(events: Any, done: Run) -> None:
    """TensorBoard has the scalars of every round, none twice, as float32."""
    wanted = {name for record in done.rounds for name in scalars(record)}
    assert {tag for tag in events.Tags()["scalars"] if not tag.startswith("summary/")} == wanted
    for name in wanted:
        values = [
            (record["round"], scalars(record)[name]) for record in done.rounds if name in scalars(record)
        ]
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in shown] == [step for step, _ in values], name
        assert [value for _, value in shown] == pytest.approx([value for _, value in values], rel=1e-6), name


def said(events: Any, tag: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{tag}/text_summary")]


def test_it_shows_a_run(tmp_path: Path) -> None:
    done = logged_run(tmp_path / "run", NAMED, figures=True)
    events = tensorboard_events(done.directory)
    assert_every_round_once(events, done)
    assert "density: 0.2" in said(events, "scenario")[0]
    assert said(events, "status") == ["complete"]
    assert {"figures/accuracy", "figures/costs", "figures/density"} <= set(events.Tags()["images"])
    final = events.Scalars("summary/final_accuracy")
    assert [event.value for event in final] == [pytest.approx(done.summary["final_accuracy"])]


def test_its_hyperparameters_are_the_scenario(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    logged_run(tmp_path / "run", NAMED)
    plugin = tensorboard_events(tmp_path / "run").summary_metadata["_hparams_/session_start_info"].plugin_data
    parameters = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    assert parameters["strategy.density"].number_value == 0.2
    assert parameters["status"].string_value == "complete"


def test_a_run_that_goes_on_has_every_round_once(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", NAMED)
    events = tensorboard_events(tmp_path / "run")
    assert [event.step for event in events.Scalars("density")] == [0, 1, 2, 3]
    assert said(events, "status") == ["interrupted: stopped by Ctrl-C"]
    done = logged_run(tmp_path / "run", NAMED, resume=True)
    events = tensorboard_events(tmp_path / "run")
    assert_every_round_once(events, done)
    assert said(events, "status")[-1] == "complete"


def test_a_tracker_that_joins_later_has_the_rounds_before(tmp_path: Path) -> None:
    broken_off(tmp_path / "run", [])
    done = logged_run(tmp_path / "run", NAMED, resume=True)
    assert_every_round_once(tensorboard_events(tmp_path / "run"), done)


# The writer of TensorBoard has a thread of its own, which dies of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the system says where TensorBoard's own writer writes."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    class Fills:
        def on_task(self, task: object) -> None: ...

        def on_round(self, round: object) -> None:
            if round.round == 2:  # type: ignore[attr-defined]
                monkeypatch.setattr(RecordWriter, "write", full)

    done = logged_run(tmp_path / "run", NAMED, listeners=[Fills()])
    assert done.summary["status"] == "complete"
    said = [record.getMessage() for record in caplog.records if "logger tensorboard" in record.getMessage()]
    assert len(said) == 1
    assert "No space left" in said[0]


def test_it_is_told_under_flower_too(tmp_path: Path) -> None:
    """Flower's server app on a grid in this process: a run, and one that goes on."""
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(federation(NAMED).model_dump(mode="json")))
    config = {"scenario": str(path), "out": str(tmp_path / "run")}
    grid = InProcessGrid(
        client_app.app, {number + 2: {"partition-id": number} for number in range(4)}, run_config=config
    )
    server_app.main(grid, Context(1, 1, {}, RecordDict(), config))
    done = load_run(tmp_path / "run")
    assert len(done.rounds) == ROUNDS + 1
    assert_every_round_once(tensorboard_events(tmp_path / "run"), done)
