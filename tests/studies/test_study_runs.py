"""Runs of a study: each once, side by side, whatever becomes of one; gone on with after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from inprocess import PLAN

import fedprune
from fedprune.cli import main
from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run as simulate
from fedprune.errors import UserError
from fedprune.results.run import Run
from fedprune.scenario.yaml_file import write
from fedprune.studies.plan import PlannedRun
from fedprune.studies.study import Study, study

pytest.importorskip("ray")

pytestmark = pytest.mark.slow

STATIC = {"strategy": {"name": "static", "density": 0.2, "pretrain_epochs": 1}}
SMALL: dict[str, Any] = {
    "name": "small",
    "base": {**PLAN, "rounds": 1, "engine": {"workers": 2}},
    "seeds": 2,
    "runs": {"Dense": {"strategy": {"name": "fedavg"}}, "Static": STATIC},
    "reference": "Dense",
}
WALL = ("wall_seconds",)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run without what the clock says."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in WALL} for record in records]


def by_itself(planned: PlannedRun, folder: Path) -> Run:
    """Return the run of the same scenario, done without a study."""
    return simulate(
        planned.scenario, out=folder / planned.folder, progress=False, host=InProcess(), figures=False
    )


def is_runner(process: psutil.Process) -> bool:
    """Say whether a process is one of a study's."""
    try:
        return "Runner" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def opened(folder: Path, **changes: Any) -> Study:
    return study({**SMALL, **changes}, out=folder / "out")


def test_a_study_has_the_runs_that_its_scenarios_have_by_themselves(shared_ray, tmp_path):
    done = opened(tmp_path).run(progress=False)
    assert [outcome.complete for outcome in done.outcomes] == [True] * 4
    for planned in done.planned():
        alone = by_itself(planned, tmp_path)
        place = done.folder.place(planned)
        for file in ("rounds.jsonl", "clients.jsonl"):
            assert lines(place / file) == lines(alone.directory / file)
        state = fedprune.load_run(place).model().state_dict()
        assert all(torch.equal(value, state[key]) for key, value in alone.model().state_dict().items())
    # Of one seed, both begin with the same initial weights: the pretraining is kept once a seed.
    assert len(list((done.directory / "pretrained").glob("*.safetensors"))) == 2


def test_a_run_that_ended_is_never_repeated_and_only_what_is_new_is_run(shared_ray, tmp_path):
    first = opened(tmp_path).run(progress=False)
    before = {run.directory: (run.directory / "summary.json").stat().st_mtime_ns for run in first.runs}
    renamed = {"Mean": SMALL["runs"]["Dense"], "Static": STATIC, "Snip": {"strategy": {**STATIC["strategy"]}}}
    renamed["Snip"]["strategy"] = {"name": "static", "density": 0.2, "criterion": "snip"}
    more = opened(tmp_path, runs=renamed, seeds=3, reference="Mean")
    assert [run.title for run in more.missing()] == [
        "Snip, seed 0",
        "Snip, seed 1",
        "Mean, seed 2",
        "Static, seed 2",
        "Snip, seed 2",
    ]
    more.run(progress=False)
    assert more.missing() == []
    assert {path: (path / "summary.json").stat().st_mtime_ns for path in before} == before
    assert [outcome.group for outcome in more.outcomes] == ["Mean"] * 3 + ["Static"] * 3 + ["Snip"] * 3


def test_a_run_that_fails_is_reported_and_the_others_go_on(shared_ray, tmp_path, capfd):
    runs = {
        "Diverges": {**STATIC, "clients.training.optimizer.lr": 1e30},
        "NoData": {**STATIC, "data.name": "cifar10", "data.path": str(tmp_path)},
        "Dies": {"strategy": {"name": "fedavg"}, "model.name": f"{tmp_path}/dying.py:Dying"},
        "Good": STATIC,
    }
    (tmp_path / "dying.py").write_text(DYING)
    spec = {**SMALL, "runs": runs, "seeds": 1, "reference": "Good"}
    spec["base"] = {**SMALL["base"], "model": {"name": "mlp"}}
    (tmp_path / "study.yaml").write_text(write(spec))
    where = [str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    assert main(["study", "run", *where]) == 1
    out, err = capfd.readouterr()
    assert "Diverges, seed 0: failed: pretraining diverged" in err
    assert "NoData, seed 0: failed: " in err
    assert "Dies, seed 0: failed: its process died twice" in err
    assert "Good, seed 0: accuracy" in err
    assert "3 of 4 runs failed" in err
    assert "Good" in out
    made = study(tmp_path / "study.yaml", out=tmp_path / "out")
    states = {run.variant: made.folder.status(run) for run in made.planned()}
    assert states == {"Diverges": "failed", "NoData": "failed", "Dies": "failed", "Good": "complete"}
    assert main(["study", "watch", *where, "--once"]) == 0
    assert "1 of 4 runs are complete" in capfd.readouterr().out


DYING = """\
import os

import ray
from torch import nn

def Dying(input_shape, classes):
    # In a process of the study, not where the study is read or measured.
    if ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        os._exit(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


def test_a_task_that_ends_its_process_ends_no_run(shared_ray, tmp_path):
    faults = {"faults": {"at": [{"round": 1, "client": 0, "fault": "kill_worker"}]}}
    base = {**SMALL["base"], "clients": {**PLAN["clients"], "per_round": 4}}
    done = opened(
        tmp_path, base=base, seeds=1, runs={"Hit": {**STATIC, **faults}, "Spared": STATIC}, reference=None
    )
    done.run(progress=False)
    hit, spared = done.outcomes
    assert hit.complete
    assert hit.summary["faults"] == {"worker-died": 1}
    assert spared.summary["faults"] == {}


def test_a_variant_is_tuned_on_seeds_of_its_own_before_the_comparison(shared_ray, tmp_path):
    tune = {"grid": {"clients.training.optimizer.lr": [1e-6, 0.05]}, "seeds": [77]}
    done = opened(tmp_path, runs={"Dense": SMALL["runs"]["Dense"], "Tuned": {**STATIC, "tune": tune}})
    assert done.won("Tuned") is None
    done.run(progress=False)
    assert done.won("Tuned") == {"clients.training.optimizer.lr": 0.05}
    tuned = [run for run in done.planned() if run.variant == "Tuned"]
    assert {run.scenario.clients.training.optimizer.lr for run in tuned} == {0.05}
    assert all(done.folder.status(run) == "complete" for run in tuned)
    assert {run.seed for run in done.trials()} == {77}
    assert {outcome.seed for outcome in done.outcomes} == {0, 1}


def test_a_folder_is_one_studys_at_a_time(tmp_path):
    one = opened(tmp_path)
    with one.folder.held(), pytest.raises(UserError, match="is being run into this folder already"):
        one.run(progress=False)


def test_a_study_that_is_broken_off_goes_on_where_it_was(shared_ray, tmp_path):
    """By Ctrl-C, gone on with by the same command, and then by a kill."""
    rounds = 40
    spec = {**SMALL, "base": {**PLAN, "rounds": rounds, "engine": {"workers": 2}}, "seeds": 1}
    (tmp_path / "study.yaml").write_text(write(spec))
    command = [sys.executable, "-m", "fedprune.cli", "study", "run", str(tmp_path / "study.yaml")]
    made = study(tmp_path / "study.yaml", out=tmp_path / "out")
    planned = made.planned()
    for number in (signal.SIGINT, signal.SIGKILL):
        before = {run.identity: made.folder.rounds_done(run) for run in planned}
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        # Each has done two rounds more; a run that was broken off begins again at its checkpoint.
        while process.poll() is None and any(
            made.folder.rounds_done(run) < min(before[run.identity] + 2, rounds) for run in planned
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        below = psutil.Process(process.pid).children(recursive=True)
        runners = [each for each in below if is_runner(each)]
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert "the same command goes on with it" in err
            assert {made.folder.status(run) for run in planned} <= {"interrupted", "complete"}
        # Ray's own agents follow by and by.
        _, alive = psutil.wait_procs(runners, timeout=60)
        assert len(runners) == 2
        assert not alive
    made.run(progress=False)
    for run in planned:
        place = made.folder.place(run)
        alone = by_itself(run, tmp_path)
        assert lines(place / "rounds.jsonl") == lines(alone.directory / "rounds.jsonl")
        total = json.loads((place / "summary.json").read_text())
        assert total["status"] == "complete"


CLUSTER = """\
import json
import sys

import ray
from ray.cluster_utils import Cluster

import fedprune

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=2)
spec = json.loads(sys.argv[1])
spec["base"]["engine"] = {"ray_address": cluster.address}
done = fedprune.study(spec, out=sys.argv[2]).run(jobs=2, progress=False)
print(sorted(done.folder.status(run) for run in done.planned()))
cluster.shutdown()
"""


def test_on_a_cluster_of_several_machines_runs_are_the_same_and_their_folders_here(tmp_path):
    spec = {**SMALL, "seeds": 1}
    command = [sys.executable, "-c", CLUSTER, json.dumps(spec), str(tmp_path / "out")]
    # A cluster of several nodes on one machine: what differs from several machines is the network between.
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert "['complete', 'complete']" in done.stdout, done.stderr
    made = opened(tmp_path, seeds=1)
    for planned in made.planned():
        place = made.folder.place(planned)
        alone = by_itself(planned, tmp_path)
        assert lines(place / "rounds.jsonl") == lines(alone.directory / "rounds.jsonl")
