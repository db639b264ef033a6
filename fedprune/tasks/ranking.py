"""How well a score ranks positives above negatives, from counts of binned scores.

The exact area under the ROC curve needs every score. Here scores are counted in fine bins, so that what is to
be summed has a fixed size and merges exactly; within a bin, scores count as equal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedprune.tasks.metrics import Metric, Statistics

#: Bins of a factor of two, and the powers of two between which scores are told apart.
_PER_OCTAVE, _LOWEST, _HIGHEST = 64, -24, 8
_BINS = _PER_OCTAVE * (_HIGHEST - _LOWEST)


class ErrorAuroc(Metric):
    """Area under the ROC curve of errors, float (N,) from 0, that tell positives, 1, from negatives, 0.

    Errors less than 1 % apart count as equal, as do those below 2**-24 and above 2**8. Not defined without
    examples of both kinds.
    """

    name = "auroc"

    def statistics(self, predictions: Tensor, truth: Tensor) -> Tensor:
        """Return the counts of negatives and of positives in each bin, (2 * bins,)."""
        place = (predictions.double().clamp(min=2.0**_LOWEST).log2() - _LOWEST) * _PER_OCTAVE
        place = place.long().clamp(0, _BINS - 1)
        return torch.bincount(place + _BINS * truth.long(), minlength=2 * _BINS)

    def fault(self, statistics: Statistics, examples: int) -> str | None:
        """Refuse other counts than of so many examples."""
        right = statistics.shape == (2 * _BINS,) and (statistics >= 0).all() and statistics.sum() == examples
        return None if right else f"expected {2 * _BINS} counts of {examples} examples"

    def value(self, statistics: Statistics) -> float:
        """Return the share of pairs that are in the right order, ties counted as half."""
        negatives, positives = statistics.reshape(2, _BINS)
        return area(negatives, positives)


def area(negatives: Statistics, positives: Statistics) -> float:
    """Return the area under the ROC curve of counts by ascending score; NaN without one of the kinds."""
    pairs = negatives.sum() * positives.sum()
    below = np.cumsum(negatives) - negatives
    ordered = float(np.sum(positives * (below + negatives / 2)))
    return ordered / float(pairs) if pairs else float("nan")
