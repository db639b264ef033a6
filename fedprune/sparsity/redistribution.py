"""Moving weights between layers: the smallest of each layer go, and grow where weights are largest.

Pure PyTorch, for one model. How often masks move so, and what comes of it, is for a training algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedprune.sparsity.distributions import kept_counts, rescale
from fedprune.sparsity.growth import drop_smallest
from fedprune.sparsity.masks import Masks

_LEAST = 1e-12  # A layer whose weights are all 0 still has a place in proportions.


def redistribute(kept: Mapping[str, Tensor], masks: Masks, rate: float, generator: torch.Generator) -> Masks:
    """Return masks with a share of each layer dropped and as many weights grown over all layers.

    Of every layer the ``ceil(rate * n)`` of its n kept weights go that are smallest. As many grow in all: a
    layer's part of them is proportional to the mean magnitude of its weights before the drop, at least one
    and at most what it has free, and their places are random. As in the sparse learning of FLASH
    (Babakniya et al., TMLR 2023).

    Parameters
    ----------
    kept : Mapping[str, Tensor]
        The kept weights by name, of shape (kept,), in row-major order.
    masks : Masks
        What is kept.
    rate : float
        Share of each layer that is dropped, in (0, 1].
    generator : torch.Generator
        Draws the places.

    Returns
    -------
    Masks
        As many weights in all as before.
    """
    left, removed = {}, 0
    for name, mask in masks.items():
        count = math.ceil(rate * masks.kept[name])
        left[name] = drop_smallest(kept[name], mask, count)
        removed += count
    free = {name: (int((~mask).sum()),) for name, mask in left.items()}
    sizes = {name: max(float(kept[name].abs().mean()), _LEAST) for name in masks}
    share = removed / sum(number for (number,) in free.values())
    grown = kept_counts(
        rescale({name: sizes[name] / free[name][0] for name in free}, free, share), free, share
    )
    for name, mask in left.items():
        places = (~mask).reshape(-1).nonzero().reshape(-1)
        order = torch.randperm(len(places), generator=generator)[: grown[name]]
        mask.view(-1)[places[order]] = True
    return Masks(left)
