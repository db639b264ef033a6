"""Searches: what Optuna is asked and told, what is found, and that a search goes on where it was."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from inprocess import PLAN

from fedprune.cli import main
from fedprune.engine.ending import Halted
from fedprune.errors import ScenarioError, UserError
from fedprune.scenario.yaml_file import write
from fedprune.studies.execute import Ended
from fedprune.studies.plan import Plan, PlannedRun
from fedprune.studies.search import Search, Trial
from fedprune.studies.search.journal import opened
from fedprune.studies.search.table import taken, trial_table
from fedprune.studies.spec import load_study
from fedprune.studies.study import study

from .made_outcomes import outcome

optuna = pytest.importorskip("optuna")

LR, EPOCHS, CRITERION = "clients.training.optimizer.lr", "strategy.pretrain_epochs", "strategy.criterion"
ROUNDS = 9
RANGES: dict[str, Any] = {
    LR: {"low": 0.001, "high": 0.3, "log": True},
    EPOCHS: {"low": 1, "high": 8},
    CRITERION: ["magnitude", "snip", "synflow"],
}
CONTENT: dict[str, Any] = {
    "name": "small",
    "base": {**PLAN, "rounds": ROUNDS},
    "runs": {"Static": {"strategy": {"name": "static", "density": 0.2}}},
    "seeds": 2,
}


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch):
    """Optuna has the disk write each line of its journal, which takes long where others write, too."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class BreakError(Exception):
    """The study was broken off."""


class Stand:
    """A study's folder and an executor whose runs take no time: a run's accuracy follows from its values."""

    def __init__(self, directory: Path, **changes: Any) -> None:
        self.directory = directory
        self.fails: set[str] = set()
        self.interrupts = False
        self.runs: dict[str, Any] = {}
        self.done = Counter[str]()
        content = {**CONTENT, "search": {"run": "Static", "ranges": RANGES, "trials": 25, **changes}}
        spec = load_study(content, directory)
        self.search = Search(spec.search[0], Plan(spec), self)  # type: ignore[arg-type]

    def status(self, run: PlannedRun) -> str:
        return "complete" if run.identity in self.runs else "missing"

    def outcome(self, run: PlannedRun) -> Any:
        return self.runs.get(run.identity) or outcome(run.variant, run.seed, None, status=None, curve=[])

    def execute(self, jobs: int = 1, stop_after: int | None = None) -> list[Trial]:
        """Do the trials, as the executor does, the longest going run ending first."""
        supply, going = self.search.supply(), deque[PlannedRun]()
        while True:
            while len(going) < jobs and (run := supply.next()) is not None:
                assert run.identity not in {each.identity for each in going}
                going.append(run)
            if not going:
                return self.search.trials()
            if stop_after is not None and self.done.total() >= stop_after:
                raise BreakError
            supply.on_end(self._end_of(going.popleft()))

    def _end_of(self, run: PlannedRun) -> Ended:
        self.done[run.identity] += 1
        if run.scenario.strategy.options["criterion"] in self.fails:
            return Ended(run, "failed", "it failed", 0.0)
        if self.interrupts:
            return Ended(run, "interrupted", "stopped", 0.0)
        curve = curve_of(run.tuned, run.seed)
        for number, value in enumerate(curve):
            for listener in run.listeners:
                try:
                    record = SimpleNamespace(round=number, columns=lambda value=value: {"accuracy": value})
                    listener.on_round(record)  # type: ignore[arg-type]
                except Halted as halt:
                    return Ended(run, "halted", str(halt), 0.0)
        up = 1000 * run.tuned.get(EPOCHS, 0)
        self.runs[run.identity] = outcome("Static", run.seed, curve[-1], curve=curve, bytes_up=up)
        return Ended(run, "complete", None, 0.0)


def curve_of(values: Any, seed: int = 1000) -> list[float]:
    """Return the accuracy of every round: best at a rate of 0.03, many epochs, and SNIP."""
    rate, criterion = values.get(LR, 0.05), values.get(CRITERION, "magnitude")
    best = 0.9 - 0.1 * abs(math.log10(rate / 0.03)) + 0.01 * values.get(EPOCHS, 1)
    best += {"magnitude": 0.0, "snip": 0.03, "synflow": -0.2}[criterion] + (seed - 1000) * 0.01
    return [best * (1 - 0.5 ** (1 + number)) for number in range(ROUNDS + 1)]


def by_hand(trials: int, *, prune: bool, seed: int = 0, jobs: int = 1) -> Any:
    """Return Optuna's study of the same search, without anything of fedprune."""
    pruner = (
        optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        if prune
        else optuna.pruners.NopPruner()
    )
    made = optuna.create_study(direction="maximize", pruner=pruner)
    for number in range(trials):
        made.sampler = optuna.samplers.TPESampler(seed=seed + number, constant_liar=True)
        trial = made.ask()
        values = {
            LR: trial.suggest_float(LR, 0.001, 0.3, log=True),
            EPOCHS: trial.suggest_int(EPOCHS, 1, 8),
            CRITERION: trial.suggest_categorical(CRITERION, ["magnitude", "snip", "synflow"]),
        }
        curve, state = curve_of(values), optuna.trial.TrialState.COMPLETE
        if prune:
            for step in range(1, ROUNDS):
                trial.report(curve[step], step)
                if trial.should_prune():
                    state = optuna.trial.TrialState.PRUNED
                    break
        made.tell(trial, None if state.name == "PRUNED" else curve[-1], state)
    return made


@pytest.mark.parametrize("prune", ["asha", "none"])
def test_trials_and_their_ends_are_those_of_optuna_by_itself(tmp_path, prune):
    trials = Stand(tmp_path, prune=prune, seed=5).execute()
    expected = by_hand(25, prune=prune == "asha", seed=5).trials
    assert [trial.values for trial in trials] == [trial.params for trial in expected]
    assert [trial.state.upper() for trial in trials] == [trial.state.name for trial in expected]
    pruned = [trial for trial in expected if trial.state.name == "PRUNED"]
    assert [trial.round for trial in trials if trial.state == "pruned"] == [each.last_step for each in pruned]
    assert bool(pruned) == (prune == "asha")
    finals = [trial.figures["final_accuracy"] for trial in trials if trial.state == "complete"]
    assert finals == [trial.value for trial in expected if trial.state.name == "COMPLETE"]


def test_what_is_found_is_the_best_trial(tmp_path):
    stand = Stand(tmp_path, prune="asha")
    assert stand.search.found() is None
    trials = stand.execute()
    found = stand.search.found()
    assert found == max(
        (trial for trial in trials if trial.state == "complete"), key=lambda t: t.figures["final_accuracy"]
    )
    text = taken(stand.search)
    assert (
        f"trial {found.number}, the best of 25 searched on seed 1000, which the comparison does not" in text
    )
    assert stand.done.total() == 25
    pruned = next(trial for trial in trials if trial.state == "pruned").number
    with pytest.raises(UserError, match=f"search.take: trial {pruned} of Static is pruned"):
        Stand(tmp_path, prune="asha", take=pruned).search.found()


@pytest.mark.parametrize("stop_after", [0, 1, 12])
def test_a_search_that_is_broken_off_tries_what_an_unbroken_one_does(tmp_path, stop_after):
    whole = Stand(tmp_path / "whole", prune="asha", trials=13)
    broken = Stand(tmp_path / "broken", prune="asha", trials=13)
    for stand in (whole, broken):
        stand.directory.mkdir()
    expected = whole.execute()
    with pytest.raises(BreakError):
        broken.execute(stop_after=stop_after)
    assert broken.search.count_ended() == stop_after
    again = Stand(broken.directory, prune="asha", trials=13)
    again.runs = broken.runs
    assert again.execute() == expected
    assert again.done.total() + broken.done.total() == 13


def test_more_trials_go_on_with_the_search_and_other_ranges_begin_another(tmp_path):
    first = Stand(tmp_path, trials=12).execute()
    more = Stand(tmp_path, trials=15)
    assert more.execute()[:12] == first
    assert more.done.total() == 3
    assert Stand(tmp_path, trials=12).search.found() == max(first, key=lambda t: t.figures["final_accuracy"])
    assert Stand(tmp_path, ranges={LR: [0.1, 0.2]}).search.trials() == []
    assert Stand(tmp_path, seed=1).search.trials() == []


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_run_of_the_same_values_is_done_once(tmp_path, jobs):
    stand = Stand(tmp_path, ranges={CRITERION: ["magnitude", "snip"]}, trials=8)
    trials = stand.execute(jobs)
    assert [trial.state for trial in trials] == ["complete"] * 8
    assert set(stand.done.values()) == {1}
    assert len(stand.done) == len({trial.values[CRITERION] for trial in trials})


def test_a_trials_value_is_the_mean_over_seeds_of_which_the_first_is_judged(tmp_path):
    stand = Stand(tmp_path, seeds=[1000, 1004], prune="asha", trials=10)
    trials = stand.execute(jobs=2)
    complete = [trial for trial in trials if trial.state == "complete"]
    for trial in complete:
        finals = [curve_of(trial.values, seed)[-1] for seed in (1000, 1004)]
        assert trial.figures["final_accuracy"] == pytest.approx(sum(finals) / 2, rel=1e-12)
    assert len(complete) < 10
    assert stand.done.total() == 10 + len(complete)


def test_seeds_go_side_by_side_where_nothing_is_pruned(tmp_path):
    supply = Stand(tmp_path, seeds=[1000, 1004], trials=2).search.supply()
    runs = [supply.next() for _ in range(5)]
    assert [(run.number, run.seed) for run in runs if run is not None] == [
        (0, 1000),
        (0, 1004),
        (1, 1000),
        (1, 1004),
    ]


def test_a_trial_that_fails_is_one_and_says_why(tmp_path):
    stand = Stand(tmp_path, trials=12)
    stand.fails = {"synflow"}
    trials = stand.execute()
    failed = [trial for trial in trials if trial.state == "failed"]
    assert [trial.values[CRITERION] == "synflow" for trial in trials] == [t in failed for t in trials]
    assert {trial.reason for trial in failed} == {"it failed"}
    assert stand.search.found() not in failed
    assert f"Trial {failed[0].number} of Static failed: it failed." in trial_table([stand.search]).notes


def test_where_all_fail_nothing_is_found_and_it_is_said_why(tmp_path):
    stand = Stand(tmp_path, trials=3)
    stand.fails = {"magnitude", "snip", "synflow"}
    stand.execute()
    with pytest.raises(UserError, match=r"no trial that came to its end \(it failed\); correct it"):
        stand.search.found()


def test_a_trial_whose_process_somebody_ended_is_done_again(tmp_path):
    stand = Stand(tmp_path, trials=4)
    stand.interrupts = True
    assert [trial.state for trial in stand.execute()] == ["running"]
    again = Stand(tmp_path, trials=4)
    assert again.execute() == Stand(tmp_path, trials=4).search.trials()
    assert [trial.state for trial in again.search.trials()] == ["complete"] * 4
    assert again.search.trials()[0].values == by_hand(1, prune=False).trials[0].params


def test_rounds_that_a_run_has_already_are_judged_as_if_it_had_them_now(tmp_path):
    whole = Stand(tmp_path / "a", ranges={CRITERION: RANGES[CRITERION]}, prune="asha", trials=9)
    known = Stand(tmp_path / "b", ranges={CRITERION: RANGES[CRITERION]}, prune="asha", trials=9)
    for stand in (whole, known):
        stand.directory.mkdir()
    for criterion in RANGES[CRITERION]:  # As after another search, which pruned none.
        (run,) = known.search.plan.searched(known.search.spec, {CRITERION: criterion})
        curve = curve_of({CRITERION: criterion})
        known.runs[run.identity] = outcome("Static", run.seed, curve[-1], curve=curve)
    assert known.execute() == whole.execute()
    assert known.done.total() == 0


TWO = {"final_accuracy": "maximize", "bytes_up": "minimize"}


def test_the_front_of_several_objectives_is_what_brute_force_finds(tmp_path):
    stand = Stand(tmp_path, objective=TWO, trials=40, sampler="random")
    trials = stand.execute()
    points = [(-trial.figures["final_accuracy"], trial.figures["bytes_up"]) for trial in trials]
    front = [
        trial
        for trial, (x, y) in zip(trials, points, strict=True)
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
    ]
    assert 1 < len(front) < 40
    assert stand.search.front() == front
    by_optuna = {trial.number for trial in stand.search.open().best_trials}
    assert {trial.number for trial in front} == by_optuna
    made = trial_table([stand.search])
    assert [part.title for part in made.parts] == ["Static", "Static: the Pareto front"]
    assert [row[0] for row in made.parts[1].rows] == [str(trial.number) for trial in front]
    assert stand.search.found() is None
    assert "none is best in several objectives" in taken(stand.search)
    chosen = random.Random(0).choice(front).number
    assert Stand(tmp_path, objective=TWO, trials=40, sampler="random", take=chosen).search.found() in front


def test_numbers_are_of_the_kind_and_on_the_steps_that_the_range_says(tmp_path):
    ranges = {
        EPOCHS: {"low": 1, "high": 9, "step": 4},
        LR: {"low": 0.1, "high": 0.3, "step": 0.1},
        "clients.training.optimizer.momentum": {"low": 0, "high": 0.9},
    }
    trials = Stand(tmp_path, ranges=ranges, trials=12).execute()
    assert {trial.values[EPOCHS] for trial in trials} <= {1, 5, 9}
    assert {round(trial.values[LR], 12) for trial in trials} <= {0.1, 0.2, 0.3}
    assert all(isinstance(trial.values["clients.training.optimizer.momentum"], float) for trial in trials)


STUDY = """\
name: small
base: base.yaml
runs:
  Dense: {strategy: {name: fedavg}}
  Static: {strategy: {name: static}}
grid: {strategy.density: [0.2, 0.1]}
search:
  run: Static
  ranges:
    strategy.pretrain_epochs: {low: 1, high: 8}
"""


def complaint(folder: Path, old: str, new: str) -> str:
    (folder / "base.yaml").write_text(write(PLAN))
    (folder / "study.yaml").write_text(STUDY.replace(old, new))
    with pytest.raises(ScenarioError) as caught:
        Plan(load_study(folder / "study.yaml"))
    return str(caught.value).replace(f"{folder}/", "")


RANGE = "{low: 1, high: 8}"
END = RANGE + "\n"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("run: Static", "run: Statc", "study.yaml:8: search.run: no run 'Statc'; did you mean 'Static'?"),
        (END, END + "  seeds: [0]\n", "study.yaml:11: search.seeds: 0 is a seed of the comparison, too"),
        (END, END + "  at: {strategy.density: 0.5}\n", "study.yaml:11: search.at: the grid has no"),
        ("pretrain_epochs", "density", "study.yaml:9: search.ranges: strategy.density is in the grid, too"),
        ("low: 1", "low: 9", "study.yaml:10: search.ranges.strategy.pretrain_epochs.high: 8 must be more"),
        ("low: 1", "low: one", "study.yaml:10: search.ranges.strategy.pretrain_epochs.low: 'one' is not a"),
        ("low: 1, ", "", "study.yaml:10: search.ranges.strategy.pretrain_epochs.low: this key is missing"),
        ("low: 1", "log: true, low: 0", "low: 0 is out of range: with log it must be more than 0"),
        ("low: 1", "low: 1, log: true, step: 2", "step: a range has either log or step"),
        ("low: 1", "low: 1, choices: [2]", "low: a list of choices has no bounds: leave it out"),
        (RANGE, "[[1]]", "choices: [1] is neither text, a number, true nor false"),
        (RANGE, "[1, 1]", "choices: a value is given twice: leave one of them out"),
        ("low: 1", "low: -1", "study.yaml:10: search.ranges.strategy.pretrain_epochs: -1 is out of range"),
        ("pretrain_epochs: {low: 1, high: 8}", "criterion: [snip, snap]", "study.yaml:10: search.ranges."),
        ("pretrain_epochs", "pretrain_epoch", "strategy.pretrain_epoch: "),
        (END, END + "  trials: 0\n", "study.yaml:11: search.trials: 0 is out of range: must be at least 1"),
        (END, END + "  sampler: grid\n", "search.sampler: 'grid' is none of tpe, random"),
        (
            END,
            END + "  objective: accuracy\n",
            "search.objective: a summary has no figure 'accuracy'",
        ),
        (END, END + "  objective: density\n", "search.objective: say which is better: {density: maximize}"),
        (END, END + "  objective: bytes_up\n  prune: asha\n", "study.yaml:12: search.prune: needs one"),
        (
            END,
            END + "  objective: {final_accuracy: maximize, bytes_up: minimize}\n  prune: asha\n",
            "study.yaml:12: search.prune: needs one objective that has a value each round",
        ),
        (END, END + "  prune_from: 2\n", "search.prune_from: belongs to prune asha, but prune is none"),
        (
            END,
            END + "  take: 20\n",
            "study.yaml:11: search.take: there are 20 trials, from 0 on: no",
        ),
        (
            "{strategy: {name: static}}",
            "{strategy: {name: static}, tune: {grid: {strategy.criterion: [snip]}}}",
            "study.yaml:8: search.run: Static has a tune grid of its own: keep one of them",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, old, new, expected):
    assert old in STUDY
    assert expected in complaint(tmp_path, old, new)


def test_several_runs_may_be_searched(tmp_path):
    (tmp_path / "base.yaml").write_text(write(PLAN))
    text = STUDY.partition("search:")[0] + (
        "search:\n- {run: Static, ranges: {strategy.pretrain_epochs: [1, 2]}}\n"
        f"- {{run: Dense, ranges: {{{LR}: [0.1, -1]}}}}\n"
    )
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ScenarioError) as caught:
        Plan(load_study(tmp_path / "study.yaml"))
    assert f"study.yaml:9: search.1.ranges.{LR}: -1 is out of range" in str(caught.value)
    (tmp_path / "study.yaml").write_text(text.replace("-1", "0.2").replace("Dense, r", "Static, r"))
    with pytest.raises(ScenarioError, match=r"study.yaml:9: search.1.run: Static is searched already"):
        load_study(tmp_path / "study.yaml")


def test_a_search_is_at_the_points_of_the_grid_that_it_names(tmp_path):
    (tmp_path / "base.yaml").write_text(write(PLAN))
    for more, density in (("", 0.2), ("  at: {strategy.density: 0.1}\n", 0.1)):
        (tmp_path / "study.yaml").write_text(STUDY + more)
        spec = load_study(tmp_path / "study.yaml")
        (run,) = Plan(spec).searched(spec.search[0], {EPOCHS: 3}, 7)
        options = run.scenario.strategy.options
        assert (options["density"], options["pretrain_epochs"], run.seed) == (density, 3, 1000)
        assert run.title == f"Static, density {density:g}, trial 7, seed 1000"


# With processes ------------------------------------------------------------------------


def content(trials: int, jobs: int, rounds: int = 4, **changes: Any) -> dict[str, Any]:
    search = {"run": "Static", "ranges": {**RANGES, EPOCHS: [0, 1]}, "trials": trials, **changes}
    # As many as jobs: more would be workers of each run's own, which are started for each.
    base = {**PLAN, "rounds": rounds, "engine": {"workers": jobs}}
    return {**CONTENT, "base": base, "seeds": 1, "search": search}


@pytest.mark.slow
def test_the_same_search_has_the_same_trials_and_the_comparison_what_it_found(shared_ray, tmp_path, capfd):
    (tmp_path / "study.yaml").write_text(write(content(4, jobs=1, prune="asha", prune_from=2)))
    made = [study(tmp_path / "study.yaml", out=tmp_path / name) for name in ("one", "two")]
    for each in made:
        each.run(jobs=1, progress=False)
    (one,), (two,) = (each.searches for each in made)
    assert one.trials() == two.trials()
    pruned = [trial for trial in one.trials() if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        (run,) = one.plan.searched(one.spec, trial.values, trial.number)
        ended = made[0].folder.outcome(run)
        assert ended.summary["status"] == "interrupted"
        assert ended.summary["reason"] == f"pruned by the search at round {trial.round}"
        assert ended.rounds[-1]["round"] == trial.round == 2
    (planned,) = made[0].planned()
    assert planned.tuned == one.found().values
    assert planned.scenario.clients.training.optimizer.lr == one.found().values[LR]
    assert [each.complete for each in made[0].outcomes] == [True]
    assert {each.seed for each in made[0].outcomes} == {0}
    where = [str(tmp_path / "study.yaml"), "--out", str(tmp_path / "one")]
    assert main(["study", "table", *where]) == 0
    assert "searched on seed 1000, which the comparison does not use" in capfd.readouterr().out
    assert main(["study", "table", *where, "--rows", "trials", "--format", "csv"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 5
    assert main(["study", "watch", *where, "--once"]) == 0
    assert "1 of 1 runs are complete; 4 of 4 trials for Static have ended" in capfd.readouterr().out
    assert main(["study", "run", *where]) == 0
    assert made[0].searches[0].trials() == one.trials()


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_was(shared_ray, tmp_path):
    (tmp_path / "study.yaml").write_text(write(content(3, jobs=2, rounds=25)))
    where = ["study", "run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), "--jobs", "2"]
    process = subprocess.Popen([sys.executable, "-m", "fedprune.cli", *where], stderr=subprocess.DEVNULL)
    made = study(tmp_path / "study.yaml", out=tmp_path / "out")
    (search,) = made.searches
    deadline = time.monotonic() + 240

    def rounds() -> list[int]:
        files = (tmp_path / "out" / "runs").glob("*-trial-*/rounds.jsonl")
        return [len(file.read_bytes().splitlines()) for file in files]

    # One trial has ended, and another is in the middle; all have been drawn, which a kill may cut short.
    while search.count_ended() < 1 or len(rounds()) < 3 or not any(3 < count < 24 for count in rounds()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    below = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(below, timeout=60)
    before = {trial.number: trial for trial in search.trials()}
    ended = [number for number, trial in before.items() if trial.state != "running"]
    stamps = {number: stamp(made, search, before[number]) for number in ended}
    again = study(tmp_path / "study.yaml", out=tmp_path / "out").run(jobs=2, progress=False)
    trials = again.searches[0].trials()
    assert [trial.state for trial in trials] == ["complete"] * 3
    assert {number: stamp(again, search, trials[number]) for number in ended} == stamps
    assert all(trials[number].values == trial.values for number, trial in before.items())
    for trial in trials:
        (run,) = search.plan.searched(search.spec, trial.values, trial.number)
        numbers = [record["round"] for record in again.folder.outcome(run).rounds]
        assert numbers == list(range(26))
    assert all(each.complete for each in again.outcomes)


def stamp(made: Any, search: Search, trial: Trial) -> int:
    """Return when the summary of a trial's run was written."""
    (run,) = search.plan.searched(search.spec, trial.values, trial.number)
    path = made.folder.place(run) / "summary.json"
    assert json.loads(path.read_text())["status"] == "complete"
    return path.stat().st_mtime_ns


@pytest.mark.parametrize("line", ['{"op_code": 99, "worker_id": "x"}', '{"op_code": 0}', "[]", "3"])
def test_a_damaged_journal_is_named(tmp_path, line):
    (tmp_path / "search.journal").write_text(line + "\n")
    with pytest.raises(UserError, match=r"search.journal: damaged: .*; without it the search begins again"):
        opened(tmp_path / "search.journal", "any")
