"""The table of a study's trials: what a search tried, how each trial ended, and which are best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedprune.results.measures import UNKNOWN, texts_of
from fedprune.results.records import Record
from fedprune.studies.objectives import quantity_of
from fedprune.studies.outcomes import label
from fedprune.studies.rendering import Part, Table
from fedprune.studies.search.search import Search, Trial


def trial_table(searches: Sequence[Search]) -> Table:
    """Return the table of all trials, a row a trial; of several objectives also the Pareto front."""
    parts = [part for search in searches for part in _parts(search)]
    notes = [note for search in searches for note in _notes(search)]
    return Table("Trials of the search", tuple(parts), tuple(notes), lambda: list(_records(searches)))


def taken(search: Search) -> str | None:
    """Return what a reader of the comparison has to know of a search; None while nothing is found."""
    unused = f"searched on {_seeds(search)}, which the comparison does not use"
    if (found := search.found()) is not None:
        values = label("", found.values).removeprefix(", ")
        best = "" if search.spec.take is not None else "the best "
        trial = f"trial {found.number}, {best}of {search.spec.trials}"
        return f"{search.spec.run} has the values of {trial} {unused}: {values}."
    if search.ended:
        return (
            f"{search.spec.run} has its own values: of {search.spec.trials} trials, {unused}, none is best "
            "in several objectives."
        )
    return None


def _parts(search: Search) -> Iterator[Part]:
    trials, front = search.trials(), search.front()
    if trials:
        yield _part(search.spec.run, search, trials)
    if front and len(search.spec.objective) > 1:
        yield _part(f"{search.spec.run}: the Pareto front", search, front)


def _part(title: str, search: Search, trials: Sequence[Trial]) -> Part:
    columns = [
        (
            quantity_of(key).label,
            texts_of([trial.figures.get(key) for trial in trials], quantity_of(key).form),
        )
        for key in search.spec.objective
    ]
    columns += [
        (key.rpartition(".")[2].replace("_", " "), [_text(trial.values.get(key)) for trial in trials])
        for key in search.spec.ranges
    ]
    names = [(str(trial.number), _state(trial)) for trial in trials]
    cells = zip(*(texts for _, texts in columns), strict=True)
    rows = tuple((*name, *each) for name, each in zip(names, cells, strict=True))
    return Part(title, ("trial", "state", *(head for head, _ in columns)), rows, names=2)


def _notes(search: Search) -> Iterator[str]:
    spec = search.spec
    ways = " and ".join(f"{key} ({way})" for key, way in spec.objective.items())
    sampler = {"tpe": "Optuna's TPE", "random": "random sampling"}[spec.sampler]
    mean = "means over" if len(spec.seeds) > 1 else "values of"
    trials = search.trials()
    yield f"{spec.run}: {ways} by {sampler}; {mean} {_seeds(search)}, which the comparison does not use."
    if len(trials) < spec.trials or not search.ended:
        yield f"{spec.run}: {search.count_ended()} of {spec.trials} trials have ended."
    elif (found := search.found()) is not None:
        yield f"{spec.run} has the values of trial {found.number} in the comparison."
    for trial in trials:
        if trial.reason is not None:
            yield f"Trial {trial.number} of {spec.run} failed: {trial.reason}."


def _records(searches: Sequence[Search]) -> Iterator[Record]:
    for search in searches:
        front = {trial.number for trial in search.front()}
        for trial in search.trials():
            yield {
                "run": search.spec.run,
                "trial": trial.number,
                "state": trial.state,
                "on_front": trial.number in front,
                "pruned_at_round": trial.round,
                **{key: trial.figures.get(key) for key in search.spec.objective},
                **trial.values,
                "reason": trial.reason,
            }


def _seeds(search: Search) -> str:
    seeds = search.spec.seeds
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _state(trial: Trial) -> str:
    return f"pruned at round {trial.round}" if trial.round is not None else trial.state


def _text(value: object) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
