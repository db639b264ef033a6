"""Batches as a model takes them: stored inputs become tensors here, and are changed at random where asked.

Not for reading or splitting. Inputs stay as they are stored until a batch is made: a client's pixels cost a
quarter of the memory that floats would. What becomes of inputs and targets is for a task to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedprune.data.augmentation import Augmentation
from fedprune.data.dataset import Examples, Indices


class Batching(Protocol):
    """Makes a batch of what is stored, as a `fedprune.tasks.Task` does."""

    def batch(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, y): what the model takes, and what its outputs are compared with."""

    def soft(self, targets: Tensor) -> Tensor:
        """Return targets of a batch as floats that can be mixed with another's."""


def batches(
    examples: Examples,
    indices: Indices,
    task: Batching,
    batch_size: int,
    generator: torch.Generator | None = None,
    augment: Sequence[Augmentation] = (),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch over ``indices`` as (x, y), made by the task of what is stored.

    With a generator the examples are shuffled, for training; without one they come in the order of
    ``indices``. The last batch may be smaller. When shuffling, a last batch of a single example is left out
    where others came before it: batch norm in training mode can't take one value per channel.

    Parameters
    ----------
    batch_size
        Examples in a batch, at least 1.
    generator
        Source of every random number drawn, on the CPU.
    augment
        Random changes, applied in this order to stored inputs or, those that are marked so, to what the model
        takes, maybe with its targets; they need a generator.

    Raises
    ------
    ValueError
        Where ``augment`` is given without a generator.
    """
    if augment and generator is None:
        raise ValueError("augmentation draws random numbers: pass a generator")
    order = indices
    if generator is not None:
        order = indices[torch.randperm(len(indices), generator=generator).numpy()]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        if generator is not None and len(chosen) == 1 and start > 0 and batch_size > 1:
            return
        inputs = torch.from_numpy(signed(examples.inputs[chosen]))
        for change in augment:
            if not change.on_model_inputs:
                assert generator is not None
                inputs = change(inputs, generator)
        x, y = task.batch(inputs, torch.from_numpy(examples.targets[chosen]))
        for change in augment:
            if change.on_model_inputs:
                assert generator is not None
                if change.on_batches:
                    x, y = change.mixed(x, task.soft(y), generator)
                else:
                    x = change(x, generator)
        yield x, y


def signed(stored: NDArray[Any]) -> NDArray[Any]:
    """Return values of a batch as a type with which PyTorch computes: of unsigned ones it knows uint8."""
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}.get(stored.dtype)
    return stored if wider is None else stored.astype(wider)


def parts(x: Tensor, y: Tensor, size: int | None) -> list[tuple[Tensor, Tensor]]:
    """Cut a batch into parts of about equal length, at most ``size``; None: it stays whole.

    From a size of 3 on, no part of two or more examples is cut into single ones.
    """
    count = 1 if size is None else -(-len(y) // size)
    if count <= 1:
        return [(x, y)]
    return list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))
