"""Runs of a study, several at a time on one Ray, each in a process that stays for the next.

A process does all of a run: the server's side, and the clients one after another, with the results of a run
by itself. Where there are fewer runs than cores, or a task of a run may end its process, its clients have
workers of their own. On a cluster of several machines the server's side stays on this one, where the folders
are, and the clients are workers anywhere.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedprune import data as datasets
from fedprune.costs.ledger import Listener
from fedprune.data import Source
from fedprune.determinism import make_deterministic
from fedprune.engine.cluster import Placement
from fedprune.engine.ending import Ending, Halted
from fedprune.engine.hosts import Host, InProcess, OnRay, can_run_in_process
from fedprune.engine.simulation import run as run_scenario
from fedprune.errors import FedpruneError, RunError, UserError
from fedprune.results.folder import holds_rounds, is_run_folder
from fedprune.scenario import Scenario
from fedprune.studies.plan import PlannedRun
from fedprune.studies.store import StudyFolder
from fedprune.wording import one_line

#: How often what is known of the runs that go on is brought up to date.
TICK_SECONDS = 0.5
#: A run that was told to end has this long for it.
ENDING_SECONDS = 30.0
#: A run whose process died is begun again from its checkpoint, once.
ATTEMPTS = 2
#: Warnings of a run that are shown.
MOST_WARNINGS = 10


@dataclass(frozen=True)
class Ended:
    """How a run ended, why, and after how many seconds.

    ``status`` is "complete", "failed", "interrupted" by a signal or "halted" by a listener of the run's own.
    """

    run: PlannedRun
    status: str
    reason: str | None
    seconds: float
    warnings: tuple[str, ...] = ()


class Watcher(Protocol):
    """Is told how the runs go on."""

    def on_begin(self, run: PlannedRun) -> None:
        """Hear that a run begins."""

    def on_end(self, ended: Ended) -> None:
        """Hear that one has ended."""

    def on_tick(self, running: Sequence[PlannedRun]) -> None:
        """Hear, every moment, which runs go on."""


class Supply(Protocol):
    """Has the runs that are to be done; may make them of what others came to."""

    def next(self) -> PlannedRun | None:
        """Return a run to begin now; None where there is none until one of those that go on has ended."""

    def on_end(self, ended: Ended) -> None:
        """Hear how a run has ended."""


class Queue:
    """Runs that are known beforehand, in their order; a `Supply`."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._left = deque(runs)

    def next(self) -> PlannedRun | None:
        """Return the next one."""
        return self._left.popleft() if self._left else None

    def on_end(self, ended: Ended) -> None:
        """Do nothing: what is left does not depend on it."""


@dataclass(frozen=True)
class Job:
    """What a process is given to do: a run, where to, and on how many workers of its own (0: none)."""

    scenario: Scenario
    directory: Path
    pretrained: Path
    device: str
    workers: int
    listeners: tuple[Listener, ...] = ()


class Warnings(logging.Handler):
    """Keeps what a run warns of, each once: nobody sees what its process writes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message, unless there are many already."""
        if len(self.messages) < MOST_WARNINGS:
            self.messages[record.getMessage()] = None


class Runner:
    """A process that does one run after another; Ray turns this class into an actor."""

    def __init__(self, instructions: Any) -> None:
        make_deterministic(instructions)

    def ready(self) -> int:
        """Return the process id."""
        return os.getpid()

    def run(self, job: Job, source: Source) -> tuple[str, str | None, tuple[str, ...]]:
        """Do a run, or go on with it; return its status, why it is not complete, and what it warned of."""
        package, warnings = logging.getLogger("fedprune"), Warnings()
        package.addHandler(warnings)
        try:
            return *self._run(job, source), tuple(warnings.messages)
        finally:
            package.removeHandler(warnings)

    def _run(self, job: Job, source: Source) -> tuple[str, str | None]:
        host: Host = OnRay(job.pretrained)
        if job.workers == 0:
            host = InProcess(source, job.device, job.pretrained)
        scenario = job.scenario.override(engine__workers=max(job.workers, 1), engine__ray_address=None)
        ending = Ending()
        before = signal.signal(signal.SIGTERM, ending)
        try:
            begun = is_run_folder(job.directory)
            lost = (
                begun and holds_rounds(job.directory) and not any(job.directory.glob("checkpoints/round-*"))
            )
            run_scenario(
                scenario,
                out=job.directory,
                resume=begun and not lost,
                overwrite=lost,
                progress=False,
                listeners=[ending, *job.listeners],
                host=host,
                figures=False,
            )
        except Halted as halt:
            return "halted", str(halt)
        except KeyboardInterrupt:
            return "interrupted", "stopped"
        except FedpruneError as error:
            return "failed", str(error)
        except (Exception, SystemExit) as error:  # Of a plug-in; the other runs go on.
            return "failed", one_line(error)
        finally:
            signal.signal(signal.SIGTERM, before)
        return "complete", None


@dataclass(eq=False)
class _Place:
    """A process, and what it does."""

    actor: Any
    pid: int
    device: str
    run: PlannedRun | None = None
    reference: Any = None
    began: float = 0.0


@dataclass
class Executor:
    """Does the runs of a study.

    Parameters
    ----------
    folder : StudyFolder
        Where the runs are.
    placement : Placement
        What Ray offers; it must have been initialised.
    watcher : Watcher
        Is told how the runs go on.
    read : Callable[[Scenario], Source]
        Returns a scenario's data set.
    """

    folder: StudyFolder
    placement: Placement
    watcher: Watcher
    read: Callable[[Scenario], Source]
    _sources: dict[Hashable, Any] = field(default_factory=dict)
    _places: list[_Place] = field(default_factory=list)

    def run(self, supply: Supply, jobs: int) -> list[Ended]:
        """Do the runs that there are, ``jobs`` at a time; return how each ended, in the order of their ends.

        Raises
        ------
        KeyboardInterrupt
            On Ctrl-C, after the runs that went on have ended in order; they can be resumed.
        RunError
            Where the processes cannot start.
        """
        import ray

        again = deque[PlannedRun]()
        attempts = Counter[str]()
        ended: list[Ended] = []
        share = max(1, self.placement.workers // jobs)
        try:
            while True:
                while (
                    self._is_free(jobs) and (run := again.popleft() if again else supply.next()) is not None
                ):
                    attempts[run.identity] += 1
                    if (failed := self._begin(self._free(jobs, run), run, share)) is not None:
                        supply.on_end(failed)
                        self.watcher.on_end(failed)
                        ended.append(failed)
                busy = {place.reference: place for place in self._places if place.run is not None}
                if not busy:
                    break
                done, _ = ray.wait(list(busy), num_returns=1, timeout=TICK_SECONDS)
                for reference in done:
                    result = self._collect(busy[reference], attempts)
                    if isinstance(result, Ended):
                        supply.on_end(result)
                        self.watcher.on_end(result)
                        ended.append(result)
                    else:
                        again.append(result)
                self.watcher.on_tick([place.run for place in self._places if place.run is not None])
        except BaseException:
            self._stop()
            raise
        return ended

    def close(self) -> None:
        """End the processes."""
        import ray

        for place in self._places:
            ray.kill(place.actor)
        self._places = []

    def _is_free(self, jobs: int) -> bool:
        """Say whether another run may begin."""
        return sum(place.run is not None for place in self._places) < jobs

    def _free(self, jobs: int, run: PlannedRun) -> _Place:
        """Return a process that has nothing to do; start those that there may be, where there is none."""
        idle = next((place for place in self._places if place.run is None), None)
        if idle is None:
            instructions = run.scenario.engine.instructions
            self._places += _start(jobs - len(self._places), instructions, self.placement)
            return self._places[-1]
        return idle

    def _begin(self, place: _Place, run: PlannedRun, share: int) -> Ended | None:
        """Give a run to a process; return how it ended where its data cannot be read."""
        many = share > 1 and self.placement.device == "cpu"
        own = share if many or self._spread() or not can_run_in_process(run.scenario) else 0
        try:
            source = self._source(run.scenario)
            scenario = self.folder.scenario(run)
        except FedpruneError as error:
            self.folder.note_failure(run, str(error))
            return Ended(run, "failed", str(error), 0.0)
        directory = self.folder.place(run).absolute()
        job = Job(scenario, directory, self.folder.pretrained, place.device, own, run.listeners)
        place.run, place.began = run, time.perf_counter()
        place.reference = place.actor.run.remote(job, source)
        self.watcher.on_begin(run)
        return None

    def _collect(self, place: _Place, attempts: dict[str, int]) -> Ended | PlannedRun:
        """Return how a process's run ended; the run itself, where it is to be begun again."""
        import ray

        run, seconds = place.run, time.perf_counter() - place.began
        assert run is not None
        place.run = None
        try:
            status, reason, warnings = ray.get(place.reference)
        except ray.exceptions.RayError as error:
            self._places.remove(place)
            with suppress(Exception):
                ray.kill(place.actor)
            if attempts[run.identity] < ATTEMPTS:
                return run
            status, reason, warnings = "failed", f"its process died twice: {one_line(error)}", ()
        begun = is_run_folder(self.folder.place(run))
        self.folder.note_failure(run, reason if status == "failed" and not begun else None)
        return Ended(run, status, reason, seconds, warnings)

    def _source(self, scenario: Scenario) -> Any:
        """Return a reference to a scenario's data set in Ray's object store, where a machine has it once."""
        import ray

        key = datasets.read_key(scenario)
        if key not in self._sources:
            self._sources[key] = ray.put(self.read(scenario))
        return self._sources[key]

    def _spread(self) -> bool:
        """Say whether Ray has other machines than this one."""
        import ray

        nodes: Any = ray.nodes  # It has no types.
        return len([node for node in nodes() if node["Alive"]]) > 1

    def _stop(self) -> None:
        """Have the runs that go on end in order, as far as they do so in time."""
        import ray

        busy = [place for place in self._places if place.run is not None]
        for place in busy:
            with suppress(ProcessLookupError):
                os.kill(place.pid, signal.SIGTERM)
        if busy:
            with suppress(KeyboardInterrupt):  # A second Ctrl-C: at once, then.
                ray.wait([p.reference for p in busy], num_returns=len(busy), timeout=ENDING_SECONDS)
        self.close()


def _start(count: int, instructions: str, placement: Placement) -> list[_Place]:
    """Start processes on this machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Nothing is reserved: where a run's clients have workers of their own, those reserve it.
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": here}
    made: Any = ray.remote(**options)(Runner)
    actors: list[Any] = [made.remote(instructions) for _ in range(count)]
    try:
        pids = ray.get([actor.ready.remote() for actor in actors], timeout=300)
    except ray.exceptions.RayError as error:
        raise RunError(f"the study's processes could not start: {one_line(error)}") from error
    gpus = round(placement.gpus_per_worker * placement.workers)
    devices = [f"cuda:{number % gpus}" if gpus else "cpu" for number in range(count)]
    return [_Place(*each) for each in zip(actors, pids, devices, strict=True)]


def jobs_for(asked: int | str, runs: int, memory: int, placement: Placement, available: float) -> int:
    """Return how many runs go on at a time.

    Parameters
    ----------
    asked : int or "auto"
        What the user wants: a number is taken as it is, up to the number of runs.
    runs : int
        Runs that are to be done.
    memory : int
        Bytes that the largest of them needs.
    placement : Placement
        What Ray offers.
    available : float
        Bytes of memory that Ray may use on this machine.
    """
    if isinstance(asked, int):
        return max(1, min(asked, runs))
    fit = int(available // memory)
    if fit < 1:
        raise UserError(
            f"a run needs about {memory / 2**20:,.0f} MiB and Ray may use {available / 2**20:,.0f} MiB: give "
            "--jobs 1 to try it all the same"
        )
    return max(1, min(placement.workers, runs, fit))
