"""What is shown of a run beside another: which measures, in which words and units.

The numbers are those of ``summary.json``; this module only turns them into text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedprune.results.records import COSTS
from fedprune.units import format_bytes, format_flops, format_joules, format_seconds

UNKNOWN = "-"


def texts_of(values: Sequence[Any], form: Callable[[Any], str]) -> list[str]:
    """Format a row or column of values; shares have the same number of decimals."""
    if form is not format_share:
        return [UNKNOWN if value is None else form(value) for value in values]
    shares = iter(format_shares([value for value in values if value is not None]))
    return [UNKNOWN if value is None else next(shares) for value in values]


@dataclass(frozen=True)
class Measure:
    """One measure of a run: its key in the summary, its displayed name, and how its value is written.

    An ``optional`` one is of interest only where it is known, and not 0.
    """

    key: str
    label: str
    form: Callable[[Any], str] = str
    optional: bool = False

    def text(self, summary: Mapping[str, Any], relative: Mapping[str, Any] | None = None) -> str:
        """Format the value; a cost is followed by its ratio to the dense one, if known."""
        return self.texts([summary], [relative])[0]

    def texts(
        self, summaries: Sequence[Mapping[str, Any]], relative: Sequence[Mapping[str, Any] | None]
    ) -> list[str]:
        """Format the values of several runs side by side."""
        texts = texts_of([summary.get(self.key) for summary in summaries], self.form)
        ratios = [(each or {}).get(self.key) if self.key in COSTS else None for each in relative]
        return [
            text if ratio is None or text == UNKNOWN else f"{text} ({format_ratio(ratio)})"
            for text, ratio in zip(texts, ratios, strict=True)
        ]


def format_share(share: float, decimals: int | None = None) -> str:
    """Return a share in percent: two decimals, and more only where two would lose it.

    Zeros at the end are left out, unless a number of decimals is given: that of a row or column.

    Examples
    --------
    >>> format_share(0.6125), format_share(0.05), format_share(0.00012)
    ('61.25%', '5%', '0.012%')
    """
    percent = share * 100
    if decimals is not None:
        return f"{percent:.{decimals}f}%"
    text = f"{percent:.2f}" if percent >= 0.1 or percent == 0 else f"{percent:.2g}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}%"


def format_shares(shares: Sequence[float]) -> list[str]:
    """Return shares in percent, all with as many decimals as the one that needs most.

    Examples
    --------
    >>> format_shares([0.95, 0.9567]), format_shares([0.5, 1.0])
    (['95.00%', '95.67%'], ['50%', '100%'])
    """
    most = max((len(format_share(share).partition(".")[2].rstrip("%")) for share in shares), default=0)
    return [format_share(share, most) for share in shares]


def format_ratio(ratio: float) -> str:
    """Return how many times as much something is.

    Examples
    --------
    >>> format_ratio(0.0623), format_ratio(1.0), format_ratio(0.00412)
    ('0.06x', '1.00x', '0.0041x')
    """
    return f"{ratio:.2f}x" if ratio >= 0.01 or ratio == 0 else f"{ratio:.2g}x"


#: The last words of metrics that are shares, in [0, 1], and are written in percent.
_SHARES = ("accuracy", "f1", "auc", "auroc", "precision", "recall", "iou")


def is_share(metric: str) -> bool:
    """Return whether a metric is a share in [0, 1], by its name.

    Examples
    --------
    >>> is_share("accuracy"), is_share("macro_f1"), is_share("perplexity")
    (True, True, False)
    """
    return metric.rpartition("_")[2].lower() in _SHARES


def metric_form(metric: str) -> Callable[[Any], str]:
    """Return how a metric's values are written: a share in percent, others as plain numbers."""
    return format_share if is_share(metric) else format_number


def format_number(value: float) -> str:
    """Return a number without a unit, to four digits.

    Examples
    --------
    >>> format_number(23.4567), format_number(0.00012345), format_number(12345.6), format_number(8.0011e29)
    ('23.46', '0.0001234', '12346', '8.001e+29')
    """
    return f"{value:.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def words(metric: str) -> str:
    """Return a metric's name for readers."""
    return metric.replace("_", " ")


def measures(summaries: Iterable[Mapping[str, Any]]) -> tuple[Measure, ...]:
    """Return all measures of some runs, among them the metrics of their tasks."""
    kept = [key.removeprefix("final_") for each in summaries for key in each if key.startswith("final_")]
    names = [name for name in dict.fromkeys(kept) if not name.startswith("personal_")]
    metrics = [
        Measure(
            f"{when}_{whose}{name}", f"{of}{words(name)}, {when}", metric_form(name), optional=bool(whose)
        )
        for name in names or ["accuracy"]
        for whose, of in (("", ""), ("personal_", "personal "))
        for when in ("final", "best")
    ]
    return (*_FIRST, *metrics, *MEASURES)


_FIRST = (
    Measure("strategy", "strategy"),
    Measure("status", "status"),
    Measure("rounds", "rounds"),
)
#: What is measured of every run, whatever its task.
MEASURES: tuple[Measure, ...] = (
    Measure("density", "density", format_share),
    Measure("density_all_weights", "density, all weights", format_share, optional=True),
    Measure("bytes_up", "bytes up", format_bytes),
    Measure("bytes_down", "bytes down", format_bytes),
    Measure("smashed_bytes_up", "smashed bytes up", format_bytes, optional=True),
    Measure("smashed_bytes_down", "smashed bytes down", format_bytes, optional=True),
    Measure("flops", "FLOPs", format_flops),
    Measure("server_flops", "FLOPs, server", format_flops, optional=True),
    Measure("peak_memory_bytes", "peak memory", format_bytes),
    Measure("device_seconds", "device time", format_seconds),
    Measure("joules", "energy", format_joules, optional=True),
    Measure("startup_seconds", "wall time, start-up", format_seconds, optional=True),
    Measure("wall_seconds", "wall time, rounds", format_seconds),
    Measure("total_seconds", "wall time, total", format_seconds, optional=True),
    Measure("clients_failed", "failed tasks"),
)


def known_measures(summaries: Iterable[Mapping[str, Any]]) -> tuple[Measure, ...]:
    """Return the measures to show of some runs: an optional one where at least one of them has some of it."""
    summaries = list(summaries)
    known = {key for summary in summaries for key, value in summary.items() if value not in (None, 0)}
    return tuple(measure for measure in measures(summaries) if not measure.optional or measure.key in known)
