"""The folder of a study: its runs' folders, found by what the runs are, and why some could not begin.

``runs/`` has a run folder for each run, ``pretrained/`` models that several runs begin with,
``failures.json`` why a run failed that left no records, ``study.yaml`` the study as it was last run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedprune.errors import UserError
from fedprune.results.folder import ROUNDS, SCENARIO, SUMMARY, is_run_folder
from fedprune.results.records import Record, write_atomically
from fedprune.results.run import load_run
from fedprune.scenario import Scenario, yaml_file
from fedprune.studies.outcomes import Outcome, outcome_of
from fedprune.studies.plan import PlannedRun

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RUNS = "runs"
PRETRAINED = "pretrained"
FAILURES = "failures.json"
STUDY = "study.yaml"


class StudyFolder:
    """What a study has on disk; ``directory`` need not exist before the study is run."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    @property
    def pretrained(self) -> Path:
        """The folder of models after pretraining, absolute."""
        return (self.directory / PRETRAINED).absolute()

    def place(self, run: PlannedRun) -> Path:
        """Return the run's folder: the one that holds a run of the same content, else where it is to be."""
        home = self.directory / RUNS
        if (home / run.folder).is_dir():  # As nearly always: no need to look through all of them.
            return home / run.folder
        found = sorted(home.glob(f"*-{run.identity}")) if home.is_dir() else []
        return found[0] if found else home / run.folder

    def scenario(self, run: PlannedRun) -> Scenario:
        """Return the run's scenario under the name that its folder has it by, where it has begun."""
        place = self.place(run)
        if not is_run_folder(place):
            return run.scenario
        return run.scenario.override(name=yaml_file.read(place / SCENARIO)[0]["name"])

    def outcome(self, run: PlannedRun) -> Outcome:
        """Return what the run has come to so far; one whose folder cannot be read counts as failed."""
        place = self.place(run)
        if is_run_folder(place):
            try:
                return outcome_of(load_run(place), run.variant, run.point)
            except (UserError, OSError) as error:
                reason = str(error)
        else:
            reason = self.failures().get(run.identity, "")
        summary: Record | None = None
        if reason:
            if place.exists():
                reason += f"; without the folder {place.name} the study does the run again"
            summary = {
                "name": run.scenario.name,
                "seed": run.seed,
                "rounds": 0,
                "planned_rounds": run.scenario.rounds,
                "status": "failed",
                "reason": reason,
            }
        document = run.scenario.model_dump(mode="json")
        return Outcome(run.variant, dict(run.point), run.seed, summary, document=document)

    def status(self, run: PlannedRun) -> str:
        """Return "missing", "unfinished", or how the run ended: "complete", "interrupted" or "failed"."""
        place = self.place(run)
        if not is_run_folder(place):
            return "failed" if run.identity in self.failures() else "missing"
        try:
            return str(json.loads((place / SUMMARY).read_text(encoding="utf-8"))["status"])
        except (OSError, ValueError, KeyError, TypeError):
            return "unfinished"

    def rounds_done(self, run: PlannedRun) -> int:
        """Return how many rounds of training the run's records hold."""
        try:
            with (self.place(run) / ROUNDS).open("rb") as file:
                return max(0, sum(line.endswith(b"\n") for line in file) - 1)  # Round 0 is no training.
        except OSError:
            return 0

    def failures(self) -> dict[str, str]:
        """Return why runs failed that left no records, by their identity."""
        try:
            return {**json.loads((self.directory / FAILURES).read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError):
            return {}

    def note_failure(self, run: PlannedRun, reason: str | None) -> None:
        """Keep why a run could not begin; with None, forget it."""
        failures = self.failures()
        if reason is None and run.identity not in failures:
            return
        failures.pop(run.identity, None)
        if reason is not None:
            failures[run.identity] = reason
        write_atomically(self.directory / FAILURES, (json.dumps(failures, indent=2) + "\n").encode())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for this process, so that nobody else runs the study into it.

        Raises
        ------
        UserError
            Where another process does, or the folder cannot be made.
        """
        try:
            (self.directory / RUNS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.directory}: cannot be a study's folder: {error.strerror}") from None
        if fcntl is None:
            yield
            return
        handle = os.open(self.directory, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.directory}: the study is being run into this folder already; `fedprune study "
                    "watch` shows how far it is"
                ) from None
            yield
        finally:
            os.close(handle)
