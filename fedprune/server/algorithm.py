"""Which training algorithm the clients of a strategy run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedprune import registry
from fedprune.protocol.training_step import TrainingAlgorithm
from fedprune.scenario import Scenario

if TYPE_CHECKING:
    from fedprune.server.strategy import PruningStrategy


def client_class(scenario: Scenario, strategy: type[PruningStrategy]) -> type[TrainingAlgorithm]:
    """Return the class of the clients of a strategy."""
    found: type[TrainingAlgorithm] = registry.load("client", strategy.client, scenario.directory)
    return found
