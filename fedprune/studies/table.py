"""The tables of a study: the claim, every run, and the clients.

`claim_table` is the one for a paper: a row a group. Its text is for readers; the numbers behind it, of all
quantities and with both kinds of intervals, are in its CSV and its data frame. How a table is written is the
matter of `fedprune.studies.rendering`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from fedprune.results.measures import UNKNOWN, texts_of
from fedprune.results.records import Record
from fedprune.studies.claims import Claim, cost_part, numbers_of, record_of, result_part, until_part
from fedprune.studies.digits import estimate_texts, format_p, unit_of
from fedprune.studies.outcomes import Outcome, headline
from fedprune.studies.rendering import Part, Table
from fedprune.studies.statistics import (
    HOW_TO_MEASURE_CLIENTS,
    Estimate,
    GroupSummary,
    diverged,
    group_outcomes,
    group_spreads,
    quantities,
)

__all__ = ["Part", "Table", "claim_table", "client_table", "seed_table"]

_FEWEST_FOR_WILCOXON = 6  #: Below that many seeds no p value of Wilcoxon's test is below 0.05.
_STATES = {"failed": "failed", "unfinished": "have not ended", "unbegun": "have not begun"}


def claim_table(
    outcomes: Sequence[Outcome], *, reference: str | None = None, target: float | None = None
) -> Table:
    """Return the table of a study's claim, a row a group.

    Parameters
    ----------
    outcomes
        All runs, those that failed or have not begun too.
    reference
        The variant that the others are compared with; None for none.
    target
        A value of the headline metric; with it the table has the costs until it was reached.

    Raises
    ------
    UserError
        Where there is no outcome, none of the reference, runs of different tasks, or a seed twice.
    """
    claim = Claim.of(outcomes, reference=reference, target=target)
    parts = [result_part(claim), cost_part(claim), *([] if target is None else [until_part(claim)])]
    return Table(
        "What the runs reached and what that cost",
        tuple(part for part in parts if len(part.heads) > part.names),
        tuple(_notes(claim)),
        lambda: [record_of(claim, each) for each in claim.summaries],
    )


def seed_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the table of every run, a row a run: what its summary says."""
    metric = headline(outcomes)
    shown = [each for each in quantities(metric) if any(each.of(run) is not None for run in outcomes)]
    states = [_state(run) for run in outcomes]
    columns = {
        "variant": [run.group for run in outcomes],
        "seed": [str(run.seed) for run in outcomes],
        "status": states,
        **{each.label: texts_of([each.of(run) for run in outcomes], each.form) for each in shown},
    }
    grid = dict.fromkeys(key for run in outcomes for key in run.point)
    lost = [f"{run.group} (seed {run.seed})" for run in outcomes if diverged(run, metric)]

    def records() -> list[Record]:
        return [
            {
                "group": run.group,
                "variant": run.variant,
                **grid,
                **run.point,
                "seed": run.seed,
                "status": state,
                "diverged": diverged(run, metric),
                **{each.key: each.of(run) for each in quantities(metric)},
            }
            for run, state in zip(outcomes, states, strict=True)
        ]

    notes = (f"Diverged: {', '.join(lost)}.",) if lost else ()
    part = Part("", tuple(columns), tuple(zip(*columns.values(), strict=True)), names=3)
    return Table("Every run", (part,), notes, records)


def client_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the table of how evenly the clients are served, a row a class of device of each group.

    It has the global model's values and, where clients have models of their own, theirs. Where there are no
    values of clients, it has no rows, and a note says which settings of the scenario give them.
    """
    metric = headline(outcomes)
    rows: list[tuple[str, str, str, Mapping[str, Estimate]]] = []
    for group in group_outcomes(outcomes):
        for whose, spread in group_spreads(group, metric).items():
            rows.append((group.name, whose, "all", spread.overall))
            if len(spread.by_device) > 1:
                rows += [(group.name, whose, device, of) for device, of in spread.by_device.items()]
    name = metric.name.replace("_", " ")
    title = f"{name[0].upper()}{name[1:]} of the clients{unit_of(metric.name)}"
    if not rows:
        return Table(title, (), (HOW_TO_MEASURE_CLIENTS,), list)
    notes = (
        "Of a run's clients each counts the same; ±: 95% t intervals over seeds.",
        "The global model is that of the last round that clients tested; the personal ones are each client's "
        "after its last training.",
    )
    part = _client_part(title, rows, metric.name)
    return Table(title, (part,), notes, lambda: [_client_record(*row) for row in rows])


def _client_part(
    title: str, rows: Sequence[tuple[str, str, str, Mapping[str, Estimate]]], metric: str
) -> Part:
    estimates = [each for *_, each in rows]
    columns = {
        "variant": [name for name, _, _, _ in rows],
        "model": [whose for _, whose, _, _ in rows],
        "device": [device for _, _, device, _ in rows],
        "clients": [f"{each['clients'].mean:.4g}" for each in estimates],
        "mean": estimate_texts([each["mean"] for each in estimates], metric),
        "worst 10%": estimate_texts([each["worst"] for each in estimates], metric),
        "std over clients": estimate_texts([each["std"] for each in estimates], metric),
        "Jain's index": [f"{each['jain'].mean:.3f}" if "jain" in each else UNKNOWN for each in estimates],
    }
    return Part(title, tuple(columns), tuple(zip(*columns.values(), strict=True)), names=3)


def _client_record(name: str, whose: str, device: str, estimates: Mapping[str, Estimate]) -> Record:
    record: Record = {"group": name, "model": whose, "device": device}
    for key, each in estimates.items():
        record |= numbers_of(key, each)
    return record


def _notes(claim: Claim) -> Iterator[str]:
    """Yield what a reader of the claim has to know."""
    if any(each.complete > 1 for each in claim.summaries):
        yield "± and [ ]: 95% intervals of the mean over seeds, by Student's t; costs are means over seeds."
    if single := [each.name for each in claim.summaries if each.complete == 1]:
        yield f"One run, so without an interval or a test: {_listed(single)}."
    if claim.reference is not None:
        yield from _comparison_notes(claim)
    ranking = claim.ranking
    if len(ranking.mean_ranks) > 1:
        seeds = "the seed" if len(ranking.seeds) == 1 else f"each of the {len(ranking.seeds)} seeds"
        test = "" if ranking.friedman_p is None else f"; Friedman's test: p {_with_sign(ranking.friedman_p)}"
        yield f"Ranks are within {seeds} that all groups have, 1 being best{test}."
    for key, words in _STATES.items():
        counts = {each.name: _lost(each, key) for each in claim.summaries}
        if some := [f"{name} ({count})" for name, count in counts.items() if count]:
            yield f"Runs that {words}, and are in no estimate: {_listed(some)}."
    if some := [f"{each.name} ({each.diverged})" for each in claim.summaries if each.diverged]:
        yield f"Runs that diverged, and are in the estimates of what they have: {_listed(some)}."
    if claim.target is not None:
        yield (
            "Costs until the target are medians over all runs that ended, one that never reached it counting "
            "as infinite; ∞: at most half of them reached it."
        )


def _comparison_notes(claim: Claim) -> Iterator[str]:
    found = list(claim.comparisons.values())
    tested = [each for each in found if each.t_p is not None or each.wilcoxon_p is not None]
    yield (
        f"Differences to {claim.reference} are of runs of one seed, which share the split of the data and "
        "the initial weights; costs in brackets are relative to it."
    )
    if tested:
        yield (
            "p: paired t test and Wilcoxon's signed-rank test, two-sided, adjusted by Holm for "
            f"{len(tested)} {'comparison' if len(tested) == 1 else 'comparisons'}."
        )
        fewest = min(len(each.seeds) for each in tested)
        if fewest < _FEWEST_FOR_WILCOXON:
            yield f"Wilcoxon's p of {fewest} seeds is at least {2 / 2**fewest:.3g}, whatever the difference."
    if constant := [each.group for each in tested if each.t_p is None]:
        yield f"No t test, since all seeds differ by the same amount: {_listed(constant)}."
    if unpaired := [f"{each.group} ({_listed(each.unpaired)})" for each in found if each.unpaired]:
        yield f"Seeds left out of the comparison, since only one side has them: {_listed(unpaired)}."
    lone = [
        each.name
        for each in claim.summaries
        if each.name not in claim.comparisons and each.group.variant != claim.reference
    ]
    if lone:
        yield f"Not compared, since {claim.reference} has no run at their point of the grid: {_listed(lone)}."


def _lost(summary: GroupSummary, key: str) -> int:
    if key == "unbegun":
        return summary.planned - summary.complete - summary.failed - summary.unfinished
    return int(getattr(summary, key))


def _with_sign(p: float) -> str:
    text = format_p(p)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))


def _state(outcome: Outcome) -> str:
    return "not begun" if outcome.summary is None else str(outcome.summary["status"])
