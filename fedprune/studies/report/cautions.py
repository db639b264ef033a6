"""What to know before believing a report: runs that failed, clients that failed, unequal settings.

Each caution is one sentence of plain text. Nothing here judges a method.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from fedprune.results.compare import FREE
from fedprune.studies.outcomes import Metric, Outcome
from fedprune.studies.report.settings import seeds_text, unequal
from fedprune.studies.statistics import Group, diverged

_MOST_NAMED = 12


def cautions(groups: Sequence[Group], metric: Metric) -> list[str]:
    """Return what has to be said of some groups, what weighs most first; [] where nothing has."""
    return [
        *_not_complete(groups),
        *_diverged(groups, metric),
        *_few_seeds(groups),
        *_unequal(groups),
        *_failed_tasks(groups),
    ]


def _not_complete(groups: Sequence[Group]) -> Iterator[str]:
    for status, text in (
        ("failed", "failed"),
        ("interrupted", "was interrupted"),
        ("unfinished", "is unfinished"),
    ):
        for group in groups:
            for outcome in group.outcomes:
                if outcome.summary is not None and outcome.summary["status"] == status:
                    summary = outcome.summary
                    reason = f": {summary['reason']}" if summary.get("reason") else ""
                    rounds = f"after round {summary['rounds']} of {summary['planned_rounds']}"
                    yield f"{_run(group, outcome)} {text} {rounds}{reason}. No mean has it."
    waiting = [f"{group.name} ({seeds_text(runs)})" for group in groups if (runs := _not_begun(group))]
    if waiting:
        yield f"Not begun: {_listed(waiting)}."


def _diverged(groups: Sequence[Group], metric: Metric) -> Iterator[str]:
    for group in groups:
        for outcome in group.complete:
            if diverged(outcome, metric):
                yield f"{_run(group, outcome)} diverged: its {_words(metric)} or its loss is not a number."
            elif _worsened(outcome, metric):
                yield f"{_run(group, outcome)} ended worse than it began, in {_words(metric)}."


def _few_seeds(groups: Sequence[Group]) -> Iterator[str]:
    single = [group.name for group in groups if len(group.complete) == 1]
    if single:
        yield f"One complete run only, so without an interval or a test: {_listed(single)}."
    none = [group.name for group in groups if not group.complete]
    if none:
        yield f"No complete run, so in no mean: {_listed(none)}."
    seeds = {group.name: {outcome.seed for outcome in group.complete} for group in groups if group.complete}
    expected: set[int] = set().union(*seeds.values())
    short = [name for name, own in seeds.items() if own != expected]
    if short:
        yield f"Not all groups have the same seeds; some are missing of {_listed(short)}."


def _unequal(groups: Sequence[Group]) -> Iterator[str]:
    outcomes = [outcome for group in groups for outcome in group.outcomes]
    grid = {key for outcome in outcomes for key in outcome.point}
    keys = unequal(outcomes, {*FREE, "seed", *grid})
    if keys:
        yield (
            "Not under equal conditions: besides the strategy, the seed and the grid the runs differ in "
            f"{_listed(keys)}."
        )
    for group in groups:
        own = unequal(group.outcomes, {"name", "seed", "engine"})
        if own:
            yield f"{group.name}: its runs differ in more than the seed, in {_listed(own)}."


def _failed_tasks(groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        failed = _total(group, lambda summary: summary.get("clients_failed") or 0)
        if failed:
            reasons = Counter[str]()
            for outcome in group.outcomes:
                reasons.update((outcome.summary or {}).get("failures") or {})
            named = "; ".join(f"{reason} ({times})" for reason, times in reasons.most_common(3))
            all_tasks = failed + _total(group, lambda summary: summary.get("clients_ok") or 0)
            yield f"{group.name}: {failed} of {all_tasks} tasks failed{f': {named}' if named else ''}."
        if excluded := _total(group, lambda summary: summary.get("clients_excluded") or 0):
            yield f"{group.name}: clients lacked the memory or data to train {excluded} times and sat out."


def _not_begun(group: Group) -> list[Outcome]:
    return [outcome for outcome in group.outcomes if outcome.summary is None]


def _worsened(outcome: Outcome, metric: Metric) -> bool:
    values = [record[metric.name] for record in outcome.rounds if record.get(metric.name) is not None]
    return len(values) > 1 and values[-1] != values[0] and metric.reaches(values[0], values[-1])


def _total(group: Group, count: Callable[[dict[str, int]], int]) -> int:
    return sum(count(outcome.summary) for outcome in group.outcomes if outcome.summary is not None)


def _run(group: Group, outcome: Outcome) -> str:
    return f"{group.name}, seed {outcome.seed},"


def _words(metric: Metric) -> str:
    return metric.name.replace("_", " ")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
