"""Training a dense copy of a model that travels sparse: the copy, and the memory that it takes.

For methods whose clients train what is pruned, too. How they do so, and what of it they reply, is theirs.
"""

from __future__ import annotations

import math

import torch

from fedprune.client.base import Client, ClientTask
from fedprune.costs.memory import optimizer_slots
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.training.execution import LocalModel

_VALUES = 3  # Of a weight: itself, its gradient, and a slot of an optimizer's state.


def all_kept_of(masks: Masks) -> Masks:
    """Return masks of the same weights that prune nothing."""
    return Masks({name: torch.ones_like(mask) for name, mask in masks.items()})


def dense_copy(client: Client, task: ClientTask) -> LocalModel:
    """Return a model that prunes nothing, with the values that were sent; what these prune is 0."""
    masks = all_kept_of(task.masks)
    codec = client.site.codec(masks)
    model = client.model(masks, codec)
    model.load(codec.taken_over(task.values, client.site.codec(task.masks)))
    return model


def dense_copy_bytes(scenario: Scenario, masks: Masks) -> int:
    """Return what a step on a dense copy needs beyond one under masks: of what these prune, all values."""
    optimizer = scenario.clients.training.optimizer
    values = 2 + optimizer_slots(optimizer.name, optimizer.momentum)
    return 4 * values * (masks.total - sum(masks.kept.values()))


def dense_copy_slots(density: float) -> int:
    """Return about the same before any masks are known: values for each weight that a density keeps."""
    return math.ceil(_VALUES * (1 / density - 1))
