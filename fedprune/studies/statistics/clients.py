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
_MODELS: tuple[Whose, ...] = ("global", "personal")


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


def client_spreads(outcome: Outcome, metric: Metric) -> dict[Whose, ClientSpread]:
    """Return the spread over the clients of a run, from its run folder.

    Parameters
    ----------
    outcome
        The run.
    metric
        Its headline metric, which is also the column of ``clients.jsonl``.

    Returns
    -------
    dict
        "global": of the global model, in the last round in which clients tested it. "personal": of the
        clients' own models, each after its last training. Without those of which there are no values: see
        `HOW_TO_MEASURE_CLIENTS`.
    """
    if outcome.directory is None:
        return {}
    tested: dict[int, tuple[str, float]] = {}
    trained: dict[int, tuple[str, float]] = {}
    last = -1
    for record in each_line(outcome.directory / CLIENTS):  # In the order of the rounds.
        if record["status"] != "ok" or (value := record.get(metric.name)) is None:
            continue
        if record["type"] == "evaluate":
            if record["round"] != last:
                last, tested = record["round"], {}
            tested[record["client"]] = record["device"], float(value)
        elif record["type"] == "train":
            trained[record["client"]] = record["device"], float(value)
    values: dict[Whose, dict[int, tuple[str, float]]] = {"global": tested, "personal": trained}
    return {whose: _by_device(list(found.values()), metric) for whose, found in values.items() if found}


def group_spreads(group: Group, metric: Metric) -> dict[Whose, GroupSpread]:
    """Return the spread over clients of a group's complete runs, as estimates over seeds.

    It has the keys of `client_spreads`. A device that only some runs have is estimated over these.
    """
    of_runs = [client_spreads(run, metric) for run in group.complete]
    spreads: dict[Whose, GroupSpread] = {}
    for whose in _MODELS:
        found = [each[whose] for each in of_runs if whose in each]
        devices = sorted({device for each in found for device in each.by_device})
        if found:
            spreads[whose] = GroupSpread(
                _estimates([each.overall for each in found]),
                {
                    device: _estimates([each.by_device[device] for each in found if device in each.by_device])
                    for device in devices
                },
            )
    return spreads


def _by_device(values: Sequence[tuple[str, float]], metric: Metric) -> ClientSpread:
    """Return the spread of values, each with the device of its client."""

    def of(chosen: Iterable[float]) -> Spread:
        return spread_of(chosen, higher_is_better=metric.higher_is_better)

    devices = sorted({device for device, _ in values})
    return ClientSpread(
        of(value for _, value in values),
        {device: of(value for each, value in values if each == device) for device in devices},
    )


def _estimates(spreads: Sequence[Spread]) -> dict[str, Estimate]:
    estimates = {}
    for key in ("clients", "mean", "worst", "std", "variance", "jain"):
        values = [value for spread in spreads if (value := getattr(spread, key)) is not None]
        if values:
            estimates[key] = Estimate.of(values)
    return estimates
