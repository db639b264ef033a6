"""Whole runs: the same result on any workers and any cluster, and a complete folder however they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

import fedprune
from fedprune.cli import main
from fedprune.engine.simulation import run
from fedprune.results.run import Run

ROOT = Path(__file__).resolve().parents[2]
SLOW_START = 90
PLAN: dict[str, Any] = {
    "name": "small",
    "seed": 1,
    "rounds": 3,
    "model": {"name": "cnn", "width": 0.5},
    "data": {"name": "digits", "partition": {"scheme": "dirichlet", "alpha": 0.5}},
    "clients": {
        "count": 8,
        "per_round": 4,
        "training": {"batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
        "devices": [
            {"profile": "raspberry-pi-4", "share": 0.5},
            {"memory": "64 MiB", "compute": "2 GFLOP/s", "downlink": "20 Mbit/s", "uplink": "5 Mbit/s",
             "share": 0.5},
        ],
    },
    "strategy": {"name": "static", "density": 0.1},
}  # fmt: skip


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "small.yaml"
    path.write_text(yaml.safe_dump(PLAN))
    return path


@pytest.fixture(scope="module")
def two_workers(shared_ray: None, plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(plan, out=tmp_path_factory.mktemp("two") / "run", engine__workers=2)


def lines(directory: Path, name: str) -> list[dict[str, Any]]:
    """Return the records of a file but for what depends on the machine."""
    records = [json.loads(line) for line in (directory / name).read_text().splitlines()]
    for record in records:
        assert record.pop("wall_seconds") >= 0
    return records


def assert_same_results(one: Path, other: Path) -> None:
    for name in ("rounds.jsonl", "clients.jsonl"):
        assert lines(one, name) == lines(other, name)
    states = [fedprune.load_model(each / "model.safetensors").state_dict() for each in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_results_are_the_same_bits_on_any_number_of_workers(two_workers, plan, tmp_path):
    """On one worker, and on none: test_engine_local_grid.py."""
    done = run(plan, out=tmp_path / "run", engine__workers=3)
    assert_same_results(done.directory, two_workers.directory)
    assert [record["round"] for record in lines(done.directory, "rounds.jsonl")] == [0, 1, 2, 3]
    assert len(lines(done.directory, "clients.jsonl")) == 8 + 3 * 4
    assert done.summary["final_accuracy"] > 0.2
    assert done.summary["density"] == pytest.approx(0.1, abs=0.01)


def test_start_up_rounds_and_total_are_told_apart(two_workers):
    summary = two_workers.summary
    assert summary["wall_seconds"] == sum(record["wall_seconds"] for record in two_workers.rounds)
    assert summary["startup_seconds"] > 0
    assert summary["total_seconds"] > summary["startup_seconds"] + summary["wall_seconds"]


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
from fedprune.engine.simulation import run

cluster = Cluster()
for _ in range(2):
    cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20)
try:
    run(sys.argv[1], out=sys.argv[2], engine__ray_address=cluster.address, engine__workers=2)
finally:
    cluster.shutdown()
"""


@pytest.mark.slow
def test_a_cluster_of_two_nodes_gives_the_same_results(two_workers, plan, tmp_path):
    """Each node has one core, so each has one of the two workers."""
    command = [sys.executable, "-c", CLUSTER, str(plan), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_results(tmp_path / "run", two_workers.directory)


NICENESS = """
import os
from fedprune.client.app import FederatedClientApp
from fedprune.engine.cluster import cluster
from fedprune.engine.grid import RayGrid
from fedprune.scenario import EngineSpec

with cluster(EngineSpec(workers=1, niceness=3)) as placement:
    with RayGrid(FederatedClientApp, [{}], workers=1, resources={"find_site": None}) as grid:
        print(*(os.getpriority(os.PRIO_PROCESS, pid) for pid in grid.worker_pids))
"""


@pytest.mark.slow
def test_workers_run_at_the_niceness_that_the_scenario_says():
    command = [sys.executable, "-c", NICENESS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SLOW_START, check=False)
    assert done.stdout == "3\n", done.stderr[-2000:]


@pytest.mark.slow
def test_an_address_where_no_cluster_is_is_one_clear_line_and_soon(plan, tmp_path):
    began = time.monotonic()
    command = [sys.executable, "run_sim.py", str(plan), "--out", str(tmp_path / "run"), "--set"]
    command += ["engine.ray_address=127.0.0.1:1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SLOW_START, check=False)
    assert time.monotonic() - began < 45
    assert done.returncode == 1
    *steps, line = done.stderr.splitlines()
    assert (steps[0], steps[-1]) == ("reading digits", "joining the Ray cluster")
    assert "no Ray cluster answers at '127.0.0.1:1'" in line


@pytest.mark.slow
def test_a_round_without_a_good_reply_ends_the_run_with_a_complete_folder(shared_ray, plan, tmp_path, capfd):
    out = tmp_path / "run"
    changes = ["--set", "clients.training.optimizer.lr=1e30", "--set", "engine.workers=1"]
    status = main(["run", str(plan), "--quiet", "--out", str(out), *changes])
    said = capfd.readouterr().err
    assert status == 1
    assert "error: round 1: none of 4 clients gave a usable reply" in said
    assert "not finite" in said
    assert "Traceback" not in said
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["reason"] in said
    assert [record["round"] for record in lines(out, "rounds.jsonl")] == [0]
    failed = [record for record in lines(out, "clients.jsonl") if record["status"] == "failed"]
    assert len(failed) == 4
    fedprune.load_model(out / "model.safetensors")


@pytest.fixture
def running(plan: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A real `python run_sim.py` of many rounds, in a process group of its own, after its second round."""
    command = [sys.executable, "run_sim.py", str(plan), "--quiet", "--out", str(tmp_path / "run")]
    command += ["--set", "rounds=100000", "--set", "engine.workers=2"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    rounds = tmp_path / "run" / "rounds.jsonl"
    deadline = time.monotonic() + SLOW_START
    while not (rounds.exists() and len(rounds.read_text().splitlines()) > 2):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "to_all"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM to Ray's processes, too"],
)
def test_a_signal_ends_a_run_with_a_complete_folder_and_leaves_no_process(running, tmp_path, end, to_all):
    children = psutil.Process(running.pid).children(recursive=True)
    assert any("ray::" in child.name() or "Worker" in " ".join(child.cmdline()) for child in children)
    if to_all:  # Ctrl-C and a shell's `kill %1` reach every process of the group.
        os.killpg(running.pid, end)
    else:
        running.send_signal(end)
    _, said = running.communicate(timeout=SLOW_START)
    assert running.returncode == 130
    assert said.splitlines() == [
        f"the run folder {tmp_path / 'run'} holds the rounds that ended; "
        f"fedprune resume {tmp_path / 'run'} goes on with it",
        "interrupted",
    ]
    out = tmp_path / "run"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    rounds = [record["round"] for record in lines(out, "rounds.jsonl")]
    assert rounds == list(range(summary["rounds"] + 1))
    assert summary["rounds"] >= 2
    assert lines(out, "clients.jsonl")
    fedprune.load_model(out / "model.safetensors")
    _, alive = psutil.wait_procs(children, timeout=10)
    assert [process.name() for process in alive] == []
