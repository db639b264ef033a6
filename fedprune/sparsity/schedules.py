"""Schedules: how a number, such as a learning rate or a density, changes over the rounds of a run.

A schedule maps progress (0 at its beginning, 1 at its end) and two values to the value now. It
does not know rounds: the caller decides where it begins and ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float, float, float], float]
"""``schedule(progress, start, end)``: the value at ``progress``. Progress outside [0, 1] counts as
the nearer end, so that a schedule holds its first value before it begins and its last one after."""


def constant(progress: float, start: float, end: float) -> float:
    """Return the start value throughout."""
    return start


def linear(progress: float, start: float, end: float) -> float:
    """Go from start to end in a straight line."""
    return end + (start - end) * (1 - _clamped(progress))


def cosine(progress: float, start: float, end: float) -> float:
    """Go from start to end along half a cosine wave: slow, fast, slow (Loshchilov and Hutter, ICLR 2017)."""
    return end + (start - end) * (1 + math.cos(math.pi * _clamped(progress))) / 2


def cubic(progress: float, start: float, end: float) -> float:
    """Go from start to end fast at first, then ever slower (Zhu and Gupta 2017, equation 1)."""
    return end + (start - end) * (1 - _clamped(progress)) ** 3


def _clamped(progress: float) -> float:
    return min(max(progress, 0.0), 1.0)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "cosine": cosine,
    "cubic": cubic,
    "linear": linear,
}
