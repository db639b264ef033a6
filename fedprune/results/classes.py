"""A run by class of device: what took part, what it reached and what it cost, as rows for people.

The numbers are those of ``summary.json`` under ``classes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.results.measures import UNKNOWN, format_share
from fedprune.results.records import Record
from fedprune.units import format_bytes, format_joules, format_seconds

_COLUMNS: dict[str, tuple[str, Any]] = {
    "clients": ("clients", str),
    "participation": ("took part", format_share),
    "excluded_share": ("excluded", format_share),
    "offline_share": ("offline", format_share),
    "late_share": ("late", format_share),
    "failed": ("failed", str),
    "accuracy": ("accuracy", format_share),
    "bytes_up": ("up", format_bytes),
    "bytes_down": ("down", format_bytes),
    "peak_memory_bytes": ("peak memory", format_bytes),
    "device_seconds": ("device time", format_seconds),
    "joules": ("energy", format_joules),
}


def class_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the heads and rows of a table with a line a class; no rows where there is only one class."""
    classes: Mapping[str, Record] = summary.get("classes") or {}
    if len(classes) < 2:
        return [], []
    shown = {
        key: column
        for key, column in _COLUMNS.items()
        if any(record.get(key) is not None for record in classes.values())
    }
    heads = ["device", *(head for head, _ in shown.values())]
    rows = [
        [name, *(UNKNOWN if record[key] is None else form(record[key]) for key, (_, form) in shown.items())]
        for name, record in classes.items()
    ]
    return heads, rows
