"""``Score``: how well a model does on some examples, as sums that can be added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedprune.tasks.metrics import Metric, columns, values_of


@dataclass(frozen=True)
class Score:
    """Sums over examples: of their losses, and what metrics follow from.

    Attributes
    ----------
    examples
        How many.
    loss_sum
        Of their losses.
    statistics
        The sums of each metric, by its name; see `fedprune.tasks.Metric`.
    """

    examples: int
    loss_sum: float
    statistics: Mapping[str, tuple[float, ...]]

    @property
    def loss(self) -> float:
        """Mean loss; 0 without examples."""
        return self.loss_sum / self.examples if self.examples else 0.0

    def values(self, metrics: Sequence[Metric]) -> dict[str, float | None]:
        """Return the value of each metric by its name; None where it is not defined, or without examples."""
        if not self.examples:
            return dict.fromkeys(columns(metrics))
        return values_of(metrics, {name: np.array(sums) for name, sums in self.statistics.items()})

    def details(self, metrics: Sequence[Metric]) -> dict[str, Any]:
        """Return what is known besides their values, of the metrics that have such, by name."""
        found = {m.name: m.details(np.array(self.statistics[m.name])) for m in metrics if self.examples}
        return {name: details for name, details in found.items() if details is not None}


def combine(scores: Sequence[Score]) -> Score:
    """Add the scores of chunks, or of clients, in their order."""
    parts = [part for part in scores if part.examples]
    names = parts[0].statistics if parts else ()
    return Score(
        examples=sum(part.examples for part in parts),
        loss_sum=sum((part.loss_sum for part in parts), 0.0),
        statistics={
            name: tuple(map(sum, zip(*(part.statistics[name] for part in parts), strict=True)))
            for name in names
        },
    )
