"""Distributions: how the weights that a model keeps are shared out among its layers.

A distribution gives a density per layer; `kept_counts` makes whole numbers of weights of them.
Which weights of a layer are kept is not decided here, but by the scores of a criterion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedprune.errors import UserError
from fedprune.sparsity.masks import highest

Shapes = Mapping[str, tuple[int, ...]]
"""Layer name -> shape of its weight; a `torch.Size` is such a tuple."""


class Distribution(Protocol):
    """A function of the layers' shapes, a density and the weights' scores to a density per layer.

    Most distributions need the shapes alone. The scores are there because one threshold over the
    whole model (`global_`) is a distribution too: it differs only in that the scores decide how
    much each layer keeps. So every distribution has one signature and one kind of result, and what
    works on densities per layer (a perturbation, say) works on all of them.

    The densities must lie in (0, 1] and keep `total_kept` weights over all layers, to within one
    weight a layer; `rescale` makes such densities of any proportions.
    """

    def __call__(self, shapes: Shapes, density: float, scores: Mapping[str, Tensor], /) -> dict[str, float]:
        """Return the density of every layer in ``shapes``."""


def uniform(shapes: Shapes, density: float, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Give every layer the same density, except where that is less than one weight."""
    return rescale(dict.fromkeys(shapes, 1.0), shapes, density)


def erk(shapes: Shapes, density: float, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Give small layers more: density in proportion to sum / product of the dimensions.

    Erdős-Rényi-Kernel (Evci et al., ICML 2020, section 3): a layer that would exceed density 1
    becomes dense, and the others are scaled to make up for it.
    """
    return rescale({name: sum(shape) / math.prod(shape) for name, shape in shapes.items()}, shapes, density)


def global_(shapes: Shapes, density: float, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Keep the highest scores of the whole model, and at least the highest one of each layer."""
    protected = {name: scores[name].detach().cpu().reshape(-1).clone() for name in shapes}
    for score in protected.values():
        score[score.argmax()] = torch.inf
    sizes = [score.numel() for score in protected.values()]
    kept = highest(torch.cat(list(protected.values())), total_kept(shapes, density))
    return {
        name: int(mask.sum()) / mask.numel()
        for name, mask in zip(shapes, torch.split(kept, sizes), strict=True)
    }


DISTRIBUTIONS: dict[str, Distribution] = {"erk": erk, "global": global_, "uniform": uniform}


def total_kept(shapes: Shapes, density: float) -> int:
    """Return the number of weights that a model keeps: ``round(density * N)``, at least one a layer.

    Raises UserError for a density outside (0, 1].
    """
    if not 0 < density <= 1:
        raise UserError(f"density is {density}, expected a number above 0 and at most 1")
    return max(round(density * sum(_sizes(shapes))), len(shapes))


def rescale(proportions: Mapping[str, float], shapes: Shapes, density: float) -> dict[str, float]:
    """Return densities in the given proportions that keep `total_kept` weights over all layers.

    All proportions are multiplied by one factor. A layer that would exceed density 1 becomes
    dense, one that would keep less than one weight keeps one, and the factor makes up for both.

    Parameters
    ----------
    proportions
        Layer name -> a positive number; only their ratios count.
    shapes
        Layer name -> shape, the same names.
    density
        Share of all weights to keep, in (0, 1].

    Raises
    ------
    ValueError
        If a proportion is not positive and finite.
    UserError
        If the density is outside (0, 1].
    """
    total = total_kept(shapes, density)
    ratios = np.array([proportions[name] for name in shapes], dtype=np.float64)
    if not (np.isfinite(ratios).all() and (ratios > 0).all()):
        raise ValueError(f"proportions must be positive and finite, not {dict(proportions)}")
    sizes = np.array(_sizes(shapes), dtype=np.float64)
    lowest = 1 / sizes
    # What is kept grows with the factor in straight pieces that meet where a layer reaches a bound,
    # so the factor for a total is found by interpolating between those points.
    corners = np.sort(np.concatenate([lowest / ratios, 1 / ratios]))
    kept = [float(sizes @ np.clip(corner * ratios, lowest, 1)) for corner in corners]
    factor = np.interp(total, kept, corners)
    return dict(zip(shapes, np.clip(factor * ratios, lowest, 1).tolist(), strict=True))


def proportional(proportions: Mapping[str, float]) -> Distribution:
    """Return a distribution with these proportions between the layers' densities; see `rescale`."""

    def distribution(shapes: Shapes, density: float, scores: Mapping[str, Tensor]) -> dict[str, float]:
        return rescale(proportions, shapes, density)

    return distribution


def kept_counts(densities: Mapping[str, float], shapes: Shapes, density: float) -> dict[str, int]:
    """Return the number of weights that each layer keeps: `total_kept` in all, whole numbers.

    Densities that keep that total give counts within one weight of density times size: fractions
    are cut off, and what that leaves over goes to the layers with the largest fractions, the first
    of equal ones first. Densities that miss it by up to one weight a layer are rescaled before.

    Raises
    ------
    UserError
        If a layer's density is missing or outside (0, 1], or if the densities together miss the
        total by more than one weight a layer.
    """
    total = total_kept(shapes, density)
    if densities.keys() != shapes.keys():
        raise UserError(f"the distribution gave densities for {sorted(densities)}, expected {sorted(shapes)}")
    for name, share in densities.items():
        if not 0 < share <= 1:
            raise UserError(f"the distribution gave {name!r} density {share}, expected one in (0, 1]")
    sizes = dict(zip(shapes, _sizes(shapes), strict=True))
    asked = sum(densities[name] * size for name, size in sizes.items())
    if abs(asked - total) > len(shapes):
        raise UserError(f"the distribution keeps {asked:.6g} weights, expected {total} (density {density})")
    fitting = rescale(densities, shapes, density)
    exact = {name: fitting[name] * size for name, size in sizes.items()}
    counts = {name: math.floor(share) for name, share in exact.items()}
    by_fraction = sorted(counts, key=lambda name: counts[name] - exact[name])
    for name in by_fraction[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _sizes(shapes: Shapes) -> list[int]:
    return [math.prod(shape) for shape in shapes.values()]
