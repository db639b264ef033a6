"""The command: what it prints, where, and the status it ends with."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from inprocess import federate
from results.made_runs import write_run

import fedprune
from fedprune.cli import main
from fedprune.cli.arguments import parse_settings
from fedprune.engine.ending import Ending
from fedprune.errors import RunError, UserError
from fedprune.scenario import load_scenario

ROOT = Path(__file__).resolve().parents[2]
PLAN = {
    "name": "tiny",
    "rounds": 3,
    "model": {"name": "cnn"},
    "clients": {"count": 4},
    "strategy": {"name": "flwr.serverapp.strategy.FedAvg"},
}


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN))
    return path


def shell(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, check=False)


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedprune {fedprune.__version__}\n"
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in (
        "run",
        "resume",
        "validate",
        "schema",
        "list",
        "devices",
        "compare",
        "report",
        "export",
        "bench-model",
    ):
        assert f"\n  {command} " in shown


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from fedprune.cli import main; main(['--help']);"
        "print(*({'torch', 'ray', 'flwr', 'matplotlib', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    done = shell("-c", code)
    assert done.returncode == 0
    assert done.stderr.strip() == ""


def test_a_mistake_is_one_line_on_stderr_and_status_2():
    done = shell("run_sim.py", "missing.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "missing.yaml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--bad"], ["run"], ["nonsense"], ["run", "x.yaml", "--seed", "two"], ["resume"], ["compare"]],
)
def test_wrong_usage_is_status_2(arguments, capsys):
    assert main(arguments) == 2
    assert "Usage: fedprune" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("write it so"), 2, "error: write it so\n"),
        (RunError("no client left"), 1, "error: no client left\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ModuleNotFoundError("x", name="matplotlib.figure"), 2, "pip install 'fedprune[sim]'"),
        (ModuleNotFoundError("x", name="scipy.stats"), 2, "pip install 'fedprune[study]'"),
    ],
)
def test_what_goes_wrong_inside_a_command_sets_the_status(error, status, said, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("fedprune.scenario.json_schema", fail)
    assert main(["schema"]) == status
    shown = capsys.readouterr()
    assert shown.out.strip() == ""
    assert said in shown.err


def test_a_fault_of_the_code_itself_is_not_hidden(monkeypatch):
    monkeypatch.setattr("fedprune.scenario.json_schema", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["schema"])


def test_settings_are_keys_and_values():
    assert parse_settings(["a.b=1", "c= x=y ", "a.b=2"]) == {"a.b": "2", "c": " x=y "}
    for wrong in ("density", "=3", ""):
        with pytest.raises(UserError, match="KEY=VALUE"):
            parse_settings([wrong])


def test_validate_describes_what_would_run(plan, capsys):
    assert main(["validate", str(plan), "--set", "clients.per_round=2", "--set", "seed=11"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"ok: {plan}: ")
    for text in ("FedAvg", "cnn", "digits", "4 clients", "3 rounds", "2 clients each", "Seed 11"):
        assert text in shown, text


def test_validate_says_which_devices_there_are_once(plan, capsys):
    kinds = "clients.devices={0: laptop, 1: laptop, 2: raspberry-pi-4, 3: laptop}"
    assert main(["validate", str(plan), "--set", kinds]) == 0
    assert "on laptop and raspberry-pi-4. " in capsys.readouterr().out


def test_validate_says_what_is_not_pruned_where_something_is(plan, capsys):
    assert main(["validate", str(plan)]) == 0
    assert "left dense" not in capsys.readouterr().out
    assert main(["validate", str(plan), "--set", "strategy={name: static, density: 0.2}"]) == 0
    assert "\nleft dense: block1.conv.weight (keep: 'first'), head.weight (" in capsys.readouterr().out


def test_validate_refuses_a_model_that_cannot_be_trained_or_pruned(plan, capsys):
    networks = Path(__file__).resolve().parents[1] / "networks.py"
    assert main(["validate", str(plan), "--set", f"model={{name: {networks}:ReturnsDict}}"]) == 2
    assert "must return one tensor of shape" in capsys.readouterr().err
    settings = "model={name: mlp, hidden: [8]}", "strategy={name: static, density: 0.2}"
    assert main(["validate", str(plan), "--set", settings[0], "--set", settings[1]]) == 2
    assert "nothing is left to prune" in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting", ["clients.per_round=9", "strategy.name=nosuch", "model.name=cn", "rounds=0", "colour=1"]
)
def test_validate_refuses_what_cannot_run(plan, setting, capsys):
    assert main(["validate", str(plan), "--set", setting]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert setting.partition("=")[0].partition(".")[0] in shown.err


SMALL_DEVICES = [
    {"name": "tiny", "memory": "300 KiB", "compute": 1e9, "downlink": 1e6, "uplink": 1e6, "count": 1},
    {"name": "large", "memory": "1 GiB", "compute": 1e9, "downlink": 1e6, "uplink": 1e6, "count": 3},
]


@pytest.fixture
def small(tmp_path):
    """A scenario in which one client of four has too little memory."""
    static = {"name": "static", "criterion": "magnitude", "distribution": "erk", "density": 0.3}
    path = tmp_path / "small.yaml"
    clients = {"count": 4, "devices": SMALL_DEVICES, "over_budget": "error"}
    path.write_text(yaml.safe_dump({**PLAN, "clients": clients, "strategy": static}))
    return path


def test_validate_refuses_a_run_that_would_be_refused(small, capsys):
    assert main(["validate", str(small)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "the run would be refused: " in shown.err
    assert main(["validate", str(small), "--set", "clients.over_budget=exclude"]) == 0
    assert "but: the peak memory" in capsys.readouterr().out
    one = [{**SMALL_DEVICES[0], "count": 4}]
    nobody = ["--set", f"clients.devices={json.dumps(one)}", "--set", "clients.over_budget=exclude"]
    assert main(["validate", str(small), *nobody]) == 2


def test_validate_devices_and_a_refusal_name_the_same_memory(small, capsys):
    """Before the first masks; the refusal of the strategy itself, without any engine."""
    assert main(["devices", str(small)]) == 0
    peak = cells(capsys.readouterr().out)["tiny"][-4]
    assert main(["validate", str(small)]) == 2
    assert f"at density 0.3 in batches of 32 is {peak}, more than" in capsys.readouterr().err
    hopeless = load_scenario(
        small, {"clients.devices": [{**SMALL_DEVICES[0], "memory": "1 KiB"}, SMALL_DEVICES[1]]}
    )
    with pytest.raises(UserError, match="too little memory") as refusal:
        federate(hopeless)
    assert f"at density 0.3 in batches of 32 is {peak}, the smallest" in str(refusal.value)


def test_schema_is_json_schema(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"name", "rounds", "strategy", "clients"} <= set(schema["properties"])


def test_list_names_what_there_is_with_a_line_each(capsys):
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    for text in (
        "clients:\n",
        "  supermask  ",
        "models:\n",
        "  resnet18  ",
        "criteria:\n",
        "  magnitude  ",
        "devices:\n",
        "raspberry-pi-4",
    ):
        assert text in everything, text
    assert main(["list", "models"]) == 0
    models = capsys.readouterr().out
    assert models in everything
    assert "magnitude" not in models
    assert main(["list", "colours"]) == 2
    assert "clients, models" in capsys.readouterr().err


def cells(text: str) -> dict[str, list[str]]:
    """Return the rows of a printed table by their first cell."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_devices_lists_the_profiles_with_their_numbers(capsys):
    assert main(["devices"]) == 0
    table = cells(capsys.readouterr().out)
    assert table["device"] == ["memory", "compute", "down", "up", "online", "dropout"]
    assert table["raspberry-pi-4"] == ["3 GiB", "11.9 GFLOP/s", "79 Mbit/s", "34.9 Mbit/s", "100%", "2%"]
    for arguments in (["--density", "0.1"], ["--batch", "4"], ["--set", "seed=1"]):
        assert main(["devices", *arguments]) == 2
        assert "name a SCENARIO" in capsys.readouterr().err


def test_devices_says_what_of_a_scenario_fits(plan, capsys):
    """The table's answers, asked for again: the density fits as it is printed, one example more does not."""
    trace = plan.with_name("trace.csv")
    rows = [
        "name,memory,compute,downlink,uplink",
        *["small,700 KiB,1e9,1e6,1e6"] * 3,
        "tiny,64 KiB,1e9,1e6,1e6",
    ]
    trace.write_text("\n".join(rows))
    static = "strategy={name: static, criterion: magnitude, distribution: erk, density: 0.5}"
    asked = ["devices", str(plan), "--set", static, "--set", "clients.trace=trace.csv"]

    def table(*more: str) -> dict[str, list[str]]:
        assert main([*asked, *more]) == 0
        return cells(capsys.readouterr().out)

    first = table("--batch", "8")
    assert first["device"][-4:] == ["peak memory", "fits", "largest density", "largest batch"]
    assert first["tiny"][-3:] == ["no", "none", "none"]
    for note in ("fits 3 of its 4 clients", "taken to be erk"):
        assert any(note in row for row in first), note
    *_, fits, density, batch = first["small"]
    assert fits == "yes"
    assert table("--batch", str(int(batch) + 1))["small"][-3] == "no"
    assert 0.5 < float(density) < 1
    assert table("--batch", "8", "--density", density)["small"][-3] == "yes"


def test_devices_refuses_what_cannot_run(plan, capsys):
    for arguments in (["--density", "0"], ["--batch", "0"], ["--set", "model.name=cn"]):
        assert main(["devices", str(plan), *arguments]) == 2
        assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_run_sim_runs_a_scenario_and_says_where_it_is(plan, tmp_path):
    out = tmp_path / "out"
    command = ["run_sim.py", str(plan), "--set", "strategy.name=fedavg", "--seed", "5", "--out", str(out)]
    done = shell(*command)
    assert done.returncode == 0, done.stderr
    assert f"run folder: {out}" in done.stdout
    assert "accuracy, final" in done.stdout
    assert "round 3/3: accuracy" in done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["seed"]) == ("complete", 3, 5)
    again = shell(*command)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def test_compare_prints_and_writes(tmp_path, capsys):
    write_run(tmp_path / "a", 1.0, {"name": "a"}, bytes_up=2**20)
    write_run(tmp_path / "b", 0.25, {"name": "b"}, bytes_up=2**18)
    numbers, figure = tmp_path / "numbers.csv", tmp_path / "comparison.png"
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["compare", *folders, "--csv", str(numbers), "--figure", str(figure)]) == 0
    assert "1 MiB (0.25x)" in capsys.readouterr().out
    with numbers.open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["a", "b"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert main(["compare", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def test_a_signal_that_nobody_heard_ends_the_run_with_its_next_task():
    """An exception is dropped where it is raised in a finalizer: the run goes on until it is asked again."""
    ending = Ending()
    ending.on_task(None)
    with pytest.raises(KeyboardInterrupt):
        ending(15, None)
    for hear in (ending.on_task, ending.on_round):
        with pytest.raises(KeyboardInterrupt):
            hear(None)
