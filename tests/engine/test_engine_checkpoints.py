"""Checkpoints: a run that was broken off at any moment ends as one that never was, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import forked
import pytest
import ray
import safetensors.numpy
import torch
from forked import KILLED, Kill
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inprocess import SPLIT, SUBMODELS, assemble, plan, same_state

import fedprune
from engine.test_engine_run import ROOT, assert_same_results
from fedprune import registry
from fedprune.cli import main
from fedprune.costs.ledger import RoundRecord
from fedprune.engine import checkpoints
from fedprune.engine.hosts import InProcess
from fedprune.engine.records import pack_state, unpack_state
from fedprune.engine.simulation import remembered
from fedprune.errors import RunError, UserError
from fedprune.results.run import Run
from fedprune.scenario import Scenario
from fedprune.server.columns import from_columns
from fedprune.server.snapshot import restore, snapshot

ADAM = {"name": "flwr.serverapp.strategy.FedAdam", "eta": 0.02, "tau": 0.001}
#: Options with which short runs come to where strategies, aggregators and clients remember something.
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedadam": ADAM,
    "static": {"name": "static", "density": 0.2, "aggregator": ADAM},
    "feddst": {"name": "feddst", "density": 0.2, "adjust_every": 1, "stop_adjusting_at": 5},
    "fedmask": {"name": "fedmask", "density": 0.3, "keep_scores": True},
    "fedmef": {"name": "fedmef", "density": 0.2, "adjust_every": 2, "stop_adjusting_at": 4},
    "fedpm": {"name": "fedpm", "reset_every": 10},
    "fedrts": {"name": "fedrts", "density": 0.2, "adjust_every": 1},
    "salientgrads": {"name": "salientgrads", "density": 0.2},
    "flash": {"name": "flash", "density": 0.2, "sensing_epochs": 2, "joint": True},
    "dispfl": {"name": "dispfl", "density": 0.2},
    "fedspa": {"name": "fedspa", "density": 0.2},
    "feddip": {"name": "feddip", "density": 0.2, "reconfigure_every": 2},
    "complement": {"name": "complement", "density": 0.2},
    "fedtiny": {"name": "fedtiny", "density": 0.2, "candidates": 2, "adjust_every": 1},
    "gradual": {"name": "gradual", "density": 0.2, "regrow": True},
    "hidenseek": {"name": "hidenseek", "density": 0.3, "keep_scores": True, "train_dense": True},
    "lotteryfl": {"name": "lotteryfl", "density": 0.2, "accuracy_threshold": 0.05, "prune_step": 0.3},
    "prunefl": {"name": "prunefl", "density": 0.3, "adjust_every": 1},
    **{name: {"name": name, **options} for name, options in SPLIT.items()},
    **{name: {"name": name, "shares": [1.0, 0.5], "static_batch_norm": True} for name in SUBMODELS},
}  # fmt: skip


def small(directory: Path | None = None, **changes: Any) -> Scenario:
    return plan(directory, **{"strategy": STRATEGIES["fedavg"], **changes})


def same(one: Any, other: Any) -> bool:
    """Say whether two trees are the same, bit for bit; a list stands for a tuple."""
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


# What is written is read -----------------------------------------------------------------

tensors = st.builds(
    lambda shape, dtype, seed: (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 9).to(
        dtype
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bool, torch.int32, torch.int64]),
    st.integers(0, 99),
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=9) | tensors
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@settings(max_examples=40)
@example({"$bytes": None, "$tensor": {"$$tensor": b"a"}, "$": [{"$bytes": "0"}]})
@given(st.dictionaries(st.text(), trees, max_size=4))
def test_a_tree_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    directory = tmp_path_factory.mktemp("tree")
    checkpoints.write(directory, small(), 7, tree)
    found = checkpoints.newest(directory, small())
    assert found is not None
    assert found.round == 7
    assert same(tree, found.content)


def test_equal_bytes_are_written_once(tmp_path):
    states = {str(number): bytes(10_000) for number in range(50)}
    path = checkpoints.write(tmp_path, small(), 1, states)
    assert sum(file.stat().st_size for file in path.iterdir()) < 20_000


@pytest.mark.parametrize("wrong", [{"a": {1: 2}}, {"a": object()}, {"a": [torch.float32]}])
def test_what_cannot_be_kept_is_refused_with_its_place(tmp_path, wrong):
    with pytest.raises(TypeError, match="content"):
        checkpoints.write(tmp_path, small(), 1, wrong)
    assert checkpoints.listed(tmp_path) == []


def test_sha256sum_checks_a_checkpoint(tmp_path):
    path = checkpoints.write(tmp_path, small(), 1, {"weights": torch.ones(3)})
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=path, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert sorted(file.name for file in path.iterdir()) == [
        "SHA256SUMS",
        "manifest.json",
        "tensors.safetensors",
    ]


# Damage and other runs -------------------------------------------------------------------


def written(directory: Path, *rounds: int) -> Path:
    """Write a checkpoint after each of some rounds; return the last one's path."""
    for number in rounds:
        path = checkpoints.write(
            directory, small(), number, {"round": number, "weights": torch.full((99,), number)}
        )
    return path


def test_the_newest_two_are_kept(tmp_path):
    written(tmp_path, 0, 1, 2, 9, 10)
    assert [path.name for path in checkpoints.listed(tmp_path)] == ["round-000009", "round-000010"]


@pytest.mark.parametrize("name", ["manifest.json", "tensors.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, caplog, name, damage):
    file = written(tmp_path, 1, 2) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"flipped": content, "cut": content[:-9], "empty": b""}[damage])
    found = checkpoints.newest(tmp_path, small())
    assert found is not None
    assert found.content["round"] == found.round == 1
    assert "round-000002 is damaged" in caplog.text
    assert "going on from the one before: " in caplog.text


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(tmp_path):
    assert checkpoints.newest(tmp_path, small()) is None
    for path in (written(tmp_path, 1), written(tmp_path, 2)):
        (path / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="all checkpoints are damaged"):
        checkpoints.newest(tmp_path, small())


def test_another_scenario_is_refused_with_the_difference_but_for_the_engine(tmp_path):
    written(tmp_path, 1)
    other = small(strategy={"name": "static", "density": 0.25}, seed=4)
    with pytest.raises(UserError) as refused:
        checkpoints.newest(tmp_path, other)
    said = str(refused.value)
    assert "round-000001: is of another scenario" in said
    for difference in (
        "seed is 4, there 3",
        "strategy.name is 'static', there 'fedavg'",
        "strategy.density is 0.25",
    ):
        assert difference in said
    assert "model" not in said
    assert checkpoints.newest(tmp_path, small(engine__workers=3, engine__checkpoint_every=5)) is not None


@pytest.mark.parametrize(("name", "value"), [("FORMAT", 0), ("__version__", "0.0.1")])
def test_a_checkpoint_of_an_older_version_is_refused(tmp_path, monkeypatch, name, value):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, name, value)
        checkpoints._versions.cache_clear()
        written(tmp_path, 1)
    checkpoints._versions.cache_clear()
    with pytest.raises(
        UserError, match=r"round-000001: written by fedprune .*, but this is .*resume it with that"
    ):
        checkpoints.newest(tmp_path, small())


def test_another_version_of_a_library_is_a_warning(tmp_path, monkeypatch, caplog):
    written(tmp_path, 1)
    monkeypatch.setattr(checkpoints, "_versions", lambda: {**VERSIONS, "torch": "9.9"})
    assert checkpoints.newest(tmp_path, small()) is not None
    assert f"written with torch {VERSIONS['torch']}, this is 9.9" in caplog.text


VERSIONS = dict(checkpoints._versions())


class Killed(BaseException):
    """What a kill is to the process: nothing after it happens."""


@pytest.mark.parametrize("step", range(12))
def test_a_kill_at_any_step_of_writing_leaves_a_whole_newest_checkpoint(tmp_path, monkeypatch, step):
    """Each time the system is asked for something counts as a step; more than there are means no kill."""
    written(tmp_path, 1, 2)
    left = step

    def killing(function):
        def call(*args, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, names in {
            Path: ("mkdir", "write_text", "rename"),
            os: ("fsync",),
            safetensors.numpy: ("save_file",),
            shutil: ("rmtree",),
        }.items():
            for name in names:
                patch.setattr(owner, name, killing(getattr(owner, name)))
        try:
            written(tmp_path, 3)
            survived = True
        except Killed:
            survived = False
    found = checkpoints.newest(tmp_path, small())
    assert found is not None
    assert found.round == 3 if survived else found.round in (2, 3)
    assert found.content["weights"].eq(found.round).all()
    written(tmp_path, 4)
    assert len(checkpoints.listed(tmp_path)) == 2
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


# Runs that go on -------------------------------------------------------------------------


def comparable(record: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(record).items() if key != "wall_seconds"}


class Remembering:
    """A listener that writes a checkpoint after one round, as the engine does."""

    def __init__(self, made: Any, directory: Path, server_round: int) -> None:
        self.made, self.directory, self.server_round = made, directory, server_round

    def on_task(self, task: Any) -> None: ...

    def on_round(self, round: RoundRecord) -> None:
        if round.round == self.server_round:
            states = {node: pack_state(context.state) for node, context in self.made.grid.contexts.items()}
            content = remembered(self.made.strategy, states)
            checkpoints.write(self.directory, self.made.scenario, round.round, content)


def test_there_is_a_case_for_every_strategy():
    assert {options["name"] for options in STRATEGIES.values()} >= set(registry.names("strategy"))


@pytest.mark.parametrize(
    ("name", "server_round"),
    [*((name, 2) for name in STRATEGIES), ("fedtiny", 0), ("lotteryfl", 0), ("static", 4)],
)
def test_a_strategy_goes_on_bit_for_bit_and_no_message_is_sent_again(tmp_path, name, server_round):
    scenario = small(
        strategy=STRATEGIES[name], rounds=4, clients__per_round=2, data__client_test_fraction=0.3,
        evaluation__clients=name not in SPLIT,
    )  # fmt: skip
    whole = assemble(scenario)
    whole.strategy.federation.listeners.append(Remembering(whole, tmp_path, server_round))
    whole.strategy.start(whole.grid)

    rest = assemble(scenario)
    checkpoint = checkpoints.newest(tmp_path, scenario)
    assert checkpoint is not None
    restore(rest.strategy, checkpoint.content["strategy"])
    for node, state in from_columns(checkpoint.content["clients"]).items():
        rest.grid.contexts[node].state = unpack_state(state)
    rest.strategy.start(rest.grid)

    later = [record for record in whole.rounds if record.round > server_round]
    assert [comparable(record) for record in rest.rounds] == [comparable(record) for record in later]
    tasks = [task for task in whole.tasks if task.round > server_round]
    assert [comparable(task) for task in rest.tasks] == [comparable(task) for task in tasks]
    assert same_state(rest.strategy.state, whole.strategy.state)
    assert rest.strategy.masks == whole.strategy.masks
    assert rest.strategy.dense.totals == whole.strategy.dense.totals
    states = [
        [pack_state(context.state) for context in made.grid.contexts.values()] for made in (rest, whole)
    ]
    assert states[0] == states[1]


def test_an_aggregator_that_cannot_be_kept_says_how_to_run_without(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Mine(FedAvg):\n"
        "    def __init__(self, **options):\n"
        "        super().__init__(**options)\n"
        "        self.sharpen = lambda arrays: arrays\n"
    )
    made = assemble(small(tmp_path, strategy={"name": "./mine.py:Mine"}))
    with pytest.raises(RunError, match=r"Mine cannot be kept in a checkpoint: .*engine\.checkpoint_every: 0"):
        snapshot(made.strategy)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A run folder after a run of round 0 alone, by hand, with its scenario beside it."""
    from fedprune.results.folder import RunFolder
    from fedprune.server.check import resolve

    path = tmp_path / "plan.yaml"
    path.write_text(resolve(small()).to_yaml())
    RunFolder.create(tmp_path / "run", fedprune.load_scenario(path)).close()
    return tmp_path / "run"


def test_what_cannot_be_resumed_is_refused_in_one_line(made, tmp_path, capsys):
    def refused(*command: str) -> str:
        assert main(list(command)) == 2
        *steps, line = capsys.readouterr().err.splitlines()
        assert set(steps) <= {"reading digits"}
        return line

    again = ("run", str(tmp_path / "plan.yaml"), "--out", str(made), "--resume")
    assert "not a run folder, so there is no run to resume" in refused("resume", str(tmp_path))
    assert f"has no checkpoint to resume from; to run it anew: fedprune run {made}" in refused(
        "resume", str(made)
    )
    assert "give one of them" in refused(*again, "--overwrite")
    (made / "rounds.jsonl").write_text('{"round": 0}\n{"round": 1}\n')
    assert "holds a run already" in refused(*again)
    written(made, 1)
    assert "seed is 9, there 3" in refused(*again, "--seed", "9")
    assert "seed is 9, there 3" in refused("resume", str(made), "--set", "seed=9")
    (made / "summary.json").write_text('{"status": "complete"}')
    assert "the run is complete" in refused("resume", str(made))
    assert "the run is complete" in refused(*again)
    assert (made / "rounds.jsonl").read_text() == '{"round": 0}\n{"round": 1}\n'


# Real kills ------------------------------------------------------------------------------

ROUNDS, KILLS = 18, 5
START = 120


def killable(strategy: dict[str, Any]) -> Scenario:
    options = {
        **strategy,
        **({"adjust_every": 3, "stop_adjusting_at": 15} if "adjust_every" in strategy else {}),
    }
    return small(
        strategy=options,
        rounds=ROUNDS,
        clients__count=6,
        clients__per_round=4,
        data__client_test_fraction=0.2,
        data__train_examples=600,
        engine__workers=1,
    )


@pytest.fixture
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """A run that nobody broke off, and its scenario as ``plan.yaml``."""
    scenario = killable(STRATEGIES[request.param])
    (tmp_path / "plan.yaml").write_text(scenario.to_yaml())
    return fedprune.run(scenario, out=tmp_path / "whole", progress=False, host=InProcess(), figures=False)


def assert_nothing_is_missing(out: Path, whole: Run) -> None:
    """A run that was broken off has the results of the whole one, and its two newest checkpoints."""
    assert_same_results(out, whole.directory)
    summaries = [json.loads((each / "summary.json").read_text()) for each in (out, whole.directory)]
    for summary in summaries:
        for clock in ("wall_seconds", "startup_seconds", "total_seconds"):
            summary.pop(clock)
        summary["relative"].pop("wall_seconds")
    assert summaries[0] == summaries[1]
    assert [each.name for each in checkpoints.listed(out)] == [f"round-{n:06d}" for n in (ROUNDS - 1, ROUNDS)]


@pytest.mark.slow
@pytest.mark.parametrize("whole", ["fedtiny", "hidenseek", "feddst", "fedadam"], indirect=True)
def test_a_run_killed_at_random_moments_ends_as_if_it_never_was(whole, tmp_path):
    """Clients run in the killed process; with workers on Ray, see the next test."""
    path, out, log = tmp_path / "plan.yaml", tmp_path / "run", tmp_path / "log"
    usual = whole.summary["wall_seconds"] / (ROUNDS + 1)
    name = whole.scenario.strategy.name
    chance = random.Random(name)
    # Each kill comes some time after one of these rounds. Few of the last: where the machine was busy as the
    # time of a round was measured, several end in that time.
    after = sorted(chance.sample(range(ROUNDS - 6), KILLS))
    for number, least in enumerate(after):
        anew = number % 2 == 0 or not checkpoints.listed(out)
        command = ["run", str(path), "--out", str(out), "--resume"] if anew else ["resume", str(out)]
        process = forked.start(
            [*command, "--quiet"], log, kill=Kill(out, least, chance.uniform(0, 1.5) * usual)
        )
        process.join(START)
        assert process.exitcode == KILLED, log.read_text()
        assert {record["round"] for record in fedprune.load_run(out).rounds} >= set(range(least + 1))
    damaged = name == "feddst"
    if damaged:
        (checkpoints.listed(out)[-1] / "tensors.safetensors").write_bytes(b"")
    process = forked.start(["resume", str(out), "--quiet"], log)
    process.join(START)
    assert process.exitcode == 0, log.read_text()
    assert ("is damaged" in log.read_text()) is damaged
    assert_nothing_is_missing(out, whole)


@pytest.fixture
def driver() -> Iterator[Any]:
    """Starts a driver in a process group of its own, as a shell does, on the tests' Ray."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> subprocess.Popen[bytes]:
        whole = [sys.executable, "-m", "fedprune.cli", *command, "--quiet"]
        whole += ["--set", f"engine.ray_address={ray.get_runtime_context().gcs_address}"]
        process = subprocess.Popen(
            whole,
            cwd=ROOT,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},  # Should a library crash, we want to know where.
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(600)  # Three processes, one after the other: minutes where others have the cores.
@pytest.mark.parametrize("whole", ["fedtiny"], indirect=True)
def test_a_driver_killed_and_interrupted_on_ray_ends_as_if_it_never_was(shared_ray, driver, whole, tmp_path):
    """Its masks move, and its clients keep them in workers that the driver's end takes along."""
    path, out = tmp_path / "plan.yaml", tmp_path / "run"
    for end, least in ((signal.SIGKILL, 4), (signal.SIGINT, 8)):
        process = driver(
            *(("resume", str(out)) if out.exists() else ("run", str(path), "--out", str(out), "--resume"))
        )
        deadline = time.monotonic() + START
        while forked.rounds_of(out) <= least:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, end)
        process.communicate(timeout=START)
        assert process.returncode == (-end if end == signal.SIGKILL else 130)
        assert {record["round"] for record in fedprune.load_run(out).rounds} >= set(range(least + 1))
    process = driver("resume", str(out))
    _, said = process.communicate(timeout=START)
    assert process.returncode == 0, said
    assert_nothing_is_missing(out, whole)
