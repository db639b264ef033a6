"""Progressive pruning's schedule: which layers an adjustment looks at, and how many weights it swaps.

The options and arithmetic that FedTiny (Huang et al., ICDCS 2023) and FedMef (Huang et al., CVPR 2024)
share. What clients report and how masks are swapped is in `fedprune.protocol.reports` and
`fedprune.sparsity.growth`.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, Field
from torch import nn

from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import blocks


class Adjustments(BaseModel):
    """When masks move, in which layers and how far; options of a strategy."""

    adjust_every: int = Field(10, ge=1, description="Rounds from one adjustment to the next.")
    stop_adjusting_at: int = Field(100, ge=1, description="Last round that may adjust.")
    granularity: Literal["layer", "block", "model"] = Field(
        "block", description="What one adjustment looks at: a layer, a stage of the model, or all of it."
    )
    order: Literal["backward", "forward"] = Field(
        "backward", description="From the output to the input, or the other way."
    )
    swap_fraction: float = Field(0.15, gt=0, le=0.5, description="Half the share swapped at the start.")
    growth_batches: int = Field(1, ge=1, description="Batches on which a client judges what should grow.")

    def swap_counts(self, server_round: int, module: nn.Module, masks: Masks) -> dict[str, int]:
        """Return how many weights of which layers are swapped after a round; {} where none are.

        Of layer l with n_l kept weights, in a round t with an adjustment,
        floor(swap_fraction * (1 + cos(pi * t / stop_adjusting_at)) * n_l), never more than are kept or
        than are pruned.
        """
        if server_round % self.adjust_every or server_round > self.stop_adjusting_at:
            return {}
        groups = self.groups(module, list(masks))
        group = groups[(server_round // self.adjust_every - 1) % len(groups)]
        share = self.swap_fraction * (1 + math.cos(math.pi * server_round / self.stop_adjusting_at))
        kept = masks.kept
        counts = {
            name: min(math.floor(share * kept[name]), kept[name], masks[name].numel() - kept[name])
            for name in group
        }
        return {name: count for name, count in counts.items() if count > 0}

    def groups(self, module: nn.Module, names: list[str]) -> list[list[str]]:
        """Return the groups of layers that adjustments look at, in their order."""
        groups = {
            "layer": [[name] for name in names],
            "block": blocks(module, names),
            "model": [names],
        }[self.granularity]
        return groups[::-1] if self.order == "backward" else groups
