"""What a strategy is given: the scenario and everything around it that is not a client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from fedprune.costs.ledger import Listener
from fedprune.data import DataInfo, Examples
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Score, Task


@runtime_checkable
class StepListener(Protocol):
    """Who also hears what a run does before a round ends."""

    def on_step(self, step: str) -> None:
        """Hear what is done now, in a few words for a person."""


def announce(listeners: Iterable[Listener], step: str) -> None:
    """Tell the listeners that follow steps what is done now."""
    for listener in listeners:
        if isinstance(listener, StepListener):
            listener.on_step(step)


@dataclass(frozen=True, kw_only=True, eq=False)
class Federation:
    """What a strategy is given: the scenario, a model, public data, and who evaluates.

    Parameters
    ----------
    scenario : Scenario
        What is run.
    task : Task
        What is learnt.
    module : nn.Module
        The model with its initial weights, on the CPU.
    examples : Examples
        Where ``public`` points into.
    public : np.ndarray
        int64 indices of the server's public examples; empty when ``data.server_fraction`` is 0.
    evaluate : Callable[[Mapping[str, Tensor], Masks], Score]
        Scores a global state on the server's test data.
    listeners : Sequence[Listener]
        Told of every task and round, and of every step where it is a `StepListener`.
    pretrained : Path, optional
        A folder that keeps models after pretraining, for runs that begin alike.
    """

    scenario: Scenario
    task: Task
    module: nn.Module
    examples: Examples
    public: np.ndarray
    evaluate: Callable[[Mapping[str, Tensor], Masks], Score]
    listeners: Sequence[Listener] = ()
    pretrained: Path | None = None

    @property
    def info(self) -> DataInfo:
        """What is known of the data."""
        return self.task.info

    def announce(self, step: str) -> None:
        """Tell a person what is done now, such as "round 0: candidate 3 of 8"."""
        announce(self.listeners, step)
