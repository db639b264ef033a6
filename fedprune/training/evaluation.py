"""How well a model does on held-out examples, on the server and on clients, by the task's loss and metrics.

The server's test set is cut into chunks of a fixed size that do not depend on who computes them,
and their sums are added in the order of the chunks. So the result is the same, bit for bit,
whether one process does all of it or many share it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedprune.data import Examples, batches
from fedprune.errors import UserError
from fedprune.tasks import Score, Statistics, Task

#: Examples that one process evaluates at a time.
CHUNK_EXAMPLES = 1024


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
                before = sums.get(metric.name)
                if found.ndim != 1 or (before is not None and found.shape != before.shape):
                    raise UserError(
                        f"metric {metric.name!r} makes statistics of shape {found.shape}: expected (S,), "
                        "with the same S for every batch"
                    )
                sums[metric.name] = found if before is None else before + found
    return Score(len(indices), loss, {name: tuple(found.tolist()) for name, found in sums.items()})


def chunks(examples: int) -> list[np.ndarray]:
    """Return the indices of each chunk of a test set."""
    return [
        np.arange(start, min(start + CHUNK_EXAMPLES, examples))
        for start in range(0, examples, CHUNK_EXAMPLES)
    ]
