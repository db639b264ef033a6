"""How evenly a model serves the clients: the headline metric on what each client holds out.

The values are those of ``clients.jsonl``: of evaluation tasks the global model's, of training tasks that of
the client's own model. Records of older runs have none, nor has a run whose clients hold nothing out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedprune.results.folder import CLIENTS
from fedprune.results.records import each_line
from fedprune.studies.outcomes import Metric, Outcome
from fedprune.studies.statistics.estimates import Estimate
from fedprune.studies.statistics.groups import Group

#: What a run without values of its clients lacks.
HOW_TO_MEASURE_CLIENTS = (
    "No values of single clients: data.client_test_fraction above 0 lets each client hold examples out, and "
    "evaluation.clients: all lets all of them test the global model on these."
)
#: The share of clients that are the worst.
WORST = 0.1
Whose = Literal["global", "personal"]
_TASKS: Mapping[str, str] = {"global": "evaluate", "personal": "train"}


@dataclass(frozen=True)
class Spread:
    """How some clients' values are spread, every client counting the same.

    Attributes
    ----------
    clients
        How many there are.
    mean
        Their mean: unlike ``client_accuracy`` it does not weight clients by examples.
    worst
        The mean of the worst tenth of them, rounded up to whole clients.
    variance, std
        Over the clients, all of them being there (``n`` below).
    jain
        Jain's index, in (0, 1]: 1 where all are equal, ``1/n`` where one client has all; None where all
        are 0.
        Source: Jain, Chiu and Hawe (1984), A quantitative measure of fairness.
    """

    clients: int
    mean: float
    worst: float
    variance: float
    jain: float | None

    @property
    def std(self) -> float:
        """The standard deviation over the clients."""
        return math.sqrt(self.variance)


@dataclass(frozen=True)
class ClientSpread:
    """The spread over a run's clients, of all and by class of device."""

    overall: Spread
    by_device: Mapping[str, Spread]


@dataclass(frozen=True)
class GroupSpread:
    """The spread of a group's runs: an estimate over seeds of each number.

    ``overall`` and the values of ``by_device`` have the keys ``clients`` (their number), ``mean``, ``worst``,
    ``std``, ``variance`` and ``jain``.
    """

    overall: Mapping[str, Estimate]
    by_device: Mapping[str, Mapping[str, Estimate]]


def spread_of(values: Iterable[float], *, higher_is_better: bool = True) -> Spread:
    """Return the spread of some clients' values, at least one.

    Examples
    --------
    >>> spread = spread_of([0.9, 0.8, 0.4])
    >>> spread.worst, round(spread.mean, 2)
    (0.4, 0.7)
    """
    ordered = sorted(values, reverse=not higher_is_better)
    n = len(ordered)
    mean = math.fsum(ordered) / n
    worst = ordered[: math.ceil(round(n * WORST, 9))]
    squares = math.fsum(value**2 for value in ordered)
    return Spread(
        clients=n,
        mean=mean,
        worst=math.fsum(worst) / len(worst),
        variance=math.fsum((value - mean) ** 2 for value in ordered) / n,
        jain=math.fsum(ordered) ** 2 / (n * squares) if squares else None,
    )


def client_spread(outcome: Outcome, metric: Metric, whose: Whose = "global") -> ClientSpread | None:
    """Return the spread over the clients of a run, from its run folder.

    Parameters
    ----------
    outcome
        The run.
    metric
        Its headline metric, which is also the column of ``clients.jsonl``.
    whose
        The "global" model's, in the last round in which clients tested it, or that of the clients' own
        ("personal") models, each after its last training.

    Returns
    -------
    ClientSpread or None
        None where there are no values of clients: see `HOW_TO_MEASURE_CLIENTS`.
    """
    if outcome.directory is None:
        return None
    last: dict[int, tuple[int, str, float]] = {}
    for record in each_line(outcome.directory / CLIENTS):
        value = record.get(metric.name)
        if record["type"] == _TASKS[whose] and record["status"] == "ok" and value is not None:
            last[record["client"]] = record["round"], record["device"], float(value)
    if not last:
        return None
    newest = max(number for number, _, _ in last.values())
    kept = [
        (device, value) for number, device, value in last.values() if whose == "personal" or number == newest
    ]
    devices = sorted({device for device, _ in kept})

    def of(these: Iterable[str]) -> Spread:
        chosen = set(these)
        values = [value for device, value in kept if device in chosen]
        return spread_of(values, higher_is_better=metric.higher_is_better)

    return ClientSpread(of(devices), {device: of([device]) for device in devices})


def group_spread(group: Group, metric: Metric, whose: Whose = "global") -> GroupSpread | None:
    """Return the spread over clients of a group's complete runs, as estimates over seeds.

    None where no run has values of its clients. A device that only some runs have is estimated over these.
    """
    spreads = [found for run in group.complete if (found := client_spread(run, metric, whose)) is not None]
    if not spreads:
        return None
    devices = sorted({device for spread in spreads for device in spread.by_device})
    return GroupSpread(
        _estimates([spread.overall for spread in spreads]),
        {
            device: _estimates([s.by_device[device] for s in spreads if device in s.by_device])
            for device in devices
        },
    )


def _estimates(spreads: Sequence[Spread]) -> dict[str, Estimate]:
    estimates = {}
    for key in ("clients", "mean", "worst", "std", "variance", "jain"):
        values = [value for spread in spreads if (value := getattr(spread, key)) is not None]
        if values:
            estimates[key] = Estimate.of(values)
    return estimates
