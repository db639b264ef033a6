"""What is shown of a run beside another: which measures, in which words and units.

The numbers are those of ``summary.json``; this module only turns them into text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedprune.results.records import COSTS
from fedprune.units import format_bytes, format_flops, format_joules, format_seconds

UNKNOWN = "-"


@dataclass(frozen=True)
class Measure:
    """One measure of a run: its key in the summary, its name for people, and how its value is written.

    An ``optional`` one is of interest only where it is known.
    """

    key: str
    label: str
    form: Callable[[Any], str] = str
    optional: bool = False

    def text(self, summary: Mapping[str, Any], relative: Mapping[str, Any] | None = None) -> str:
        """Return the value for people; a cost is followed by its ratio to the dense one, if known."""
        value = summary.get(self.key)
        if value is None:
            return UNKNOWN
        ratio = (relative or {}).get(self.key) if self.key in COSTS else None
        return self.form(value) + (f" ({format_ratio(ratio)})" if ratio is not None else "")


def format_share(share: float) -> str:
    """Return a share in percent: two decimals, and more only where two would lose it.

    Examples
    --------
    >>> format_share(0.6125), format_share(0.05), format_share(0.00012)
    ('61.25%', '5%', '0.012%')
    """
    percent = share * 100
    text = f"{percent:.2f}" if percent >= 0.1 or percent == 0 else f"{percent:.2g}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}%"


def format_ratio(ratio: float) -> str:
    """Return how many times as much something is.

    Examples
    --------
    >>> format_ratio(0.0623), format_ratio(1.0), format_ratio(0.00412)
    ('0.06x', '1.00x', '0.0041x')
    """
    return f"{ratio:.2f}x" if ratio >= 0.01 or ratio == 0 else f"{ratio:.2g}x"


MEASURES: tuple[Measure, ...] = (
    Measure("strategy", "strategy"),
    Measure("status", "status"),
    Measure("rounds", "rounds"),
    Measure("final_accuracy", "accuracy, final", format_share),
    Measure("best_accuracy", "accuracy, best", format_share),
    Measure("final_personal_accuracy", "personal accuracy, final", format_share, optional=True),
    Measure("best_personal_accuracy", "personal accuracy, best", format_share, optional=True),
    Measure("density", "density", format_share),
    Measure("density_all_weights", "density, all weights", format_share, optional=True),
    Measure("bytes_up", "bytes up", format_bytes),
    Measure("bytes_down", "bytes down", format_bytes),
    Measure("flops", "FLOPs", format_flops),
    Measure("peak_memory_bytes", "peak memory", format_bytes),
    Measure("device_seconds", "device time", format_seconds),
    Measure("joules", "energy", format_joules, optional=True),
    Measure("startup_seconds", "wall time, start-up", format_seconds, optional=True),
    Measure("wall_seconds", "wall time, rounds", format_seconds),
    Measure("total_seconds", "wall time, total", format_seconds, optional=True),
    Measure("clients_failed", "failed tasks"),
)


def known_measures(summaries: Iterable[Mapping[str, Any]]) -> tuple[Measure, ...]:
    """Return the measures to show of some runs: an optional one where at least one of them has it."""
    known = {key for summary in summaries for key, value in summary.items() if value is not None}
    return tuple(measure for measure in MEASURES if not measure.optional or measure.key in known)
