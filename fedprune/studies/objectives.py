"""What a search may look for: figures of a run's summary, and in which direction each is better."""

from __future__ import annotations

from typing import Literal

from fedprune.results.measures import format_number, metric_form
from fedprune.scenario.validation import refuse
from fedprune.studies.outcomes import Metric
from fedprune.studies.statistics.quantities import Quantity, quantities
from fedprune.wording import known_here

Direction = Literal["maximize", "minimize"]

#: A metric's figures begin so, whatever the metric.
_OF_METRIC = ("final_", "best_")
_KNOWN = {quantity.key: quantity for quantity in quantities(Metric())}


def quantity_of(key: str) -> Quantity:
    """Return what is known of a figure of ``summary.json``; of another task's metric its name alone."""
    if key in _KNOWN:
        return _KNOWN[key]
    form = metric_form(key) if key.startswith(_OF_METRIC) else format_number
    return Quantity(key, key.replace("_", " "), form, None)


def direction_of(key: str) -> Direction:
    """Return in which direction a figure is better.

    Raises
    ------
    ValueError
        Where neither is, or it is not known.
    """
    better = quantity_of(key).higher_is_better
    if better is None and is_known(key):
        raise ValueError(f"say which is better: {{{key}: maximize}} or {{{key}: minimize}}")
    return "maximize" if better else "minimize"


def is_known(key: str) -> bool:
    """Say whether a summary may have a figure."""
    return key in _KNOWN or key.startswith(_OF_METRIC)


def refuse_unknown(key: str) -> None:
    """Refuse a figure that no summary has."""
    if not is_known(key):
        raise refuse("objective", f"a summary has no figure {key!r}{known_here(key, _KNOWN, '')}")


def column_of(key: str) -> str | None:
    """Return the column of ``rounds.jsonl`` that a figure is of; None where rounds have no value of it.

    Examples
    --------
    >>> column_of("final_accuracy"), column_of("bytes_up")
    ('accuracy', None)
    """
    column = key.removeprefix("final_").removeprefix("best_")
    return column if key.startswith(_OF_METRIC) else None
