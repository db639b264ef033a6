"""Structured pruning: whole channels, neurons and attention heads, and the smaller model that is left.

`groups` finds what belongs together: a channel is an output of one layer, an input of the next, and a value
of the batch norm between them. `units` scores such groups by any criterion and chooses which stay; the result
is ordinary `Masks`, so all that works under masks works here. `smaller` makes the small dense model of them.
"""

from __future__ import annotations

from fedprune.sparsity.structure.groups import Group, Part, channel_groups, described, masks_of
from fedprune.sparsity.structure.smaller import shrink
from fedprune.sparsity.structure.units import REDUCTIONS, Reduction, prune_units, require

__all__ = [
    "REDUCTIONS",
    "Group",
    "Part",
    "Reduction",
    "channel_groups",
    "described",
    "masks_of",
    "prune_units",
    "require",
    "shrink",
]
