"""How a group is drawn, the same in every plot: its variant's colour, its grid point's marker and dash.

Nothing relies on colour alone. The colours are those of `fedprune.results.figures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedprune.results.figures import COLOURS
from fedprune.studies.report.settings import value_text
from fedprune.studies.statistics import Group

#: Markers and dashes by the names that plotly has for them.
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Look:
    """A group with its number in the report, its grid values in words, and what draws it."""

    number: int
    group: Group
    values: dict[str, str]
    colour: str
    symbol: str
    dash: str

    @property
    def name(self) -> str:
        """The group's name for readers."""
        return self.group.name


def looks_of(groups: Sequence[Group]) -> list[Look]:
    """Return the looks of some groups, in their order.

    Where the grid has one point, a variant has a marker and a dash of its own, besides its colour.
    """
    variants = list(dict.fromkeys(group.variant for group in groups))
    values = [{key: value_text(value) for key, value in group.point.items()} for group in groups]
    points = [each for place, each in enumerate(values) if each not in values[:place]]
    looks = []
    for number, (group, point) in enumerate(zip(groups, values, strict=True)):
        variant = variants.index(group.variant)
        # After seven variants colours come again: markers go on from there, so that no two look the same.
        again = variant // len(COLOURS)
        place = points.index(point) + again * len(points) if len(points) > 1 else variant
        looks.append(
            Look(
                number,
                group,
                point,
                COLOURS[variant % len(COLOURS)],
                SYMBOLS[place % len(SYMBOLS)],
                DASHES[place % len(DASHES)],
            )
        )
    return looks


def grid_of(looks: Sequence[Look]) -> dict[str, list[str]]:
    """Return the grid's keys that some groups have, each with all its values, in the order they come."""
    grid: dict[str, dict[str, None]] = {}
    for look in looks:
        for key, value in look.values.items():
            grid.setdefault(key, {})[value] = None
    return {key: list(values) for key, values in grid.items()}
