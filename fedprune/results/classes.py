"""A run by device class: participation, accuracy and costs, as table rows.

The numbers are those of ``summary.json`` under ``classes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.results.measures import format_share, metric_form, texts_of, words
from fedprune.results.records import Record
from fedprune.units import format_bytes, format_flops, format_joules, format_seconds

_COUNTS: dict[str, tuple[str, Any]] = {
    "clients": ("clients", str),
    "participation": ("took part", format_share),
    "excluded_share": ("excluded", format_share),
    "offline_share": ("offline", format_share),
    "late_share": ("late", format_share),
    "surplus": ("surplus", str),
    "failed": ("failed", str),
}
_COSTS: dict[str, tuple[str, Any]] = {
    "flops": ("FLOPs", format_flops),
    "bytes_up": ("up", format_bytes),
    "bytes_down": ("down", format_bytes),
    "peak_memory_bytes": ("peak memory", format_bytes),
    "device_seconds": ("device time", format_seconds),
    "joules": ("energy", format_joules),
}


#: What stands below the table.
NOTE = 'What the columns count: docs/costs.md, "Classes of devices".'


def class_rows(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of a table with a line for each class of each run, by the run's label.

    No rows where no run has more than one class. The label is left out of a table of one run.
    """
    classes: list[tuple[str, str, Record]] = [
        (label, name, record)
        for label, summary in summaries.items()
        for name, record in (summary.get("classes") or {}).items()
    ]
    if all(len(summary.get("classes") or {}) < 2 for summary in summaries.values()):
        return [], []
    metrics = dict.fromkeys(summary.get("headline", "accuracy") for summary in summaries.values())
    columns_of = {**_COUNTS, **{name: (words(name), metric_form(name)) for name in metrics}, **_COSTS}
    shown = {
        key: column
        for key, column in columns_of.items()
        if any(record.get(key) is not None for _, _, record in classes)
    }
    named = len(summaries) > 1
    heads = [*(["run"] if named else []), "device", *(head for head, _ in shown.values())]
    columns = [texts_of([of.get(key) for *_, of in classes], form) for key, (_, form) in shown.items()]
    rows = [
        [*([label] if named else []), name, *cells]
        for (label, name, _), cells in zip(classes, zip(*columns, strict=True), strict=True)
    ]
    return heads, rows
