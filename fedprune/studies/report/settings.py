"""The settings of runs as a difference to a base: dotted keys, what the base has, what the run has."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedprune.studies.outcomes import Outcome
from fedprune.studies.statistics import Group

NOT_SET = "not set"
#: What tells runs apart and changes no method: shown beside the settings, not among them.
_IDENTITY = ("name", "seed")


class Difference(NamedTuple):
    """One setting that a run has otherwise than the base: its dotted key, and both values in words."""

    key: str
    base: str
    run: str


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a scenario's settings by their dotted keys; lists stay whole.

    Examples
    --------
    >>> flat({"rounds": 3, "model": {"name": "cnn"}})
    {'rounds': 3, 'model.name': 'cnn'}
    """
    settings: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            settings |= flat(value, f"{prefix}{key}.")
        else:
            settings[f"{prefix}{key}"] = value
    return settings


def value_text(value: Any) -> str:
    """Return a setting's value as it could stand in a scenario; of a mapping with a name, the name.

    Examples
    --------
    >>> value_text(0.05), value_text(None), value_text(["first", "last"])
    ('0.05', 'null', '["first", "last"]')
    """
    if isinstance(value, Mapping) and "name" in value:
        value = value["name"]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def differences(document: Mapping[str, Any], base: Mapping[str, Any]) -> list[Difference]:
    """Return what a scenario has otherwise than its base, in the order of the scenario.

    What the base has and another strategy (or model, or optimiser: whatever has a name) has no option for
    is left out.
    """
    before, after = flat(base), flat(document)
    keys = [*after, *(key for key in before if key not in after)]
    renamed = tuple(
        key.removesuffix("name")
        for key in keys
        if key.endswith(".name") and before.get(key) != after.get(key)
    )
    return [
        Difference(key, _text(before, key), _text(after, key))
        for key in keys
        if key not in _IDENTITY
        and not (key in before and key in after and _same(before[key], after[key]))
        and (key in after or not key.startswith(renamed))
    ]


def of_group(group: Group, base: Mapping[str, Any]) -> list[tuple[str, list[Difference]]]:
    """Return (which seeds, their differences): one entry where all runs of a group have the same."""
    found: list[tuple[list[Outcome], list[Difference]]] = []
    for outcome in group.outcomes:
        own = differences(outcome.document, base)
        same = next((outcomes for outcomes, known in found if known == own), None)
        if same is None:
            found.append(([outcome], own))
        else:
            same.append(outcome)
    return [(seeds_text(outcomes), own) for outcomes, own in found]


def unequal(outcomes: Sequence[Outcome], free: Collection[str]) -> list[str]:
    """Return the settings that are not the same in all outcomes, but for those that may differ.

    ``free`` has dotted keys; what lies below one of them may differ too.
    """
    settings = [flat(outcome.document) for outcome in outcomes if outcome.document]
    keys = dict.fromkeys(key for each in settings for key in each)
    return [
        key
        for key in keys
        if not any(key == part or key.startswith(f"{part}.") for part in free)
        and any(each.get(key) != settings[0].get(key) for each in settings)
    ]


def seeds_text(outcomes: Iterable[Outcome]) -> str:
    """Return the seeds of some outcomes in words.

    Examples
    --------
    >>> seeds_text([Outcome("FedAvg", {}, 3, None)])
    'seed 3'
    """
    numbers = [str(outcome.seed) for outcome in outcomes]
    return f"seed {numbers[0]}" if len(numbers) == 1 else f"seeds {', '.join(numbers)}"


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are the same setting; to Python False is 0, and True is 1."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _text(settings: Mapping[str, Any], key: str) -> str:
    return value_text(settings[key]) if key in settings else NOT_SET
