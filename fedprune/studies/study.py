"""A study as one object: its runs, how they are done, and what they came to."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedprune import data as datasets
from fedprune.data import Source
from fedprune.errors import RunError, UserError
from fedprune.results.records import write_atomically
from fedprune.results.run import Run, load_run
from fedprune.scenario import Scenario, yaml_file
from fedprune.studies.outcomes import Outcome, headline, label
from fedprune.studies.plan import Plan, PlannedRun
from fedprune.studies.spec import StudySpec, load_study
from fedprune.studies.store import STUDY, StudyFolder
from fedprune.wording import known_here

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from fedprune.studies.estimate import Needs
    from fedprune.studies.execute import Ended, Supply, Watcher
    from fedprune.studies.search import Search
    from fedprune.studies.statistics import Comparison
    from fedprune.studies.table import Table

Jobs = int | Literal["auto"]
"""How many runs go on at a time."""


class Study:
    """Several runs under equal conditions, in a folder of their own; made by `study`.

    Attributes
    ----------
    spec : StudySpec
        What the study file says.
    directory : Path
        The study's folder.
    """

    def __init__(self, spec: StudySpec, directory: Path | None = None) -> None:
        self.spec = spec
        self.plan = Plan(spec)
        self.folder = StudyFolder(directory if directory is not None else Path("runs") / spec.name)
        self._sources: dict[Any, Source] = {}

    @property
    def directory(self) -> Path:
        """The study's folder."""
        return self.folder.directory

    # What there is to do -----------------------------------------------------------------

    def trials(self) -> list[PlannedRun]:
        """Return the runs that tune variants."""
        return [trial for name in self.spec.runs for trial in self.plan.trials(name)]

    @cached_property
    def searches(self) -> list[Search]:
        """The searches for values of variants, as far as they are."""
        from fedprune.studies.search import Search

        return [Search(spec, self.plan, self.folder) for spec in self.spec.search]

    def planned(self) -> list[PlannedRun]:
        """Return the runs of the comparison; a variant that is not tuned yet is as it was before."""
        runs = self.plan.runs()
        return [run for name in self.spec.runs for run in self._tuned(runs, name)]

    def _tuned(self, runs: Sequence[PlannedRun], name: str) -> list[PlannedRun]:
        of_variant = [run for run in runs if run.variant == name]
        won = self.won(name)
        return of_variant if won is None else self.plan.tuned(of_variant, name, won)

    def won(self, variant: str) -> Mapping[str, Any] | None:
        """Return the values with which a variant did best in its trials; None while there are none.

        Those of a search are what it found. Of a ``tune`` grid, they are those of the best mean of the final
        headline metric over the tuning seeds; a trial that failed or diverged counts as worse than any other.
        """
        for search in self.searches:
            if search.spec.run == variant:
                return None if (found := search.found()) is None else found.values
        trials = self.plan.trials(variant)
        outcomes = [self.folder.outcome(trial) for trial in trials]
        states = {self.folder.status(trial) for trial in trials}
        if not trials or states - {"complete", "failed"}:
            return None
        metric = headline(outcomes)
        best: tuple[float, Mapping[str, Any]] | None = None
        for values in {repr(trial.tuned): trial.tuned for trial in trials}.values():
            finals = [
                (outcome.summary or {}).get(metric.final) if outcome.complete else None
                for trial, outcome in zip(trials, outcomes, strict=True)
                if trial.tuned == values
            ]
            if None in finals:
                continue
            mean = sum(map(float, filter(None, finals))) / len(finals)
            if best is None or (mean > best[0] if metric.higher_is_better else mean < best[0]):
                best = mean, values
        if best is None:
            raise UserError(f"{variant}: none of its trials came to an end: there is nothing to tune it by")
        return best[1]

    def missing(self, runs: Sequence[PlannedRun] | None = None) -> list[PlannedRun]:
        """Return those of the runs that are not complete, seed by seed; all of the comparison by default."""
        runs = self.planned() if runs is None else runs
        left = [run for run in runs if self.folder.status(run) != "complete"]
        order = {seed: number for number, seed in enumerate(dict.fromkeys(run.seed for run in runs))}
        unique = {run.identity: run for run in left}
        return sorted(unique.values(), key=lambda run: order[run.seed])

    # Doing it ----------------------------------------------------------------------------

    def run(self, *, jobs: Jobs = "auto", progress: bool = True) -> Study:
        """Do the runs that are not complete; return the study.

        Parameters
        ----------
        jobs : int or "auto"
            How many go on at a time; auto: as many as cores, memory and GPUs allow.
        progress : bool
            Show on standard error how far the study is.

        Raises
        ------
        UserError
            For a study that cannot run here; nothing has run then.
        RunError
            Where Ray cannot start.
        KeyboardInterrupt
            On Ctrl-C, after the runs that went on have ended in order: call it again to go on.

        A run that fails is reported and the others go on: ``outcomes`` has what became of each.
        """
        from fedprune.studies.progress import Progress

        self.check_target()  # Before hours of work, not after them.
        with self.folder.held(), Progress(self, shown=progress) as watcher:
            self._keep()
            if self.trials():
                self._do(self.missing(self.trials()), jobs, watcher)
            for search in self.searches:
                self._search(search, jobs, watcher)
            self._do(self.missing(), jobs, watcher)
        return self

    def _search(self, search: Search, jobs: Jobs, watcher: Watcher) -> None:
        """Do the trials of a search that are left."""
        self._do([search.likely] * search.runs_left, jobs, watcher, search.supply)
        if not search.ended:
            raise RunError(f"the search for {search.spec.run} was stopped: the same again goes on with it")
        search.found()

    def _do(
        self,
        runs: Sequence[PlannedRun],
        jobs: Jobs,
        watcher: Watcher,
        supply: Callable[[], Supply] | None = None,
    ) -> list[Ended]:
        """Do some runs on Ray; or those of a supply, which are like them."""
        if not runs:
            return []
        from fedprune.engine.cluster import cluster
        from fedprune.studies.execute import Executor, Queue, jobs_for

        engine = runs[0].scenario.engine
        kinds = {run.scenario.engine.instructions for run in runs}
        if len(kinds) > 1:
            raise UserError("engine.instructions differs between runs: what they reach could not be compared")
        memory = max(self.needs.of(run.scenario).memory for run in _one_of_each(runs))
        with cluster(engine) as placement:
            import ray

            available = float(ray.cluster_resources().get("memory", 0.0))  # type: ignore[no-untyped-call]
            count = jobs_for(jobs, len(runs), memory, placement, available)
            executor = Executor(self.folder, placement, watcher, self.source)
            try:
                return executor.run(Queue(runs) if supply is None else supply(), count)
            finally:
                executor.close()

    def _keep(self) -> None:
        """Write the study as it is run into its folder."""
        write_atomically(self.directory / STUDY, yaml_file.write(self.plan.document()).encode())

    def source(self, scenario: Scenario) -> Source:
        """Return a scenario's data set, read once for all runs that have the same."""
        key = datasets.read_key(scenario)
        if key not in self._sources:
            self._sources[key] = datasets.read(scenario)
        return self._sources[key]

    @cached_property
    def needs(self) -> Needs:
        """What runs need: time by the steps of training, memory."""
        from fedprune.studies.estimate import Needs

        return Needs(self.source)

    def remaining_seconds(self, jobs: int) -> float:
        """Return how long the runs that are left should take, ``jobs`` at a time."""
        from fedprune.studies.estimate import remaining_seconds, seconds_of

        ended: list[tuple[str, float, float]] = []
        left: dict[str, list[tuple[float, float]]] = {}
        for run in {run.identity: run for run in [*self.trials(), *self.planned()]}.values():
            need = self.needs.of(run.scenario).seconds
            seconds = seconds_of(self.folder.outcome(run)) if self.folder.status(run) == "complete" else None
            if seconds is not None:
                ended.append((run.variant, need, seconds))
            else:
                done = self.folder.rounds_done(run) / run.scenario.rounds
                left.setdefault(run.variant, []).append((need, 1 - done))
        for search in self.searches:
            need = self.needs.of(search.likely.scenario).seconds
            left.setdefault(search.spec.run, []).extend([(need, 1.0)] * search.runs_left)
        return remaining_seconds(left, ended, jobs)

    # What it came to ---------------------------------------------------------------------

    @property
    def outcomes(self) -> list[Outcome]:
        """What every run of the comparison has come to so far."""
        return [self.folder.outcome(run) for run in self.planned()]

    @property
    def runs(self) -> list[Run]:
        """The runs that have begun, as they are read from their folders."""
        folders = [outcome.directory for outcome in self.outcomes]
        return [load_run(folder) for folder in folders if folder is not None]

    def claims(self) -> Table:
        """Return the table of what the variants reached, what it cost, and how they differ."""
        from fedprune.studies.table import claim_table

        self.check_target()
        outcomes = self.outcomes
        made = claim_table(outcomes, reference=self.spec.reference, target=self.spec.target)
        without_records = [each for each in outcomes if each.summary is not None and each.directory is None]
        reasons = [
            f"{each.group}, seed {each.seed}: {(each.summary or {})['reason']}" for each in without_records
        ]
        return replace(made, notes=(*made.notes, *self.notes(), *reasons))

    def notes(self) -> list[str]:
        """Return what a reader of the numbers has to know of how the runs came to be."""
        return [*self.tuning_notes(), *self._same_notes()]

    def _same_notes(self) -> Iterator[str]:
        """Yield which names stand for the same runs, so that there is no difference to be found."""
        names: dict[tuple[str, ...], dict[str, None]] = {}
        runs: dict[str, list[str]] = {}
        for run in self.planned():
            runs.setdefault(run.group, []).append(run.identity)
        for name, identities in runs.items():
            names.setdefault(tuple(identities), {})[name] = None
        for same in names.values():
            if len(same) > 1:
                listed = ", ".join(same)
                yield f"The same runs under several names, since their scenarios do not differ: {listed}."

    def tuning_notes(self) -> list[str]:
        """Return which variants have values that were found beforehand, and on which seeds."""
        notes = []
        for name, variant in self.spec.runs.items():
            if variant.tune is not None and (won := self.won(name)) is not None:
                seeds = ", ".join(map(str, variant.tune.seeds))
                values = label("", won).removeprefix(", ")
                notes.append(
                    f"{name} was tuned on seeds {seeds}, which the comparison does not use: {values}."
                )
        if self.searches:
            from fedprune.studies.search.table import taken

            notes += [note for search in self.searches if (note := taken(search)) is not None]
        return notes

    def trial_table(self) -> Table:
        """Return the table of the trials of all searches, a row a trial."""
        from fedprune.studies.search.table import trial_table

        if not self.searches:
            raise UserError(f"{self.spec.name} has no search, so there is no trial")
        return trial_table(self.searches)

    def table(self) -> DataFrame:
        """Return the numbers of `claims` as a data frame of pandas: a row a variant and point of the grid."""
        return self.claims().frame()

    def report(self, path: Path | str | None = None, *, refresh: int | None = None) -> Path:
        """Write the study as one HTML page; return where it is.

        Parameters
        ----------
        path : Path or str, optional
            The page; ``report.html`` in the study's folder where not given.
        refresh : int, optional
            Seconds after which the open page loads itself again and shows how far the study is.
        """
        from fedprune.studies.report import write_report

        self.check_target()
        return write_report(
            self.outcomes,
            self.directory / "report.html" if path is None else path,
            title=self.spec.name,
            reference=self.spec.reference,
            target=self.spec.target,
            base=self.plan.base,
            command=self.command,
            refresh=refresh,
            progress=self.progress_text() if refresh else None,
            notes=self.notes(),
        )

    @property
    def command(self) -> str:
        """The command that does the study again."""
        file = self.spec.origin.name or str(self.directory / STUDY)
        words = ["fedprune", "study", "run", file, "--out", str(self.directory)]
        if self.spec.origin.name:  # The study's own copy has them.
            set_here = [str(key[1]) for key in self.spec.origin.overrides]
            words += [word for key in set_here for word in ("--set", f"{key}={_written(self.spec.set[key])}")]
        return shlex.join(words)

    def progress_text(self, jobs: int | None = None) -> str:
        """Return how far the study is, and how long the rest should take with ``jobs`` runs at a time."""
        from fedprune.units import format_seconds

        runs = [*self.trials(), *self.planned()]
        left = self.missing(runs)
        complete = sum(self.folder.status(run) == "complete" for run in runs)
        text = f"{complete} of {len(runs)} runs are complete{self.searched_text()}"
        if count := len(left) + sum(search.runs_left for search in self.searches):
            at_a_time = min(jobs or os.cpu_count() or 1, count)
            seconds = format_seconds(self.remaining_seconds(at_a_time))
            text += f"; the rest should take about {seconds}, {at_a_time} at a time"
        return text

    def searched_text(self) -> str:
        """Return how far the searches are, to be put behind how far the runs are."""
        return "".join(
            f"; {search.count_ended()} of {search.spec.trials} trials for {search.spec.run} have ended"
            for search in self.searches
        )

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        searched = all(search.ended for search in self.searches)
        return searched and not self.missing([*self.trials(), *self.planned()])

    def compare(self, group: str, reference: str, quantity: str | None = None) -> Comparison:
        """Compare two variants, or two points of the grid, seed by seed.

        Parameters
        ----------
        group, reference : str
            Their names as in the table: "FedTiny", or "FedTiny, density 0.05".
        quantity : str, optional
            What is compared, such as "bytes_up"; the final headline metric where not given.

        Returns
        -------
        Comparison
            The differences by seed, their mean with its intervals, and p values; not adjusted, since it is
            one comparison.
        """
        from fedprune.studies.statistics import compare, group_outcomes, quantities

        outcomes = self.outcomes
        metric = headline(outcomes)
        groups = {found.name: found for found in group_outcomes(outcomes)}
        known = {found.key: found for found in quantities(metric)}
        key = metric.final if quantity is None else quantity
        for name, names, what in (
            (group, groups, "group"),
            (reference, groups, "group"),
            (key, known, "quantity"),
        ):
            if name not in names:
                raise UserError(f"there is no {what} {name!r}{known_here(name, names, '')}")
        return compare(groups[group], groups[reference], known[key])

    def plot(
        self,
        what: str = "curves",
        *,
        cost: str = "bytes",
        personal: bool = False,
        at: Mapping[str, Any] | None = None,
        axes: Axes | None = None,
    ) -> Axes:
        """Draw a figure for a paper; return its axes.

        Parameters
        ----------
        what : "curves", "costs" or "spent"
            The headline metric over the rounds; at the end, against a cost; or the best so far, against what
            was spent so far.
        cost : str
            Which cost: "bytes", "bytes_up", "bytes_down", "flops", "device_seconds", "peak_memory_bytes" or
            "joules".
        personal : bool
            Draw the metric of the clients' own models in place of the global model's.
        at : Mapping[str, Any], optional
            Dotted key of the grid to value: of the runs that are crossed with it, draw those with this value.
        axes : Axes, optional
            Where to draw; a new figure where not given.

        Examples
        --------
        >>> study("studies/quickstart.yaml").plot().figure.savefig("curves.pdf")  # doctest: +SKIP
        """
        from fedprune.studies import figures

        if what not in figures.FIGURES:
            raise UserError(f"there is no figure {what!r}; there are {', '.join(figures.FIGURES)}")
        for key, value in (at or {}).items():
            if value not in self.spec.grid.get(key, ()):
                raise UserError(f"the grid has no {key}: {value!r}")
        drawn = [
            outcome
            for outcome in self.outcomes
            if all(outcome.point.get(key, value) == value for key, value in (at or {}).items())
        ]
        if what == "curves":
            return figures.curves(drawn, axes, personal=personal)
        draw = figures.costs if what == "costs" else figures.spent
        return draw(drawn, cost, axes, personal=personal)

    def _repr_html_(self) -> str:
        """Return the table of claims, for notebooks."""
        return self.claims()._repr_html_()

    def check_target(self) -> None:
        """Refuse a target of another metric than the runs' headline one, or one that no run can miss."""
        from fedprune.studies.statistics import is_share

        named, metric, target = self.spec.target_metric, headline(self.outcomes), self.spec.target
        if named is not None and named != metric.name:
            raise UserError(
                self.spec.complaint(
                    (f"target_{named}",), f"the headline metric is {metric.name}: write target_{metric.name}"
                )
            )
        if target is not None and is_share(metric.name) and not 0 < target <= 1:
            raise UserError(
                self.spec.complaint(
                    ("target" if named is None else f"target_{named}",),
                    f"{target:g} is out of range: {metric.name} is a share, so more than 0 and at most 1",
                )
            )


def study(
    source: Path | str | Mapping[str, Any],
    /,
    *,
    out: Path | str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Study:
    """Read a study; ``run`` does its runs, and what they came to can be read at any time.

    Parameters
    ----------
    source : Path, str or Mapping
        A study file, or what one holds.
    out : Path or str, optional
        The study's folder; ``runs/<name>`` in the working directory where not given.
    overrides : Mapping[str, object], optional
        Dotted key to value, put in the base of all runs: ``{"data.path": "cifar10"}``.

    Raises
    ------
    ScenarioError
        Where it describes no study; one line for each mistake.

    Examples
    --------
    >>> study("studies/quickstart.yaml").run().table()  # doctest: +SKIP
    """
    return Study(load_study(source, overrides=overrides), Path(out) if out is not None else None)


def _written(value: Any) -> str:
    """Return a value as ``--set`` reads it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if yaml_file.parse(text, "") == value else json.dumps(value)


def _one_of_each(runs: Sequence[PlannedRun]) -> Iterator[PlannedRun]:
    """Yield one run of each variant and point."""
    seen = set()
    for run in runs:
        if run.group not in seen:
            seen.add(run.group)
            yield run
