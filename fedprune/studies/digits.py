"""How many digits of an estimate are written: as many as its interval leaves known.

Half a width of an interval has two digits, in percent one decimal at least, and the mean ends at the same
place. All numbers of a column have the same decimals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fedprune.results.measures import UNKNOWN
from fedprune.studies.statistics import Comparison, Estimate, is_share

_LEAST_OF_PERCENT, _MOST_OF_PERCENT = 1, 2
_MOST_DIGITS = 6
_LEAST_P = 0.001


def unit_of(metric: str) -> str:
    """Return what stands behind a metric's name in a head: " (%)" for shares, else nothing."""
    return " (%)" if is_share(metric) else ""


def estimate_texts(estimates: Sequence[Estimate | None], metric: str) -> list[str]:
    """Return a column of means of a metric, each ± half the width of its t interval, where it has one.

    Examples
    --------
    >>> estimate_texts([Estimate.of([0.61, 0.64, 0.62]), Estimate.of([0.5]), None], "accuracy")
    ['62.3 ± 3.8', '50.0', '-']
    >>> estimate_texts([Estimate.of([21.0, 22.5, 21.6])], "perplexity")
    ['21.7 ± 1.9']
    """
    factor = _factor(metric)
    known = [each for each in estimates if each is not None]
    decimals = _decimals([factor * each.mean for each in known], _half_widths(known, factor), metric)
    texts = []
    for each in estimates:
        if each is None:
            texts.append(UNKNOWN)
        elif each.half_width is None:
            texts.append(f"{factor * each.mean:.{decimals}f}")
        else:
            texts.append(f"{factor * each.mean:.{decimals}f} ± {factor * each.half_width:.{decimals}f}")
    return texts


def difference_texts(
    comparisons: Sequence[Comparison | None], metric: str, of_none: Sequence[str]
) -> list[str]:
    """Return a column of mean differences with their t intervals: "-1.2 [-3.4, 1.0]", in points for a share.

    ``of_none`` says what to write where there is no comparison.
    """
    factor = _factor(metric)
    found = [None if each is None else each.difference for each in comparisons]
    known = [each for each in found if each is not None]
    decimals = _decimals([factor * each.mean for each in known], _half_widths(known, factor), metric)

    def signed(value: float) -> str:
        text = f"{factor * value:+.{decimals}f}"
        return text[1:] if float(text) == 0 else text

    texts = []
    for each, otherwise in zip(found, of_none, strict=True):
        if each is None:
            texts.append(otherwise)
        elif each.t_interval is None:
            texts.append(signed(each.mean))
        else:
            texts.append(
                f"{signed(each.mean)} [{signed(each.t_interval.low)}, {signed(each.t_interval.high)}]"
            )
    return texts


def format_p(p: float | None) -> str:
    """Return a p value: never 0, since no test of a few runs can show that.

    Examples
    --------
    >>> format_p(0.00002), format_p(0.0312), format_p(0.2), format_p(1.0), format_p(None)
    ('<0.001', '0.031', '0.20', '1.00', '-')
    """
    if p is None:
        return UNKNOWN
    if p < _LEAST_P:
        return f"<{_LEAST_P:g}"
    return f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def _factor(metric: str) -> float:
    return 100.0 if is_share(metric) else 1.0


def _half_widths(estimates: Iterable[Estimate], factor: float) -> list[float]:
    return [factor * each.half_width for each in estimates if each.half_width]


def _decimals(values: Sequence[float], half_widths: Sequence[float], metric: str) -> int:
    """Return the decimals of a column: as many as its narrowest half width has two digits with."""
    if is_share(metric):
        least, most = _LEAST_OF_PERCENT, _MOST_OF_PERCENT
    else:
        largest = max(map(abs, values), default=0.0)
        least, most = 0, max(0, _MOST_DIGITS - 1 - (math.floor(math.log10(largest)) if largest else 0))
    if half_widths:
        return min(most, max(least, 1 - math.floor(math.log10(min(half_widths)))))
    return min(most, 2 if is_share(metric) else max(0, most - 2))
