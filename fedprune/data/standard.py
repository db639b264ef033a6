"""Standardised inputs: a mean and a standard deviation a channel, fitted in a federated way.

Each client gives the count, the sum and the sum of squares of the values that it trains on; what the inputs
are standardised with follows from the totals, and no value leaves a client. Not for pixels, whose data sets
have constants of their own.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nan_to_num, tensor

from fedprune.data.dataset import Shares
from fedprune.data.inputs import Inputs

#: By channel: how many values there are, their sum and the sum of their squares, float64 (3, C).
Sums = NDArray[np.float64]

# A variance below this part of the mean square is what rounding leaves of none.
_CONSTANT = 1e-12


@dataclass(frozen=True)
class Standardised(Inputs):
    """Inputs with channels that are standardised.

    Attributes
    ----------
    shape
        Of one input as a model takes it, without the batch.
    mean, std
        By channel; () until they are fitted: then values are taken as they are.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @abstractmethod
    def measured(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return the values to standardise, (N, C, ...), NaN where one is missing, of stored inputs."""

    def standardised(self, values: Tensor) -> Tensor:
        """Return values, (B, C, ...), as float32 of about mean 0 and deviation 1; 0 for none or infinity."""
        if self.mean:
            shape = (-1, *(1,) * (values.dim() - 2))
            mean, std = (tensor(each, dtype=values.dtype).view(shape) for each in (self.mean, self.std))
            values = (values - mean) / std
        return nan_to_num(values.float(), nan=0.0, posinf=0.0, neginf=0.0)

    def settings(self) -> dict[str, object]:
        """Return mean and standard deviation by channel."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def sums(self, stored: NDArray[Any]) -> Sums:
        """Return what a client tells of the inputs that it trains on."""
        values = self.measured(stored).astype(np.float64)
        axes = (0, *range(2, values.ndim))
        there = np.isfinite(values)
        values = np.where(there, values, 0.0)
        return np.stack([there.sum(axes), values.sum(axes), np.square(values).sum(axes)]).astype(np.float64)

    def fitted(self, totals: Sums) -> Self:
        """Return these inputs with the mean and deviation of all values whose sums were added up."""
        mean, std = mean_and_std(totals)
        return replace(self, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def mean_and_std(totals: Sums) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation by channel; 0 and 1 without values, 1 where all are equal."""
    count, total, squares = totals
    count = np.maximum(count, 1)
    mean, mean_square = total / count, squares / count
    variance = mean_square - np.square(mean)
    varies = variance > _CONSTANT * mean_square
    return mean, np.sqrt(np.where(varies, variance, 1.0))


def pooled(inputs: Standardised, stored: NDArray[Any], shares: Shares) -> Standardised:
    """Return inputs fitted to what the clients train on: to the sum of what each of them tells.

    Parameters
    ----------
    inputs
        Those to fit.
    stored
        The stored inputs of all.
    shares
        Which of them are whose.
    """
    told = [inputs.sums(stored[shares.of(client)]) for client in range(len(shares))]
    return inputs.fitted(np.sum(told, axis=0))
