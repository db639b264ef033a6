"""The training step that a message asks of a client: both sides predict its memory from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from flwr.app import ConfigRecord
from torch import nn

from fedprune.costs.fit import TrainingStep
from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import Overhead, optimizer_slots
from fedprune.protocol.messages import real
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Task


class TrainingAlgorithm(Protocol):
    """What a server needs to know of a client class."""

    executes_sparse: ClassVar[bool]

    @classmethod
    def local_model(cls, scenario: Scenario, task: Task, module: nn.Module) -> nn.Module:
        """Return what of the scenario's model a client holds."""

    @classmethod
    def overhead(cls, proximal_mu: float, options: Mapping[str, Any]) -> Overhead:
        """Return what a training step needs besides a plain one, before any message."""

    @classmethod
    def overhead_of(cls, scenario: Scenario, config: ConfigRecord, masks: Masks) -> Overhead:
        """Return what a training step needs besides a plain one, as a message asks for it."""


def proximal_mu(scenario: Scenario, config: ConfigRecord) -> float:
    """Return the weight of FedProx's term: the message's (Flower's FedProx has one) or the scenario's."""
    if "proximal-mu" in config:
        return real(config, "proximal-mu")
    return scenario.clients.training.proximal_mu


def training_step(
    client: type[TrainingAlgorithm], scenario: Scenario, cost: ModelCost, config: ConfigRecord, masks: Masks
) -> TrainingStep:
    """Return the training step that a message asks of a client, for predictions of its memory."""
    optimizer = scenario.clients.training.optimizer
    return TrainingStep(
        cost.under(masks),
        slots=optimizer_slots(optimizer.name, optimizer.momentum),
        overhead=client.overhead_of(scenario, config, masks),
    )
