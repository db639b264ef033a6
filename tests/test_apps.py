"""The Flower apps: on any grid, and under `flwr run`, they give what `fedprune.run` gives.

They are compared with a run without Ray; on Ray it gives the same: tests/strategies/test_every_strategy.py.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from flwr.app import Context, RecordDict
from inprocess import PLAN, InProcessGrid, same_state

from fedprune import client_app, load_run, run, server_app
from fedprune.engine.hosts import InProcess
from fedprune.errors import ScenarioError, UserError
from fedprune.protocol.run_config import scenario_of
from fedprune.wire import get_state

#: What a process has measured differs from one to the next; a simulation says nothing of memory.
UNMEASURED = dict.fromkeys(("wall_seconds", "measured_seconds", "measured_memory_bytes"))
ROOT = Path(__file__).resolve().parent.parent
STRATEGY = {"name": "static", "density": 0.3, "criterion": "snip", "distribution": "global"}


@pytest.fixture
def path(tmp_path):
    """A scenario whose clients also evaluate, on two kinds of device."""
    changes = {
        "data": {**PLAN["data"], "client_test_fraction": 0.2},
        "evaluation": {"clients": True},
        "strategy": STRATEGY,
        "engine": {"workers": 2},
    }
    devices = [{"profile": "raspberry-pi-4", "share": 0.5}, {"profile": "phone-low-end", "share": 0.5}]
    content = {**PLAN, **changes, "clients": {**PLAN["clients"], "devices": devices}}
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """Figures take longer than these runs, and have tests of their own."""
    monkeypatch.setattr("fedprune.results.figures.draw", lambda *_, **__: None)


def serve_in_process(run_config, clients=4):
    """Run the server app on a grid in this process whose nodes run the client app."""
    nodes = {number + 2: {"partition-id": number} for number in range(clients)}
    grid = InProcessGrid(client_app.app, nodes, run_config=run_config)
    server_app.main(grid, Context(1, 1, {}, RecordDict(), run_config))


def assert_same_results(one, other):
    """Two run folders hold the same but for what a clock on the wall says."""
    assert len(one.rounds) == len(other.rounds) > 1
    for mine, theirs in ((one.rounds, other.rounds), (one.clients, other.clients)):
        assert [{**line, **UNMEASURED} for line in mine] == [{**line, **UNMEASURED} for line in theirs]
    measured = "wall_seconds", "startup_seconds", "total_seconds", "measured", "relative"
    assert {k: v for k, v in one.summary.items() if k not in measured} == {
        k: v for k, v in other.summary.items() if k not in measured
    }
    assert {**one.summary["relative"], "wall_seconds": 0} == {**other.summary["relative"], "wall_seconds": 0}
    assert same_state(get_state(one.model()), get_state(other.model()))


def test_the_apps_give_what_a_run_gives(path, tmp_path):
    serve_in_process({"scenario": str(path), "out": str(tmp_path / "apps"), "set": "rounds=3 seed=5"})
    done = run(path, out=tmp_path / "run", rounds=3, seed=5, host=InProcess())
    assert done.summary["status"] == "complete"
    assert_same_results(load_run(tmp_path / "apps"), done)


def test_the_run_folder_of_the_server_app(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"scenario": "plan.yaml", "set": "rounds=1"}
    serve_in_process(config)
    assert load_run(tmp_path / "runs" / "test").summary["rounds"] == 1
    with pytest.raises(UserError, match="holds a run already"):
        serve_in_process(config)
    serve_in_process({**config, "set": "rounds=2", "overwrite": True})
    assert load_run(tmp_path / "runs" / "test").summary["rounds"] == 2


def test_the_server_app_checks_a_scenario_before_it_runs(path, tmp_path):
    config = {"scenario": str(path), "out": str(tmp_path / "out"), "set": "strategy.density=2"}
    with pytest.raises(ScenarioError, match="density"):
        serve_in_process(config)
    with pytest.raises(UserError, match="leave out 'faults'"):
        serve_in_process({**config, "set": "faults.late=0.1"})
    assert not (tmp_path / "out").exists()


def test_what_a_run_config_names(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"scenario": "plan.yaml", "set": "rounds=7 name='my-run' strategy.density=0.5", "out": "x"}
    found = scenario_of(config)
    assert (found.rounds, found.name, found.strategy.options["density"]) == (7, "my-run", 0.5)
    assert found.directory == tmp_path
    assert scenario_of({"scenario": str(path)}) == scenario_of({"scenario": "plan.yaml", "set": ""})
    # Where nothing of that name stands in the working directory, it is a file beside the package.
    assert scenario_of({"scenario": "scenarios/quickstart.yaml"}).name == "quickstart"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "the run config names no scenario"),
        ({"scenario": ""}, "the run config names no scenario"),
        ({"scenario": "scenarios/nowhere.yaml"}, r"scenarios/nowhere\.yaml"),
        ({"scenario": "scenarios/quickstart.yaml", "set": "rounds"}, "'rounds' is not KEY=VALUE"),
        ({"scenario": "scenarios/quickstart.yaml", "set": "round=3"}, "did you mean 'rounds'"),
        ({"scenario": "scenarios/quickstart.yaml", "set": "name='x"}, "run config 'set'"),
    ],
)
def test_what_a_run_config_cannot_name(config, expected):
    with pytest.raises(ScenarioError, match=expected):
        scenario_of(config)


# flwr run ----------------------------------------------------------------------------------------


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def flower(tmp_path):
    """Run Flower's commands with a home and ports of their own; end what they leave running."""
    home = tmp_path / "flower"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": free_port(),
        "FLWR_LOCAL_CONTROL_API_PORT": free_port(),
        "RAY_ADDRESS": "local",  # Flower would join a Ray cluster that runs on this machine.
    }

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [shutil.which("flwr", path=environment["PATH"]), *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240
        )

    yield call
    left = [process for process in psutil.process_iter() if home_of(process) == str(home)]
    for process in left:
        process.terminate()
    for process in psutil.wait_procs(left, timeout=10)[1]:
        process.kill()


def home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("FLWR_HOME")
    except psutil.Error:
        return None


PLUG_INS = {
    "mine.py": """
import helper
from fedprune.strategies.static import Static


class Mine(Static):
    \"\"\"A strategy with clients of its own, which a file beside it names.\"\"\"

    client = helper.CLIENT
""",
    "ours.py": """
from fedprune.clients.sparse import Sparse


class Ours(Sparse):
    \"\"\"Learns at half the rate.\"\"\"

    def learning_rate(self, server_round):
        from helper import SHARE

        return SHARE * super().learning_rate(server_round)
""",
    "helper.py": "CLIENT = './ours.py:Ours'\nSHARE = 0.5\n",
}


@pytest.mark.slow
def test_flwr_run_gives_what_a_run_gives(path, tmp_path, flower):
    """With loggers; and a strategy and clients in files beside the scenario, which import another there."""
    for name, text in PLUG_INS.items():
        (tmp_path / name).write_text(text)
    plan = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**plan, "strategy": {**STRATEGY, "name": "./mine.py:Mine"}}))
    out = tmp_path / "flwr"
    config = f'scenario="{path}" out="{out}" set="rounds=2 logging=[tensorboard,mlflow,wandb]"'
    shown = flower(
        "run", ".", "local", "--stream", "--federation-config", "num-supernodes=4", "--run-config", config
    )
    assert (out / "summary.json").exists(), shown.stdout[-3000:] + shown.stderr[-3000:]
    done = run(path, out=tmp_path / "run", rounds=2, host=InProcess())
    found = load_run(out)
    assert found.summary["status"] == "complete"
    assert_same_results(found, done)
    assert found.scenario.clients.algorithm == f"{tmp_path}/ours.py:Ours"
    for logged in ("tensorboard/events.out.tfevents.*", "mlflow/artifacts/*/artifacts/summary.json"):
        assert list(out.glob(logged)), shown.stdout[-3000:] + shown.stderr[-3000:]
    assert list(out.glob("wandb/offline-run-*/files/summary.json"))
