"""What fits a device: the largest density, batch or nested mask whose training step fits a memory.

Pure arithmetic on a model's costs, by `fedprune.costs.memory`. Which model, strategy and devices a scenario
has, and what its clients keep besides, is for `fedprune.server.sizing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import MemoryBreakdown, Overhead, step_memory_of, step_tensors
from fedprune.sparsity.distributions import Distribution, Shapes, kept_counts, total_kept, uniform
from fedprune.sparsity.masks import Masks

_SMALLEST = 2  # Examples: some models, with a batch norm over single values, can't train on one.


@dataclass(frozen=True)
class TrainingStep:
    """A training step, but for its density and its batch.

    Parameters
    ----------
    cost
        The model.
    shapes
        Of the prunable weights, by name; what is not here is dense.
    distribution
        How the kept weights are shared out among these; it is given no scores.
    slots
        Values that the optimizer keeps per weight, see `optimizer_slots`.
    overhead
        What the training algorithm keeps besides.
    channels
        Where whole channels are pruned: makes the masks of a density.
    """

    cost: ModelCost
    shapes: Shapes = field(default_factory=dict)
    distribution: Distribution = uniform
    slots: int = 0
    overhead: Overhead = field(default_factory=Overhead)
    channels: Callable[[float], Masks] | None = None

    @property
    def prunable(self) -> int:
        """Number of prunable weights."""
        return sum(map(prod, self.shapes.values()))

    def kept(self, density: float) -> dict[str, int]:
        """Return how many weights of each prunable tensor are kept.

        Raises
        ------
        UserError
            For a density outside (0, 1].
        """
        if self.channels is not None:
            return self.channels(density).kept
        if not self.shapes:
            return {}
        return kept_counts(self.distribution(self.shapes, density, {}), self.shapes, density)

    def at(self, density: float) -> TrainingStep:
        """Return the step of what is trained at a density: of a smaller model, where channels are pruned.

        Raises
        ------
        UserError
            For a density outside (0, 1].
        """
        if self.channels is None:
            return self
        return replace(self, cost=self.cost.under(self.channels(density)))

    def memory(self, density: float, batch: int) -> MemoryBreakdown:
        """Predict the peak memory of the step.

        Raises
        ------
        UserError
            For a density outside (0, 1].
        ValueError
            For a batch that the model can't train on: one example, under a batch norm of single values.
        """
        return self.at(density).memory_of(self.kept(density), batch)

    def memory_of(self, kept: Mapping[str, int], batch: int) -> MemoryBreakdown:
        """Predict the peak memory of the step where these numbers of weights are kept."""
        return step_memory_of(
            self.cost,
            kept,
            batch,
            slots=self.slots + self.overhead.slots,
            buffers=self.overhead.buffers,
            activation_density=self.overhead.activation_density,
        )


def fewest_examples(cost: ModelCost) -> int:
    """Return how many examples a client needs to train a model: 2 where batch norm refuses one, else 1."""
    try:
        step_tensors(cost, 1)
    except ValueError:
        return 2
    return 1


def largest_density(step: TrainingStep, memory: int, batch: int) -> float | None:
    """Return the largest density whose step on a batch fits; None where not even the smallest does.

    The density is that of a whole number k of weights: with k it fits, and with k + 1 it does not. Where
    layers store their weights differently, rounding can make a step with more weights a few bytes
    smaller; then there is more than one such k, and this is one of them.

    Parameters
    ----------
    step
        The step.
    memory
        Bytes of the device.
    batch
        Examples in the batch.
    """
    if step.channels is not None:  # Each density takes a trace of another model: hundredths will do.
        percent = last(lambda share: step.memory(share / 100, batch).total <= memory, 1, 100)
        return None if percent is None else percent / 100
    if not step.shapes:
        return 1.0 if step.memory(1.0, batch).total <= memory else None
    weights = step.prunable
    # The fewest weights of a model are one a layer, whatever density is asked for.
    fewest = total_kept(step.shapes, 0.5 / weights)

    def fits(count: int) -> bool:
        return step.memory(count / weights, batch).total <= memory

    count = last(fits, fewest, weights)
    return None if count is None else count / weights


def largest_batch(step: TrainingStep, memory: int, density: float, most: int) -> int | None:
    """Return the largest batch, up to ``most``, whose step at a density fits; None where none does.

    Parameters
    ----------
    step
        The step.
    memory
        Bytes of the device.
    density
        Kept share of the prunable weights.
    most
        Where to stop looking.
    """
    kept, step = step.kept(density), step.at(density)

    def fits(batch: int) -> bool:
        return step.memory_of(kept, batch).total <= memory

    if most >= _SMALLEST and (batch := last(fits, _SMALLEST, most)) is not None:
        return batch
    try:
        return 1 if fits(1) else None
    except ValueError:
        return None


def micro_batch(step: TrainingStep, kept: Mapping[str, int], batch: int, memory: int) -> int | None:
    """Return the largest part of a batch on which a step fits, with the gradients of all parts added up.

    `parts` cuts a batch into such parts. None where not even the smallest fits: one example or, for a model
    that can't train on one, three, since an odd batch has no parts of two.

    Parameters
    ----------
    step
        The step.
    kept
        Number of kept weights of each pruned tensor.
    batch
        Examples in a whole batch, at least 1.
    memory
        Bytes of the device.
    """

    def fits(size: int) -> bool:
        return step.memory_of(kept, size).total <= memory

    if fits(batch):
        return batch
    try:
        smallest = 1
        fits(smallest)
    except ValueError:
        smallest = 3
    return last(fits, smallest, batch - 1) if smallest < batch else None


def nested_counts(
    step: TrainingStep, kept: Mapping[str, int], batch: int, memory: int
) -> dict[str, int] | None:
    """Return how many weights of each tensor fit, the same share of what is kept in every one.

    No tensor is left without a weight. The share is that of a whole number k of all kept weights: with k it
    fits, and with k + 1 it does not. None where one weight a tensor does not fit. Parameters are those of
    `micro_batch`.
    """
    total = sum(kept.values())

    def counts(weights: int) -> dict[str, int]:
        return {name: min(count, max(1, count * weights // total)) for name, count in kept.items()}

    def fits(weights: int) -> bool:
        return step.memory_of(counts(weights), batch).total <= memory

    if total == 0:
        return {} if step.memory_of(kept, batch).total <= memory else None
    found = last(fits, 0, total)
    return None if found is None else counts(found)


def last(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the last number from ``low`` to ``high`` for which something holds that stops holding once.

    It steps away from ``low`` in doubled steps, and then bisects, so that what is asked for stays of the size
    of the answer. None where it does not hold for ``low``.

    Examples
    --------
    >>> last(lambda n: n * n <= 50, 0, 100), last(lambda n: n < 0, 0, 100), last(lambda n: True, 0, 100)
    (7, None, 100)
    """
    if not holds(low):
        return None
    held, step = low, 1
    while held < high:
        ahead = min(held + step, high)
        if not holds(ahead):
            # Holds at `held`, not at `ahead`, all the way.
            while ahead - held > 1:
                middle = (held + ahead) // 2
                held, ahead = (middle, ahead) if holds(middle) else (held, middle)
            break
        held, step = ahead, 2 * step
    return held
