"""How evenly a model serves a run's clients: the headline metric on what each of them holds out.

The values are those of ``clients.jsonl``: of evaluation tasks the global model's, of training tasks that of
the client's own model. Not for estimates over several runs: see `fedprune.studies`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: The share of clients that are the worst.
WORST = 0.1
#: Whose model is tested.
Whose = Literal["global", "personal"]


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


@dataclass
class ClientValues:
    """The last value of each client, as records are added in the order of the rounds.

    Attributes
    ----------
    metric
        Its column in ``clients.jsonl``.
    tested
        Client to its device and the global model's value, in the last round in which clients tested it.
    trained
        The same of the client's own model after its last training.
    """

    metric: str
    tested: dict[int, tuple[str, float]] = field(default_factory=dict)
    trained: dict[int, tuple[str, float]] = field(default_factory=dict)
    _round: int = -1

    def add(self, record: Mapping[str, Any]) -> None:
        """Take the record of a task into account."""
        if record.get("status") != "ok" or (value := record.get(self.metric)) is None:
            return
        if record["type"] == "evaluate":
            if record["round"] != self._round:
                self._round, self.tested = record["round"], {}
            self.tested[record["client"]] = record["device"], float(value)
        elif record["type"] == "train":
            self.trained[record["client"]] = record["device"], float(value)

    def found(self) -> dict[Whose, list[tuple[str, float]]]:
        """Return device and value of each client, of those models of which there are any."""
        by_model: dict[Whose, dict[int, tuple[str, float]]] = {
            "global": self.tested,
            "personal": self.trained,
        }
        return {whose: list(values.values()) for whose, values in by_model.items() if values}

    def summary(self, *, higher_is_better: bool) -> dict[str, Any]:
        """Return how they are spread, by whose model it is, as ``summary.json`` has it."""
        made = {}
        for whose, values in self.found().items():
            spread = spread_of((value for _, value in values), higher_is_better=higher_is_better)
            numbers = ("clients", "mean", "worst", "std", "jain")
            made[str(whose)] = {name: getattr(spread, name) for name in numbers}
        return made
