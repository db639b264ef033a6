"""What is known of many clients, as columns: how a checkpoint holds it in a few bytes a client.

A table has a key and a value for each client. Values that clients share, a mask for instance, are
in its columns once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch


def to_columns(table: Mapping[int, Hashable]) -> dict[str, Any]:
    """Return a table as its keys, its different values, and the place of each key's value among these.

    Keys and places are int64 (N,).
    """
    places: dict[Hashable, int] = {}
    which = [places.setdefault(value, len(places)) for value in table.values()]
    return {
        "keys": torch.tensor(list(table), dtype=torch.int64),
        "values": list(places),
        "which": torch.tensor(which, dtype=torch.int64),
    }


def from_columns(columns: Mapping[str, Any]) -> dict[int, Any]:
    """Return the table that ``to_columns`` was given, in the same order."""
    values, keys, which = columns["values"], columns["keys"].tolist(), columns["which"].tolist()
    return {key: values[place] for key, place in zip(keys, which, strict=True)}
