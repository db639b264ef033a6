"""What is estimated of every run: its key, its name for readers, how it is written, which way is better.

The keys are those of ``summary.json``, besides ``bytes``, which is both directions together. The headline
metric is whatever the summaries name: nothing here knows accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedprune.results.measures import MEASURES, metric_form, words
from fedprune.studies.outcomes import Metric, Outcome
from fedprune.units import format_bytes

#: What a run costs, least being best: keys of quantities.
COSTS = (
    "bytes",
    "bytes_up",
    "bytes_down",
    "flops",
    "device_seconds",
    "peak_memory_bytes",
    "joules",
    "wall_seconds",
)
#: What split training has besides, and other runs have none of.
OF_SPLIT_TRAINING = ("smashed_bytes_up", "smashed_bytes_down", "server_flops")
_MEASURES = {measure.key: measure for measure in MEASURES}


@dataclass(frozen=True)
class Quantity:
    """One number of a run.

    Attributes
    ----------
    key
        Its key among a group's estimates, and its column in a CSV file.
    label
        Its name for readers.
    form
        Writes a value with its unit.
    higher_is_better
        Which way is better; None where neither is.
    """

    key: str
    label: str
    form: Callable[[Any], str]
    higher_is_better: bool | None = False

    def of(self, outcome: Outcome) -> float | None:
        """Return the value of a run; None where it is unknown or not finite, or there is no such thing."""
        summary = outcome.summary or {}
        value = _traffic(summary) if self.key == "bytes" else summary.get(self.key)
        if self.key in OF_SPLIT_TRAINING and value == 0:
            return None
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


#: Bytes of both directions, which no summary has as one number.
TRAFFIC = Quantity("bytes", "bytes, up and down", format_bytes)


def quantities(metric: Metric) -> tuple[Quantity, ...]:
    """Return all quantities of runs with this headline metric, in the order in which they are shown."""
    form, better = metric_form(metric.name), metric.higher_is_better
    name = words(metric.name)
    return (
        Quantity(metric.final, f"{name}, final", form, better),
        Quantity(metric.best, f"{name}, best", form, better),
        Quantity(f"final_personal_{metric.name}", f"personal {name}, final", form, better),
        Quantity(f"best_personal_{metric.name}", f"personal {name}, best", form, better),
        measured("density", None),
        measured("density_all_weights", None),
        TRAFFIC,
        *(measured(key) for key in (*COSTS[1:], *OF_SPLIT_TRAINING)),
    )


def measured(key: str, higher_is_better: bool | None = False) -> Quantity:
    """Return one of the measures that the tables of single runs show, under the same name and unit."""
    measure = _MEASURES[key]
    return Quantity(key, measure.label, measure.form, higher_is_better)


def _traffic(summary: dict[str, Any]) -> Any:
    up, down = summary.get("bytes_up"), summary.get("bytes_down")
    return None if up is None or down is None else up + down
