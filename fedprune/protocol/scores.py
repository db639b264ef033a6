"""How well a model does on a client's held-out examples, as a reply says it.

The sums that metrics follow from travel, not their values: so the metrics of all clients together are exactly
those of all their examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import MetricRecord

from fedprune.errors import WireError
from fedprune.protocol.messages import real, whole
from fedprune.tasks import Metric, Score

#: The longest list that an error message repeats.
_MOST_SHOWN = 8
#: What comes before the name of a metric, or "loss", of a client's own model after training.
PERSONAL = "test-"


def score_entries(score: Score, prefix: str = "") -> dict[str, int | float | list[int] | list[float]]:
    """Return a score as entries of a reply's metrics, their names after a prefix.

    They are ``examples`` and of each metric its statistics; without a prefix ``num-examples``, ``loss``, and
    the same.
    """
    return {
        _examples(prefix): score.examples,
        **({} if prefix else {"loss": score.loss}),
        **{f"{prefix}{name}": _shortest(sums) for name, sums in score.statistics.items()},
    }


def _shortest(sums: tuple[float, ...]) -> list[int] | list[float]:
    """Return sums as a message takes the fewest bytes for: counts as whole numbers."""
    return [int(value) for value in sums] if all(value.is_integer() for value in sums) else list(sums)


def read_score(record: MetricRecord, metrics: Sequence[Metric], prefix: str = "") -> Score | None:
    """Return what `score_entries` wrote, checked; None where there is no score, or one of no examples.

    Raises
    ------
    WireError
        Where a part is missing, or is nothing that a metric can follow from.
    """
    own = {f"{prefix}{metric.name}" for metric in metrics}
    if not record.keys() & {_examples(prefix), *own}:
        return None
    # A client says nothing of its own model where it holds out nothing.
    examples = whole(record, _examples(prefix), least=1 if prefix else 0)
    if not examples:
        return None
    return Score(
        examples=examples,
        loss_sum=0.0 if prefix else real(record, "loss") * examples,
        statistics={metric.name: _statistics(record, prefix, metric, examples) for metric in metrics},
    )


def _statistics(record: MetricRecord, prefix: str, metric: Metric, examples: int) -> tuple[float, ...]:
    key = f"{prefix}{metric.name}"
    values = record.get(key)
    if not isinstance(values, list):
        raise WireError(f"{key!r} is no list of numbers, expected the statistics of {metric.name}")
    statistics = np.asarray(values, dtype=np.float64)
    if not np.isfinite(statistics).all():
        raise WireError(f"{key!r} is not finite")
    if (fault := metric.fault(statistics, examples)) is not None:
        shown = "" if len(values) > _MOST_SHOWN else f" is {values!r}"
        raise WireError(f"{key!r}{shown}: {fault}")
    return tuple(statistics.tolist())


def _examples(prefix: str) -> str:
    return f"{prefix}examples" if prefix else "num-examples"
