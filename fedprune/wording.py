"""How messages name values and errors, and suggest the nearest of the known names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_FEW = 6  #: Names that a message lists.


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" with the nearest known names, or "" where none is near."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=3)
    return f"; did you mean {' or '.join(repr(by_lower[match]) for match in near)}?" if near else ""


def known_here(name: str, known: Iterable[str], all_of_them: str) -> str:
    """Return what to say of a name that is not known: the nearest ones, a few, and where all of them stand.

    Parameters
    ----------
    name : str
        What was given.
    known : Iterable[str]
        What could have been.
    all_of_them : str
        Where they are listed, such as "`fedprune list`"; "" where that is nowhere else: then they are here,
        unless one is near.
    """
    names = list(known)
    if near := did_you_mean(name, names):
        return f"{near} ({all_of_them} has all {len(names)})" if all_of_them else near
    if len(names) <= _FEW or not all_of_them:
        return f" (known here: {', '.join(names) or 'none'})"
    return f" (known here: {', '.join(names[:_FEW])} and {len(names) - _FEW} more: see {all_of_them})"


def show(value: object) -> str:
    """Return a value as a person wrote it in YAML, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "an empty value", True: "true", False: "false"}[value]
    if isinstance(value, dict) and all(isinstance(inner, str | int | float) for inner in value.values()):
        text = "{" + ", ".join(f"{key}: {inner}" for key, inner in value.items()) + "}"
    else:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def one_line(error: BaseException) -> str:
    """Return an exception as one line: its type and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
