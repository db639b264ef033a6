"""What a training message may ask a client to report besides, and how the report travels.

Growth: the pruned weights of some layers with the largest gradients, as positions and values, eight
bytes an entry. Layers are named by their place among the masks, which both sides hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord
from torch import Tensor

from fedprune.errors import WireError
from fedprune.messages import whole
from fedprune.sparsity.growth import check_report
from fedprune.sparsity.masks import Masks
from fedprune.wire.values import from_array, to_array

Report = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class GrowthRequest:
    """Which layers may grow how many weights, judged on how many batches."""

    counts: Mapping[str, int]
    batches: int

    def config(self, masks: Masks) -> dict[str, int | list[int]]:
        """Return the request as config values."""
        places = {name: place for place, name in enumerate(sorted(masks))}
        return {
            "growth-layers": [places[name] for name in self.counts],
            "growth-counts": list(self.counts.values()),
            "growth-batches": self.batches,
        }

    @classmethod
    def of(cls, config: ConfigRecord, masks: Masks) -> GrowthRequest | None:
        """Read a request from a message's config; None where there is none."""
        if "growth-layers" not in config:
            return None
        names = sorted(masks)
        layers, counts = _whole_numbers(config, "growth-layers"), _whole_numbers(config, "growth-counts")
        if len(layers) != len(counts) or any(place >= len(names) for place in layers):
            raise WireError(f"growth of layers {layers} by {counts} does not fit {len(names)} masks")
        asked = {names[place]: count for place, count in zip(layers, counts, strict=True)}
        return cls(asked, whole(config, "growth-batches", least=1))


def _whole_numbers(config: ConfigRecord, key: str) -> list[int]:
    values = config.get(key)
    if not isinstance(values, list) or not all(isinstance(n, int) and n >= 0 for n in values):
        raise WireError(f"{key!r} is {values!r}, expected a list of whole numbers")
    return [int(n) for n in values]


def growth_record(found: Sequence[tuple[Tensor, Tensor]]) -> ArrayRecord:
    """Return (positions, values) of each layer as they travel: uint32 and float32, layer after layer."""
    indices = np.concatenate([positions.cpu().numpy() for positions, _ in found]).astype("<u4")
    values = np.concatenate([values.cpu().float().numpy() for _, values in found])
    return ArrayRecord({"indices": to_array(indices), "values": to_array(values)})


def read_growth(record: ArrayRecord | None, request: GrowthRequest, masks: Masks) -> Report:
    """Return a client's report by layer.

    Raises
    ------
    WireError
        If it is missing, or not what was asked for.
    """
    if record is None or set(record) != {"indices", "values"}:
        raise WireError("the reply has no growth report")
    expected = {
        name: min(count, masks[name].numel() - masks.kept[name]) for name, count in request.counts.items()
    }
    total = sum(expected.values())
    indices = torch.from_numpy(from_array("growth", record["indices"], "<u4", (total,)).astype(np.int64))
    values = torch.from_numpy(from_array("growth", record["values"], "<f4", (total,)).copy())
    report, start = {}, 0
    for name, count in expected.items():
        part = indices[start : start + count], values[start : start + count]
        check_report(name, *part, masks[name])
        report[name] = part
        start += count
    return report
