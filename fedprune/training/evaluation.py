"""Accuracy and loss of a model on held-out examples, on the server and on clients.

The server's test set is cut into chunks of a fixed size that do not depend on who computes them,
and their sums are added in the order of the chunks. So the result is the same, bit for bit,
whether one process does all of it or many share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fedprune.data import DataInfo, Images, batches

#: Examples that one process evaluates at a time.
CHUNK_EXAMPLES = 1024


@dataclass(frozen=True)
class Score:
    """Right answers, summed cross entropy and number of the examples they come from."""

    correct: int
    loss_sum: float
    examples: int

    @property
    def accuracy(self) -> float:
        """Share of right answers; 0 without examples."""
        return self.correct / self.examples if self.examples else 0.0

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats; 0 without examples."""
        return self.loss_sum / self.examples if self.examples else 0.0


def score(
    module: nn.Module, images: Images, indices: np.ndarray, info: DataInfo, *, batch_size: int
) -> Score:
    """Evaluate a module on some images, in the order of ``indices`` (int64, shape (n,))."""
    device = next(module.parameters()).device
    module.eval()
    correct, loss = 0, 0.0
    with torch.inference_mode():
        for x, y in batches(images, indices, info, batch_size):
            x, y = x.to(device), y.to(device)
            logits = module(x)
            correct += int((logits.argmax(dim=1) == y).sum())
            loss += float(functional.cross_entropy(logits, y, reduction="sum"))
    return Score(correct, loss, len(indices))


def chunks(examples: int) -> list[np.ndarray]:
    """Return the indices of each chunk of a test set."""
    return [
        np.arange(start, min(start + CHUNK_EXAMPLES, examples))
        for start in range(0, examples, CHUNK_EXAMPLES)
    ]


def combine(scores: Sequence[Score]) -> Score:
    """Add the scores of chunks, in their order."""
    return Score(
        correct=sum(part.correct for part in scores),
        loss_sum=sum((part.loss_sum for part in scores), 0.0),
        examples=sum(part.examples for part in scores),
    )
