"""What a process holds for the clients that run in it: the scenario, the data it may read and a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedprune import registry, tasks
from fedprune.costs.devices import DeviceProfile, client_profiles
from fedprune.costs.flops import ModelCost
from fedprune.data import LocalData
from fedprune.errors import UserError
from fedprune.protocol.supermasks import FrozenNetwork, Supermasks
from fedprune.protocol.updates import Updates
from fedprune.scenario import Scenario
from fedprune.sparsity.frozen import frozen_names
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Task
from fedprune.training.execution import (
    LocalModel,
    rule_of,
    smaller_model,
    sparse_model,
    why_not_sparse,
    without_values,
)
from fedprune.wire import (
    Layout,
    StateCodec,
    decode_masks,
    get_state,
)

if TYPE_CHECKING:
    from fedprune.client.base import Client

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Site:
    """What a process holds for its clients: scenario, data, one model that each in turn fills."""

    scenario: Scenario
    data: LocalData
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    #: What the device of this process is, where a scenario does not say it.
    profile: DeviceProfile | None = None
    #: The frozen part of the clients' model, where this process simulates clients: none keeps a copy.
    frozen_state: Mapping[str, Tensor] | None = None
    #: What classes of clients keep in this process for all of them, by name; no result depends on it.
    shelf: dict[str, Any] = field(default_factory=dict)

    def profile_of(self, number: int) -> DeviceProfile:
        """Return the device of a client."""
        return self.profile or self.profiles[number]

    @cached_property
    def task(self) -> Task:
        """What is learnt."""
        return tasks.build(self.scenario, self.data.info)

    @cached_property
    def module(self) -> nn.Module:
        """What clients hold of the dense model; its values are those of whichever client used it last."""
        return self._build().to(self.device)

    @cached_property
    def sparse(self) -> Callable[[Masks], LocalModel | None]:
        """The model without the channels that masks prune, or with sparse layers; None where it is whole."""
        training, on_cpu = self.scenario.clients.training, self.device.type == "cpu"
        rule = rule_of(training, self.cost) if on_cpu else None

        @lru_cache(maxsize=4)
        def make(masks: Masks) -> LocalModel | None:
            if training.execution == "dense" or not masks:
                return None
            if smaller := smaller_model(self._outline[0], masks, self.task):
                smaller.module.to(self.device)
                return smaller
            if not rule:
                return None
            found = sparse_model(self._outline[0], masks, rule, self.task)
            return found if found is None or self._can_be_sparse else None

        return make

    @cached_property
    def _can_be_sparse(self) -> bool:
        """Whether the model computes the same where layers are executed sparse."""
        fault = why_not_sparse(self._outline[0], self._build(), self.task)
        if fault:
            _logger.warning("the model is executed dense, since it cannot work with sparse layers: %s", fault)
        return fault is None

    @cached_property
    def initial(self) -> dict[str, Tensor]:
        """The state of the model with its initial weights, which follow from the scenario's seed.

        Raises
        ------
        UserError
            Where the server has them from a file, which a device does not read.
        """
        if self.scenario.model.weights is not None:
            raise UserError("initial weights are those of model.weights, which the server alone reads")
        return get_state(self._build())

    @cached_property
    def whole(self) -> nn.Module:
        """The whole dense model, of which a client may hold a part: what is evaluated."""
        return tasks.build_model(self.scenario, self.task).to(self.device)

    def _build(self) -> nn.Module:
        return self.client_class.build_model(self.scenario, self.task)

    @cached_property
    def _outline(self) -> tuple[nn.Module, ModelCost]:
        """The model without values, and its costs: from a copy that is built for this and dropped."""
        module = self._build()
        return without_values(module), ModelCost.of(module, self.task)

    @property
    def cost(self) -> ModelCost:
        """The model's cost model."""
        return self._outline[1]

    @cached_property
    def layout(self) -> Layout:
        """What the model's state looks like on the wire."""
        return Layout.of(self._outline[0])

    @cached_property
    def once(self) -> Layout:
        """What of the state is frozen, and travels once."""
        return self.layout.only(frozen_names(self._outline[0]))

    @cached_property
    def travelling(self) -> Layout:
        """What of the state travels in every round."""
        return self.layout.without(self.once.shapes)

    @cached_property
    def profiles(self) -> list[DeviceProfile]:
        """The device that the scenario gives each client, by client number."""
        clients = self.scenario.clients
        return client_profiles(clients.devices, clients.count, self.scenario.seed, clients.churn)

    @cached_property
    def client_class(self) -> type[Client]:
        """The training algorithm of the scenario's clients; a look-up in all that is installed.

        A scenario as `fedprune.server.check.resolve` returns it names it, and nothing of the server is
        imported. For any other the strategy is asked.
        """
        scenario = self.scenario
        name = scenario.clients.algorithm
        if name is None:
            strategy = registry.load("strategy", scenario.strategy.name, scenario.directory)
            name = registry.named_by(strategy, "client", "sparse")
        found: type[Client] = registry.load("client", name, scenario.directory)
        return found

    @cached_property
    def masks(self) -> Callable[[bytes, str], Masks]:
        """Decode a mask payload; the clients of a site mostly hold the same few."""

        @lru_cache(maxsize=8)
        def decode(payload: bytes, version: str) -> Masks:
            return decode_masks(payload, self.layout.shapes, version=version)

        return decode

    @cached_property
    def codec(self) -> Callable[[Masks], StateCodec]:
        """The codec of a mask."""

        @lru_cache(maxsize=8)
        def make(masks: Masks) -> StateCodec:
            return StateCodec(self.travelling, masks, self.scenario.wire.values)

        return make

    @cached_property
    def updates(self) -> Updates | None:
        """How clients send updates in place of trained values; None where they send the latter."""
        return Updates.of(self.scenario, {name for name, _ in self._outline[0].named_parameters()})

    @cached_property
    def frozen(self) -> Callable[[Masks, Supermasks], FrozenNetwork]:
        """The frozen weights under masks, for clients that learn supermasks."""

        @lru_cache(maxsize=8)
        def make(masks: Masks, settings: Supermasks) -> FrozenNetwork:
            return FrozenNetwork(self.module, self.initial, masks, settings)

        return make
