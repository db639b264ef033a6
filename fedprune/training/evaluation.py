"""How well a model does on held-out examples, on the server and on clients, by the task's loss and metrics.

The server's test set is cut into chunks of a fixed size that do not depend on who computes them,
and their sums are added in the order of the chunks. So the result is the same, bit for bit,
whether one process does all of it or many share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedprune.data import Examples, batches
from fedprune.tasks import Metric, Statistics, Task, values_of

#: Examples that one process evaluates at a time.
CHUNK_EXAMPLES = 1024


@dataclass(frozen=True)
class Score:
    """Sums over examples: of their losses, and what metrics follow from.

    Attributes
    ----------
    examples
        How many.
    loss_sum
        Of their losses.
    statistics
        The sums of each metric, by its name; see `fedprune.tasks.Metric`.
    """

    examples: int
    loss_sum: float
    statistics: Mapping[str, Statistics]

    @property
    def loss(self) -> float:
        """Mean loss; 0 without examples."""
        return self.loss_sum / self.examples if self.examples else 0.0

    def values(self, metrics: Sequence[Metric]) -> dict[str, float | None]:
        """Return the value of each metric by its name; None where it is not defined, or without examples."""
        if not self.examples:
            return {metric.name: None for metric in metrics}
        return values_of(metrics, self.statistics)


def score(
    module: nn.Module, examples: Examples, indices: np.ndarray, task: Task, *, batch_size: int
) -> Score:
    """Evaluate a module on some examples, in the order of ``indices`` (int64, shape (n,))."""
    device = next(module.parameters()).device
    module.eval()
    loss = 0.0
    sums: dict[str, Statistics] = {}
    with torch.inference_mode():
        for x, y in batches(examples, indices, task, batch_size):
            x, y = x.to(device), y.to(device)
            outputs = module(x)
            loss += float(task.loss(outputs, y, x, "sum"))
            compared = task.compared(outputs, y, x)
            for metric in task.metrics:
                found = metric.statistics(*compared).double().cpu().numpy()
                sums[metric.name] = sums[metric.name] + found if metric.name in sums else found
    return Score(len(indices), loss, sums)


def chunks(examples: int) -> list[np.ndarray]:
    """Return the indices of each chunk of a test set."""
    return [
        np.arange(start, min(start + CHUNK_EXAMPLES, examples))
        for start in range(0, examples, CHUNK_EXAMPLES)
    ]


def combine(scores: Sequence[Score]) -> Score:
    """Add the scores of chunks, or of clients, in their order."""
    parts = [part for part in scores if part.examples]
    names = parts[0].statistics if parts else ()
    return Score(
        examples=sum(part.examples for part in parts),
        loss_sum=sum((part.loss_sum for part in parts), 0.0),
        statistics={name: np.sum([part.statistics[name] for part in parts], axis=0) for name in names},
    )
