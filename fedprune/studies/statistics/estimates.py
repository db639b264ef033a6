"""A mean over seeds and how sure it is: standard deviation, t interval and bootstrap interval.

This is about numbers alone; which runs they come from is the matter of `fedprune.studies.statistics.groups`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

#: The confidence of every interval.
CONFIDENCE = 0.95
#: Fewer values have too few different resamples for a bootstrap interval.
LEAST_FOR_BOOTSTRAP = 3
_RESAMPLES = 9999
_SEED = 0


class Interval(NamedTuple):
    """A confidence interval, with its ends."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """The mean of some values, one a seed, with its uncertainty.

    Everything is computed from ``values`` when it is asked for; their order changes nothing, to the bit.

    Parameters
    ----------
    values
        Finite numbers, at least one.

    Raises
    ------
    ValueError
        Where there is no value, or one is not finite.

    Examples
    --------
    >>> accuracy = Estimate.of([0.61, 0.64, 0.62])
    >>> accuracy.n, round(accuracy.mean, 4), round(accuracy.std, 4)
    (3, 0.6233, 0.0153)
    >>> Estimate.of([0.61]).t_interval is None
    True
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values or not all(map(math.isfinite, self.values)):
            raise ValueError(f"expected finite values, at least one, found {self.values}")
        object.__setattr__(self, "values", tuple(sorted(map(float, self.values))))

    @classmethod
    def of(cls, values: Iterable[float]) -> Estimate:
        """Return the estimate from any iterable of numbers."""
        return cls(tuple(values))

    @property
    def n(self) -> int:
        """How many values there are."""
        return len(self.values)

    @property
    def constant(self) -> bool:
        """Whether all values are the same."""
        return self.values[0] == self.values[-1]

    @cached_property
    def mean(self) -> float:
        """The mean."""
        # A sum of equal numbers, divided by their count, may differ from them in the last bit.
        return self.values[0] if self.constant else math.fsum(self.values) / self.n

    @cached_property
    def std(self) -> float | None:
        """The standard deviation of a sample (``n - 1`` below); None for one value."""
        if self.n < 2:
            return None
        return math.sqrt(math.fsum((value - self.mean) ** 2 for value in self.values) / (self.n - 1))

    @cached_property
    def half_width(self) -> float | None:
        """Half the width of the t interval: what is written after ±; None for one value."""
        if self.std is None:
            return None
        from scipy.stats import t

        quantile = float(t.ppf((1 + CONFIDENCE) / 2, self.n - 1))
        return quantile * self.std / math.sqrt(self.n)

    @cached_property
    def t_interval(self) -> Interval | None:
        """The 95 % interval of the mean by Student's t distribution; None for one value.

        It holds for values that are about normally distributed, which three or five values cannot show. Where
        all values are the same, it has no width.
        """
        if self.half_width is None:
            return None
        return Interval(self.mean - self.half_width, self.mean + self.half_width)

    @cached_property
    def bootstrap_interval(self) -> Interval | None:
        """The 95 % interval of the mean by the bootstrap, bias-corrected and accelerated (BCa).

        It assumes no distribution, but of few values it is too narrow: it cannot leave their range. None for
        fewer than three values, where all are the same, and where every resample lies on one side. The
        resamples (9999) are drawn from a fixed seed.

        Source: Efron (1987), Better bootstrap confidence intervals.
        """
        if self.n < LEAST_FOR_BOOTSTRAP or self.constant:
            return None
        import numpy as np
        from scipy.stats import DegenerateDataWarning, bootstrap

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateDataWarning)  # The result is then NaN: None, below.
            found = bootstrap(
                (np.array(self.values),),
                np.mean,
                confidence_level=CONFIDENCE,
                n_resamples=_RESAMPLES,
                method="BCa",
                rng=np.random.default_rng(_SEED),
            ).confidence_interval
        low, high = float(found.low), float(found.high)
        return Interval(low, high) if math.isfinite(low) and math.isfinite(high) else None
