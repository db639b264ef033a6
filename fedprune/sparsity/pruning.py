"""Pruning: masks from a criterion, a distribution and a density, by the one function `prune`.

Here is also decided which of a model's prunable weights are kept dense. Which are prunable at all is for
`fedprune.sparsity.layers`; training under the masks, and changing them meanwhile, is done elsewhere.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from fedprune.errors import UserError
from fedprune.sparsity.criteria import Batches, Criterion, default_iterations, needs_data
from fedprune.sparsity.distributions import Distribution, kept_counts, total_kept
from fedprune.sparsity.layers import SMALL, Weight, weights
from fedprune.sparsity.loss import Loss, not_said
from fedprune.sparsity.masks import Masks, keep_highest

KEEP = ("first", "last")
"""Layers that are not pruned unless a person says otherwise."""

_MOST_NAMED = 4


def prunable(module: nn.Module, keep: Sequence[str] = KEEP) -> list[str]:
    """Return the names of the weights that may be pruned, in the order of their layers.

    Those are the weights of convolutions, linear and recurrent layers and attention, one name for a weight
    that layers share; `fedprune.sparsity.layers` has the table. Biases and normalisation are never pruned.

    Parameters
    ----------
    module
        The model.
    keep
        What stays dense: patterns (``fnmatch``) on the name of a layer (``features.0``) or of its
        weight (``features.0.weight``), and the words ``first`` and ``last`` for the first and the
        last prunable weight.

    Raises
    ------
    UserError
        If a pattern matches no layer (names the nearest ones), or if nothing is left to prune.

    Examples
    --------
    >>> mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> prunable(mlp), prunable(mlp, keep=["0"])
    (['2.weight'], ['2.weight', '4.weight'])
    """
    found = weights(module)
    kept = _kept_by(keep, found)
    names = [weight.name for weight in found if weight.why_dense is None and weight.name not in kept]
    if not names:
        raise UserError(
            f"nothing is left to prune; {_said(found, kept)}. Keep fewer layers (strategy.keep), or set "
            "density: 1"
        )
    return names


def kept_weights(module: nn.Module, keep: Sequence[str] = KEEP) -> set[str]:
    """Return the names of the weights that could be pruned and stay dense, by patterns as in `prunable`.

    Raises
    ------
    UserError
        If a pattern matches no layer.
    """
    return set(_kept_by(keep, weights(module)))


def left_dense(module: nn.Module, keep: Sequence[str] = KEEP) -> str:
    """Return which parameters are not pruned, and why, as text; "" where all are.

    The arguments and errors are those of `prunable`.

    Examples
    --------
    >>> left_dense(nn.Sequential(nn.Embedding(9, 4), nn.LSTM(4, 8), nn.Linear(8, 2)), keep=["last"])
    "left dense: 0.weight (Embedding: rows are looked up, not multiplied), 2.weight (keep: 'last'), 66 in biases and normalisation"
    """  # noqa: E501
    prunable(module, keep)
    found = weights(module)
    return _said(found, _kept_by(keep, found))


def _said(found: Sequence[Weight], kept: Mapping[str, str]) -> str:
    reasons: dict[str, list[Weight]] = {}
    for weight in found:
        why = f"keep: {kept[weight.name]!r}" if weight.name in kept else weight.why_dense
        if why is not None:
            reasons.setdefault(why, []).append(weight)
    small = sum(weight.elements for weight in reasons.pop(SMALL, []))
    parts = [f"{_listed([weight.name for weight in those])} ({why})" for why, those in reasons.items()]
    parts += [f"{small:,} in {SMALL}"] if small else []
    return f"left dense: {', '.join(parts)}" if parts else ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    *first, last = [*names[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])]
    return f"{', '.join(first)} and {last}" if first else last


def _kept_by(keep: Sequence[str], found: Sequence[Weight]) -> dict[str, str]:
    """Return the prunable weights that stay dense, each with the first pattern that matches it."""
    able = [weight for weight in found if weight.why_dense is None]
    if not able:
        raise UserError(f"the model has nothing to prune; {_said(found, {})}. Set density: 1")
    kept: dict[str, str] = {}
    for pattern in keep:
        matched = _matches(pattern, able)
        if not matched:
            raise UserError(f"keep: {pattern!r} matches no layer that could be pruned{_hint(pattern, found)}")
        kept |= {weight.name: pattern for weight in matched if weight.name not in kept}
    return kept


def _hint(pattern: str, found: Sequence[Weight]) -> str:
    """Say why what a pattern matches is no choice, or which names are near."""
    for weight in found:
        if _named(pattern, weight):
            return f": {weight.name} is never pruned ({weight.why_dense})"
    names = [name for weight in found if weight.why_dense is None for name in weight.names]
    layers = list(dict.fromkeys(map(_layer, names)))
    near = difflib.get_close_matches(pattern, [*layers, *names, *KEEP], n=3) or layers[:3]
    return f"; near: {', '.join(near)}"


def _matches(pattern: str, able: Sequence[Weight]) -> list[Weight]:
    if pattern == "first":
        return list(able[:1])
    if pattern == "last":
        return list(able[-1:])
    return [weight for weight in able if _named(pattern, weight)]


def _named(pattern: str, weight: Weight) -> bool:
    """Say whether a pattern matches a weight, or a layer that has it, by any of its names."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(_layer(name), pattern) for name in weight.names)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def blocks(module: nn.Module, names: Sequence[str]) -> list[list[str]]:
    """Group weights by the top-level child of the model that they lie in: its stages, in order.

    Examples
    --------
    >>> net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    >>> blocks(net, ["0.0.weight", "0.1.weight", "1.weight"])
    [['0.0.weight', '0.1.weight'], ['1.weight']]
    """
    grouped: dict[str, list[str]] = {name: [] for name, _ in module.named_children()}
    for name in names:
        grouped.setdefault(name.split(".")[0], []).append(name)
    return [group for group in grouped.values() if group]


def prune(
    module: nn.Module,
    names: Sequence[str],
    *,
    criterion: Criterion,
    distribution: Distribution,
    density: float,
    example: Tensor,
    iterations: int | None = None,
    batches: Batches = (),
    loss: Loss = not_said,
    generator: torch.Generator | None = None,
) -> Masks:
    """Return masks that keep ``round(density * N)`` of the N named weights, at least one a layer.

    With n iterations the density at step i is ``density ** (i / n)``, and the scores are those of
    the model as pruned so far (Tanaka et al., NeurIPS 2020, algorithm 1). The module is not changed.

    Parameters
    ----------
    module
        The model.
    names
        Its prunable weights; see `prunable`.
    criterion, distribution
        Which weights are kept, and how many in each layer.
    density
        Share of the named weights to keep, in (0, 1].
    example
        One input of ones, (1, ...).
    iterations
        Number of steps; None for the criterion's own default.
    batches
        Data for criteria that need it.
    loss
        What is learnt, for these.
    generator
        Source of the draws of criteria that are random.

    Raises
    ------
    UserError
        If the density is outside (0, 1], if the criterion needs data and there is none, or if the
        densities or scores are not what they must be.
    ValueError
        If there are fewer than one iterations, or scores that are not a number.
    """
    steps = default_iterations(criterion) if iterations is None else iterations
    if steps < 1:
        raise ValueError(f"iterations is {steps}, expected at least 1")
    if needs_data(criterion) and not batches:
        raise UserError(
            f"the criterion {getattr(criterion, '__name__', criterion)!r} needs data on the server: "
            "set data.server_fraction above 0, or take a criterion that needs none"
        )
    network = copy.deepcopy(module)
    weights = {name: network.get_parameter(name).detach() for name in names}
    shapes = {name: weight.shape for name, weight in weights.items()}
    total_kept(shapes, density)  # refuses an impossible density before any work
    masks = Masks({name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()})
    for step in range(1, steps + 1):
        reached = density ** (step / steps)
        scores = _scores_of_kept(
            criterion(network, names, example=example, batches=batches, loss=loss, generator=generator),
            masks,
        )
        masks = keep_highest(scores, kept_counts(distribution(shapes, reached, scores), shapes, reached))
        for name, weight in weights.items():
            weight.masked_fill_(~masks[name].to(weight.device), 0)
    return masks


def all_kept(module: nn.Module, names: Sequence[str]) -> Masks:
    """Return masks of the named weights that prune nothing yet."""
    return Masks({name: torch.ones(module.get_parameter(name).shape, dtype=torch.bool) for name in names})


def prunable_masks(module: nn.Module, keep: Sequence[str]) -> Masks:
    """Return the masks that keep every weight which may be pruned; empty ones where none may."""
    try:
        return all_kept(module, prunable(module, keep))
    except UserError:
        return Masks()


def prune_further(
    state: Mapping[str, Tensor], masks: Masks, distribution: Distribution, density: float
) -> Masks:
    """Return masks with the weights of smallest magnitude pruned too, down to a density.

    No pruned weight comes back, so a layer never has more weights than before: where the
    distribution would give it more, the model ends up below the density.

    Parameters
    ----------
    state
        Tensors by name, at least those that have masks.
    masks
        What is kept so far.
    distribution
        How many each layer keeps.
    density
        Share of all weights that have masks to keep, in (0, 1].
    """
    scores = _scores_of_kept({name: state[name].abs() for name in masks}, masks)
    shapes = {name: mask.shape for name, mask in masks.items()}
    counts = kept_counts(distribution(shapes, density, scores), shapes, density)
    return keep_highest(scores, {name: min(count, masks.kept[name]) for name, count in counts.items()})


def _scores_of_kept(scores: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Return the scores with those of pruned weights below all others, so that none comes back."""
    for name, mask in masks.items():
        if name not in scores or scores[name].shape != mask.shape:
            found = tuple(scores[name].shape) if name in scores else "none"
            raise UserError(
                f"the criterion gave scores of shape {found} for {name!r}, expected {tuple(mask.shape)}"
            )
    return {
        name: scores[name].detach().masked_fill(~mask.to(scores[name].device), -torch.inf)
        for name, mask in masks.items()
    }
