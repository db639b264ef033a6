"""Loggers beside a run: what they hear, that results do not depend on them, and what their failures do."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from inprocess import same_state

from fedprune import registry
from fedprune.cli import main
from fedprune.errors import ScenarioError, UserError
from fedprune.loggers import LOGGERS, Logger, channels
from fedprune.loggers.base import RunEnd, RunStart, scalars
from fedprune.results.compare import compare
from fedprune.results.run import Run
from fedprune.scenario import load_scenario
from fedprune.server import check as checking
from fedprune.server.check import check
from fedprune.studies.plan import identity_of
from fedprune.wire import get_state
from loggers.made_logged import ROUNDS, STRATEGY, Breaks, broken_off, federation, logged_run

#: A logger in a file, that keeps what it hears in a file beside the run's.
HEARS = '''\
import json
from fedprune import Logger

class Hears(Logger):
    """Keeps what it hears."""

    class Options(Logger.Options):
        file: str = "heard.jsonl"
        fails_in: list[int] = []

    def on_start(self, start):
        if -1 in self.options.fails_in:
            raise ConnectionError("nobody there")
        self.file = start.directory / self.options.file
        self.write("start", start.last_round, start.parameters, [number for number, _ in start.earlier])

    def on_round(self, number, scalars):
        if number in self.options.fails_in:
            raise OSError(28, "No space left on device")
        self.write("round", number, dict(scalars))

    def on_end(self, end):
        self.write("end", end.status, end.reason, end.scalars, [file.name for file in end.files])

    def write(self, *what):
        with self.file.open("a") as file:
            print(json.dumps(what), file=file)
'''


@pytest.fixture
def hears(tmp_path: Path) -> str:
    """The name of the logger in a file."""
    path = tmp_path / "mine.py"
    path.write_text(HEARS)
    return f"{path}:Hears"


def heard(run: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (run / "heard.jsonl").read_text().splitlines()]


def results(done: Run) -> list[Any]:
    """Return a run's records without what a clock says."""
    records = [*done.rounds, *done.clients]
    return [{key: value for key, value in record.items() if key != "wall_seconds"} for record in records]


def test_a_logger_hears_of_the_whole_run(tmp_path: Path, hears: str) -> None:
    done = logged_run(tmp_path / "run", [hears])
    start, *rounds, end = heard(tmp_path / "run")
    assert start[:2] == ["start", None]
    assert start[2]["strategy.density"] == 0.2
    assert not any(key.startswith("logging") for key in start[2])
    assert [(what, number) for what, number, _ in rounds] == [("round", n) for n in range(ROUNDS + 1)]
    for record, (_, _, values) in zip(done.rounds, rounds, strict=True):
        assert values == scalars(record)
        assert values["classes/phone-low-end/bytes_up"] == record["classes"]["phone-low-end"]["bytes_up"]
    assert end[1:3] == ["complete", None]
    assert end[3]["final_accuracy"] == done.summary["final_accuracy"]
    assert end[4] == ["scenario.yaml", "summary.json", "model.safetensors"]


def test_results_do_not_depend_on_loggers(tmp_path: Path, hears: str) -> None:
    without, with_one = logged_run(tmp_path / "without", []), logged_run(tmp_path / "with", [hears])
    assert results(without) == results(with_one)
    assert same_state(get_state(without.model()), get_state(with_one.model()))
    assert compare([without, with_one]).differences == ()


def test_a_logger_that_fails_ends_no_run_and_is_warned_of_once(
    tmp_path: Path, hears: str, caplog: pytest.LogCaptureFixture
) -> None:
    done = logged_run(tmp_path / "run", [{"name": hears, "fails_in": [1, 2, 4]}])
    assert done.summary["status"] == "complete"
    assert [entry[1] for entry in heard(tmp_path / "run") if entry[0] == "round"] == [0, 3, 5]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "the run goes on" in warnings[0]
    assert "No space left" in warnings[0]


def test_a_logger_that_cannot_start_ends_a_run_before_its_first_round(tmp_path: Path, hears: str) -> None:
    other = tmp_path / "other.py"
    other.write_text(HEARS)
    failing = {"name": hears, "fails_in": [-1]}
    with pytest.raises(UserError, match=r"cannot start: ConnectionError: nobody there"):
        logged_run(tmp_path / "run", [f"{other}:Hears", failing])
    assert (tmp_path / "run" / "rounds.jsonl").read_text() == ""
    assert [entry[:2] for entry in heard(tmp_path / "run")] == [["start", None], ["end", "failed"]]


def test_a_logger_that_exits_has_failed_as_any_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tracker's client that calls sys.exit is neither silence nor the end of the run."""

    class Exits(Logger):
        def on_start(self, start: RunStart) -> None:
            if start.last_round is None:
                sys.exit("no login")

        def on_round(self, number: int, scalars: Any) -> None:
            sys.exit(f"round {number}")

    scenario = federation([])
    channel = channels.Channel("exits", Exits(Logger.Options()), RunStart(tmp_path, scenario))
    with pytest.raises(UserError, match="logger exits cannot start: SystemExit: no login"):
        channel.wait(60)
    channel = channels.Channel("exits", Exits(Logger.Options()), RunStart(tmp_path, scenario, last_round=1))
    channel.wait(60)
    channel.tell(2, {})
    channel.end(RunEnd("complete"))
    channel.join(60)
    assert "logger exits failed, and the run goes on; this is said once: SystemExit: round 2" in caplog.text


def test_loggers_hear_that_a_run_was_interrupted(tmp_path: Path, hears: str) -> None:
    broken_off(tmp_path / "run", [hears])
    assert heard(tmp_path / "run")[-1][:3] == ["end", "interrupted", "stopped by Ctrl-C"]


def test_a_run_goes_on_with_other_loggers(tmp_path: Path, hears: str) -> None:
    unbroken = logged_run(tmp_path / "unbroken", [])
    broken_off(tmp_path / "run", [])
    done = logged_run(tmp_path / "run", [hears], resume=True)
    assert done.summary["status"] == "complete"
    assert results(done) == results(unbroken)
    start, *rounds, _ = heard(tmp_path / "run")
    assert (start[1], start[3]) == (2, [0, 1, 2])
    assert [number for _, number, _ in rounds] == [3, 4, 5]


def test_no_round_waits_for_a_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = threading.Event()

    class Slow(Logger):
        numbers: list[int] = []  # noqa: RUF012

        def on_round(self, number: int, scalars: Any) -> None:
            assert last.wait(60)
            self.numbers.append(number)

    class Last(Breaks):
        def on_round(self, round: Any) -> None:
            if round.round == ROUNDS:
                last.set()

    monkeypatch.setitem(LOGGERS, "slow", Slow)
    logged_run(tmp_path / "run", ["slow"], listeners=[Last(-1)])
    assert Slow.numbers == list(range(ROUNDS + 1))


@pytest.mark.parametrize("hangs_at", ["START", "END"])
def test_a_run_leaves_a_logger_alone_that_never_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hangs_at: str
) -> None:
    released = threading.Event()

    class Hangs(Logger):
        def on_start(self, start: Any) -> None:
            if hangs_at == "START":
                released.wait()

        def on_round(self, number: int, scalars: Any) -> None:
            if number == 1:
                released.wait()

    monkeypatch.setitem(LOGGERS, "hangs", Hangs)
    for patience in (f"{hangs_at}_PATIENCE", "END_PATIENCE"):
        monkeypatch.setattr(channels, patience, 0.2)
    try:
        assert logged_run(tmp_path / "run", ["hangs"]).summary["status"] == "complete"
    finally:
        released.set()
    said = [record.getMessage() for record in caplog.records if "logger hangs" in record.getMessage()]
    assert "nobody waits for it" in said[-1]
    assert ("does not wait for it" in said[0]) == (hangs_at == "START")


def test_a_new_run_in_a_folder_replaces_what_loggers_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    logged_run(run, [])
    left = ("tensorboard/old", "wandb/old", "mlflow/run_id")
    for name in left:
        (run / name).parent.mkdir()
        (run / name).touch()
    logged_run(run, [], overwrite=True)
    assert not any((run / name).exists() for name in left)


# The scenario ------------------------------------------------------------------------------------


def test_without_loggers_a_scenario_is_what_it_was() -> None:
    """So that a run folder of before can be gone on with."""
    document = federation([]).model_dump(mode="json")
    assert "logging" not in document
    given = federation(["tensorboard"])
    assert given.model_dump(mode="json")["logging"] == [{"name": "tensorboard"}]
    assert given.override(logging=[]).digest == federation([]).digest


def test_a_study_s_runs_are_the_same_with_and_without_loggers(hears: str) -> None:
    assert identity_of(federation([hears, "tensorboard"])) == identity_of(federation([]))


def test_parameters_are_flat(tmp_path: Path) -> None:
    parameters = RunStart(tmp_path, federation([{"name": "wandb", "project": "p"}])).parameters
    assert parameters["data.partition.alpha"] == 1.0
    assert parameters["strategy.density"] == STRATEGY["density"]
    assert '"profile": "phone-low-end"' in str(parameters["clients.devices"])
    assert not any(key.startswith("logging") for key in parameters)


@pytest.mark.parametrize(
    ("logging", "expected"),
    [
        ("[tensorbord]", ["logging.0.name", "no logger 'tensorbord'; did you mean 'tensorboard'?"]),
        ("[{name: mlflow, urii: x}]", ["logging.0.urii", "no such key; did you mean 'uri'?"]),
        ("[{name: wandb, mode: on}]", ["logging.0.mode", "'on' is none of offline, online"]),
        ("[{name: mlflow, experiment: 3}]", ["logging.0.experiment", '3 is not text: put it in quotes, "3"']),
        ("[tensorboard, tensorboard]", ["logging", "tensorboard is given 2 times"]),
        ("tensorboard", ["logging", "'tensorboard' is not a list"]),
        ("[3]", ["logging.0", "3 is not a mapping"]),
        ("['./nowhere.py:Mine']", ["logging.0.name", "no file"]),
    ],
)
def test_a_mistake_has_its_line_and_what_would_be_right(
    tmp_path: Path, logging: str, expected: list[str]
) -> None:
    path = tmp_path / "plan.yaml"
    text = federation([]).to_yaml()
    path.write_text(f"{text}logging: {logging}\n")
    line = len(text.splitlines()) + 1
    with pytest.raises(ScenarioError) as caught:
        check(load_scenario(path))
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: {expected[0]}: ")
    assert expected[1] in message
    assert "\n" not in message


def test_what_is_no_logger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    with pytest.raises(ScenarioError, match=r"it must be a subclass of fedprune\.loggers\.Logger"):
        check(federation(["./mine.py:Mine"], tmp_path))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_extra_is_said_before_anything_runs(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = checking.find_spec
    monkeypatch.setattr(checking, "find_spec", lambda module: None if module == name else find(module))
    path = tmp_path / "plan.yaml"
    path.write_text(f"{federation([]).to_yaml()}logging: [{name}]\n")
    assert main(["validate", str(path)]) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith(f"{name} needs {name}: pip install 'fedprune[{name}]' adds it")
    assert "\n" not in said


def test_a_folder_of_a_tracker_s_name_is_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not checking._installed("a_tracker")
    assert checking._installed("json")


def test_loggers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "loggers"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in LOGGERS)
    assert list(registry.available("logger")) == sorted(LOGGERS)


NAMES_ALL = """
import sys
from pathlib import Path
from fedprune import engine
import fedprune.engine.simulation
from fedprune.loggers.channels import loggers_of
from fedprune.scenario import Scenario
from fedprune.server.check import check
plan = Scenario.from_mapping({content})
check(plan)
assert len(loggers_of(plan)) == {count}
print(*sorted({{name.partition(".")[0] for name in sys.modules}} & {{"tensorboard", "mlflow", "wandb"}}))
"""


def test_no_tracker_is_imported_before_a_run_that_names_it() -> None:
    """Not by the package, nor by checking a scenario that names all of them."""
    content = federation(list(LOGGERS)).model_dump(mode="json")
    code = NAMES_ALL.format(content=content, count=len(LOGGERS))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
