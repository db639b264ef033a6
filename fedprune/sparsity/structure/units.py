"""Choosing channels: by any criterion, whose scores are taken together, and any distribution."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fedprune.errors import UserError
from fedprune.sparsity.criteria import Batches, Criterion, default_iterations, needs_data, scores_scales
from fedprune.sparsity.distributions import Distribution, kept_counts
from fedprune.sparsity.layers import weights
from fedprune.sparsity.loss import Loss, not_said
from fedprune.sparsity.masks import Masks, highest
from fedprune.sparsity.structure.groups import Group, masks_of

Reduction = Literal["sum", "mean", "norm"]
"""How the scores of a channel's weights become its own: sum, mean, or the root of the sum of squares."""

REDUCTIONS: tuple[str, ...] = get_args(Reduction)

_HALVINGS = 24  # Of the interval of densities, after which the numbers of channels no longer change.


def prune_units(
    module: nn.Module,
    groups: Sequence[Group],
    *,
    criterion: Criterion,
    distribution: Distribution,
    density: float,
    example: Tensor,
    reduction: Reduction = "sum",
    iterations: int | None = None,
    batches: Batches = (),
    loss: Loss = not_said,
    generator: torch.Generator | None = None,
) -> Masks:
    """Return masks that keep whole units: at most ``density`` of all tensors that these are part of.

    A unit's score is that of all its weights, in whatever layer: with the magnitude, the L1 norm of its group
    (``sum``) or the L2 norm (``norm``). A distribution says which share of its units each group keeps: it is
    given the shape of the weight of which they are the outputs, each entry with its unit's score. That share
    is made as large as the density allows, and each group keeps one unit at least. With n iterations the
    density at step i is ``density ** (i / n)``, as in `fedprune.sparsity.pruning.prune`.

    Parameters
    ----------
    module
        The model; it is not changed.
    groups
        Of `channel_groups`.
    criterion, distribution, density, example, iterations, batches, loss, generator
        As `fedprune.sparsity.pruning.prune` has them.
    reduction
        How a unit's score is made of its weights' scores.

    Raises
    ------
    UserError
        If the density is outside (0, 1] or less than one unit a group leaves, if the criterion needs data and
        there is none, or scores what a group does not have.
    """
    if not 0 < density <= 1:
        raise UserError(f"density is {density}, expected a number above 0 and at most 1")
    if needs_data(criterion) and not batches:
        raise UserError(
            f"the criterion {getattr(criterion, '__name__', criterion)!r} needs data on the server: "
            "set data.server_fraction above 0, or take a criterion that needs none"
        )
    steps = default_iterations(criterion) if iterations is None else iterations
    if steps < 1:
        raise ValueError(f"iterations is {steps}, expected at least 1")
    network = copy.deepcopy(module)
    names = _scored(network, groups, criterion)
    size = _Size(network, groups)
    require(density, groups, network)
    kept = {group: torch.ones(group.units, dtype=torch.bool) for group in groups}
    masks = masks_of(kept, network)
    for step in range(1, steps + 1):
        found = criterion(network, names, example=example, batches=batches, loss=loss, generator=generator)
        scores = {
            group: _score(group, found, reduction).masked_fill(~kept[group], -torch.inf) for group in groups
        }
        counts = _counts(network, scores, kept, distribution, density ** (step / steps), size)
        kept = {group: highest(scores[group], counts[group], group.name) for group in groups}
        masks = masks_of(kept, network)
        for name, tensor in network.state_dict(keep_vars=True).items():
            if name in masks:
                tensor.detach().masked_fill_(~masks[name].to(tensor.device), 0)
    return masks


def require(density: float, groups: Sequence[Group], module: nn.Module) -> None:
    """Raise a ``UserError`` unless one unit of each group is within a density."""
    least = _Size(module, groups).density(dict.fromkeys(groups, 1))
    if least > density:
        raise UserError(f"density {density:g} is less than one channel in each place leaves: {least:.3g}")


def _scored(module: nn.Module, groups: Sequence[Group], criterion: Criterion) -> list[str]:
    """Return the names of what a criterion is to score: weights, or the scales of batch norm."""
    within = {part.tensor for group in groups for part in group.parts}
    if not scores_scales(criterion):
        return [
            weight.name for weight in weights(module) if weight.why_dense is None and weight.name in within
        ]
    scales = [
        name
        for name, _ in module.named_parameters()
        if name in within
        and isinstance(module.get_submodule(name.rpartition(".")[0]), _BATCH_NORM)
        and name.endswith("weight")
    ]
    for group in groups:
        if not any(part.tensor in scales for part in group.parts):
            raise UserError(f"the channels of {group.name} have no batch norm whose scale could score them")
    return scales


_BATCH_NORM = (nn.modules.batchnorm._BatchNorm,)


def _score(group: Group, scores: Mapping[str, Tensor], reduction: Reduction) -> Tensor:
    """Return a score for each unit, float64 (units,)."""
    total, count = torch.zeros(group.units, dtype=torch.float64), 0
    for part in group.parts:
        if part.tensor not in scores:
            continue
        score = scores[part.tensor].detach().cpu().double().movedim(part.dim, 0)
        score = score.reshape(len(score), -1)
        if reduction == "norm":
            score = score.square()
        of_unit = score.sum(dim=1)[part.positions].sum(dim=1)
        total += of_unit
        count += part.positions.shape[1] * score.shape[1]
    if reduction == "norm":
        return total.sqrt()
    return total / count if reduction == "mean" else total


class _Size:
    """How many elements are left of all tensors of the groups, by how many units each group keeps."""

    def __init__(self, module: nn.Module, groups: Sequence[Group]) -> None:
        shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
        self._removed: dict[str, dict[int, list[tuple[Group, int]]]] = {}
        for group in groups:
            for part in group.parts:
                self._removed.setdefault(part.tensor, {}).setdefault(part.dim, []).append(
                    (group, part.positions.shape[1])
                )
        self._shapes = {name: shapes[name] for name in self._removed}
        self._total = sum(shape.numel() for shape in self._shapes.values())

    def density(self, counts: Mapping[Group, int]) -> float:
        """Return the kept share."""
        kept = 0
        for name, shape in self._shapes.items():
            sizes = list(shape)
            for dim, parts in self._removed[name].items():
                sizes[dim] -= sum((group.units - counts[group]) * each for group, each in parts)
            kept += math.prod(sizes)
        return float(kept / self._total)


def _counts(
    module: nn.Module,
    scores: Mapping[Group, Tensor],
    kept: Mapping[Group, Tensor],
    distribution: Distribution,
    density: float,
    size: _Size,
) -> dict[Group, int]:
    """Return how many units each group keeps: the most that the density allows."""
    state = module.state_dict()
    shapes = {group.name: tuple(state[group.name].shape) for group in scores}
    spread = {group.name: _spread(group, scores[group], state[group.name]) for group in scores}
    most = {group: int(units.sum()) for group, units in kept.items()}

    def at(share: float) -> dict[Group, int]:
        counts = kept_counts(distribution(shapes, share, spread), shapes, share)
        return {
            group: min(
                most[group], max(1, round(group.units * counts[group.name] / math.prod(shapes[group.name])))
            )
            for group in scores
        }

    return _largest(at, lambda counts: size.density(counts) <= density) or dict.fromkeys(scores, 1)


def _largest(
    at: Callable[[float], dict[Group, int]], fits: Callable[[dict[Group, int]], bool]
) -> dict[Group, int] | None:
    """Return the counts of the largest share that fits, by halving the interval in which it lies."""
    found, low, high = None, 0.0, 1.0
    if fits(whole := at(1.0)):
        return whole
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if fits(counts := at(middle)):
            found, low = counts, middle
        else:
            high = middle
    return found


def _spread(group: Group, scores: Tensor, weight: Tensor) -> Tensor:
    """Return a weight's scores, each that of the unit whose output it is part of, in the weight's shape."""
    part = group.parts[0]
    along = torch.empty(weight.shape[part.dim], dtype=scores.dtype)
    along[part.positions] = scores[:, None].expand(part.positions.shape)
    return along.reshape([-1 if dim == part.dim else 1 for dim in range(weight.dim())]).expand(weight.shape)
