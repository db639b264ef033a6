"""Choosing weights by what they bring for what they cost: the most importance per second of a round.

Pure PyTorch. The caller measures importance and times.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedprune.sparsity.distributions import total_kept
from fedprune.sparsity.masks import Masks


def best_ratio(
    importance: Mapping[str, Tensor],
    seconds: Mapping[str, float],
    *,
    fixed_seconds: float,
    required: Masks,
    density: float,
) -> Masks:
    """Return the masks that maximise sum(importance) / (fixed + sum(seconds)) over what they keep.

    Weights come in the order of importance / seconds, for as long as each is worth at least as much
    as all before it together, which gives the maximum (Jiang et al., TNNLS 2022, algorithm 2), or
    until the density is reached. Of equal ones the first, by layers and positions, come first.

    Parameters
    ----------
    importance : Mapping[str, Tensor]
        Floating point, at least 0, of the weights' shapes.
    seconds : Mapping[str, float]
        Time of one kept weight of each layer, above 0.
    fixed_seconds : float
        Time of all else, above 0.
    required : Masks
        What is kept in any case.
    density : float
        Kept share, at most, in (0, 1].

    Raises
    ------
    ValueError
        If ``required`` alone is above the density.
    """
    names = list(required)
    shapes = {name: required[name].shape for name in names}
    gains = torch.cat([importance[name].reshape(-1).double() for name in names])
    times = torch.cat(
        [torch.full((shapes[name].numel(),), seconds[name], dtype=torch.float64) for name in names]
    )
    first = torch.cat([required[name].reshape(-1) for name in names])
    least, most = int(first.sum()), total_kept(shapes, density)
    if least > most:
        raise ValueError(f"{least} weights are required, at most {most} may be kept")
    worth = gains / times
    order = worth.masked_fill(first, torch.inf).argsort(descending=True, stable=True)
    gain, time = gains[order].cumsum(0), fixed_seconds + times[order].cumsum(0)
    ratio_before = torch.cat([torch.zeros(1, dtype=torch.float64), gain / time])[:-1]
    # The ratio rises with every weight worth more than it; after the first that is not, none is.
    poor = (worth[order] < ratio_before)[least:].nonzero()
    enough = least + int(poor[0]) if len(poor) else len(order)
    kept = torch.zeros(len(order), dtype=torch.bool)
    kept[order[: min(enough, most)]] = True
    parts = torch.split(kept, [shape.numel() for shape in shapes.values()])
    return Masks({name: part.reshape(shapes[name]) for name, part in zip(names, parts, strict=True)})
