"""How messages name values and suggest the nearest of the known names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" with the nearest known names, or "" where none is near."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=3)
    return f"; did you mean {' or '.join(repr(by_lower[match]) for match in near)}?" if near else ""


def show(value: object) -> str:
    """Return a value as a person wrote it in YAML, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "an empty value", True: "true", False: "false"}[value]
    if isinstance(value, dict) and all(isinstance(inner, str | int | float) for inner in value.values()):
        text = "{" + ", ".join(f"{key}: {inner}" for key, inner in value.items()) + "}"
    else:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
