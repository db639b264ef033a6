"""What a training message may ask a client to report besides, and how the report travels.

Growth: the pruned weights of some layers with the largest gradients, as positions and values, eight
bytes an entry, or as positions alone. Layers are named by their place among the masks, which both sides
hold. Importance: a number for every weight that has a mask, pruned or not, as float32: most are far below
what float16 can hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from torch import Tensor

from fedprune.errors import WireError
from fedprune.protocol.messages import text, whole
from fedprune.sparsity.growth import IMPORTANCE, check_report
from fedprune.sparsity.masks import Masks
from fedprune.wire.values import from_array, to_array

Report = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class GrowthRequest:
    """Which layers may grow how many weights, judged on how many batches.

    Without ``values`` clients report positions alone, and each entry counts as 1.
    """

    counts: Mapping[str, int]
    batches: int
    values: bool = True

    def config(self, masks: Masks) -> dict[str, bool | int | list[int]]:
        """Return the request as config values."""
        told: dict[str, bool | int | list[int]] = {"growth-batches": self.batches}
        told |= layer_counts("growth", self.counts, masks)
        if not self.values:
            told["growth-values"] = False
        return told

    @classmethod
    def of(cls, config: ConfigRecord, masks: Masks) -> GrowthRequest | None:
        """Read a request from a message's config; None where there is none."""
        asked = read_layer_counts("growth", config, masks)
        if asked is None:
            return None
        values = bool(config.get("growth-values", True))
        return cls(asked, whole(config, "growth-batches", least=1), values)


@dataclass(frozen=True)
class ImportanceRequest:
    """The importance of every weight that has a mask, by a measure of `IMPORTANCE`, on how many batches."""

    batches: int
    measure: str = "squared-gradient"

    def config(self) -> dict[str, str | int]:
        """Return the request as config values."""
        return {"importance": self.measure, "importance-batches": self.batches}

    @classmethod
    def of(cls, config: ConfigRecord) -> ImportanceRequest | None:
        """Read a request from a message's config; None where there is none."""
        if "importance" not in config:
            return None
        measure = text(config, "importance")
        if measure not in IMPORTANCE:
            raise WireError(f"'importance' is {measure!r}, expected one of {', '.join(IMPORTANCE)}")
        return cls(whole(config, "importance-batches", least=1), measure)


def layer_counts(what: str, counts: Mapping[str, int], masks: Masks) -> dict[str, list[int]]:
    """Return numbers of weights by layer as config values: places among the masks, and counts."""
    places = {name: place for place, name in enumerate(sorted(masks))}
    return {f"{what}-layers": [places[name] for name in counts], f"{what}-counts": list(counts.values())}


def read_layer_counts(what: str, config: ConfigRecord, masks: Masks) -> dict[str, int] | None:
    """Read numbers of weights by layer from a message's config; None where there are none."""
    if f"{what}-layers" not in config:
        return None
    names = sorted(masks)
    layers, counts = whole_numbers(config, f"{what}-layers"), whole_numbers(config, f"{what}-counts")
    if len(layers) != len(counts) or any(place >= len(names) for place in layers):
        raise WireError(f"{what} of layers {layers} by {counts} does not fit {len(names)} masks")
    return {names[place]: count for place, count in zip(layers, counts, strict=True)}


def whole_numbers(config: ConfigRecord, key: str) -> list[int]:
    """Return a list of whole numbers from a message's config."""
    values = config.get(key)
    if not isinstance(values, list) or not all(isinstance(n, int) and n >= 0 for n in values):
        raise WireError(f"{key!r} is {values!r}, expected a list of whole numbers")
    return [int(n) for n in values]


def growth_record(found: Sequence[tuple[Tensor, Tensor]], with_values: bool = True) -> ArrayRecord:
    """Return (positions, values) of each layer as they travel: uint32 and float32, layer after layer."""
    indices = np.concatenate([positions.cpu().numpy() for positions, _ in found]).astype("<u4")
    if not with_values:
        return ArrayRecord({"indices": to_array(indices)})
    values = np.concatenate([values.cpu().float().numpy() for _, values in found])
    return ArrayRecord({"indices": to_array(indices), "values": to_array(values)})


def read_growth(record: ArrayRecord | None, request: GrowthRequest, masks: Masks) -> Report:
    """Return a client's report by layer.

    Raises
    ------
    WireError
        If it is missing, or not what was asked for.
    """
    if record is None or set(record) != ({"indices", "values"} if request.values else {"indices"}):
        raise WireError("the reply has no growth report")
    expected = {
        name: min(count, masks[name].numel() - masks.kept[name]) for name, count in request.counts.items()
    }
    total = sum(expected.values())
    indices = torch.from_numpy(from_array("growth", record["indices"], "<u4", (total,)).astype(np.int64))
    values = torch.ones(total)
    if request.values:
        values = torch.from_numpy(from_array("growth", record["values"], "<f4", (total,)).copy())
    report, start = {}, 0
    for name, count in expected.items():
        part = indices[start : start + count], values[start : start + count]
        check_report(name, *part, masks[name])
        report[name] = part
        start += count
    return report


def importance_record(found: Mapping[str, Tensor]) -> ArrayRecord:
    """Return every layer's importance as it travels: float32, layer after layer in the order of names."""
    parts = [found[name].cpu().float().reshape(-1).numpy() for name in sorted(found)]
    return ArrayRecord({"values": to_array(np.concatenate(parts))})


def read_importance(record: ArrayRecord | None, masks: Masks) -> dict[str, Tensor]:
    """Return a client's importance by layer, float32 of the masks' shapes.

    Raises
    ------
    WireError
        If it is missing, of another length, negative or not finite.
    """
    if record is None or set(record) != {"values"}:
        raise WireError("the reply has no importance")
    values = torch.from_numpy(from_array("importance", record["values"], "<f4", (masks.total,)).copy())
    if not (torch.isfinite(values).all() and (values >= 0).all()):
        raise WireError("importance has a value that is negative or not finite")
    names = sorted(masks)
    parts = torch.split(values, [masks[name].numel() for name in names])
    return {name: part.reshape(masks[name].shape) for name, part in zip(names, parts, strict=True)}
