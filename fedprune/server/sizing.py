"""What a scenario asks of a device, and on which devices it fits.

Here a scenario's strategy, model and data become a `TrainingStep`, whose memory `fedprune.costs.fit` compares
with devices. Nothing is trained and no more data is read than its shape takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fedprune import data, registry, tasks
from fedprune.costs.devices import DeviceProfile, client_profiles, profiles
from fedprune.costs.fit import TrainingStep, largest_batch, largest_density, micro_batch, nested_counts
from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import MemoryBreakdown, Overhead, executed_memory, optimizer_slots
from fedprune.errors import UserError
from fedprune.scenario import Scenario
from fedprune.server.algorithm import client_class
from fedprune.server.budgets import assumed_distribution
from fedprune.server.strategy import PruningStrategy
from fedprune.server.submodels import SubmodelStrategy, part_of
from fedprune.sparsity.distributions import Distribution
from fedprune.sparsity.masks import Masks, keep_highest
from fedprune.sparsity.pruning import prunable
from fedprune.sparsity.structure import Group, channel_groups, masks_of, prune_units
from fedprune.tasks import Task
from fedprune.training.execution import rule_of, smaller_model, sparse_model

#: Where the search for the largest batch stops; a client rarely has more examples.
MOST_EXAMPLES = 4096
_MOST_EXAMPLES_RUN = 256  # The same for a model that can't be traced without data, and is run.
_HANDFUL = 8


@dataclass(frozen=True)
class Fit:
    """Whether a scenario fits a device.

    Parameters
    ----------
    device
        The device.
    peak
        Predicted bytes of a training step at the density and batch that were asked for.
    density
        The largest density that fits at that batch; None where none does.
    batch
        The largest batch that fits at that density, at most ``Sizing.most``; None where none does.
    """

    device: DeviceProfile
    peak: int
    density: float | None
    batch: int | None

    @property
    def fits(self) -> bool:
        """Whether the step fits."""
        return self.peak <= self.device.memory


@dataclass(frozen=True)
class Sizing:
    """What a scenario's clients do in a training step.

    Parameters
    ----------
    step
        The step.
    distribution
        Name of the layer distribution that is assumed.
    density, batch
        What the scenario asks for.
    share
        Where clients have submodels, the smallest share of channels: the step is of that one.
    """

    step: TrainingStep
    distribution: str
    density: float
    batch: int
    share: float | None = None

    @property
    def what(self) -> str:
        """What is trained, in words."""
        if self.share is not None:
            return f"with {self.share:g} of the channels, the smallest submodel,"
        return f"at density {self.density:g}"

    @property
    def most(self) -> int:
        """The largest batch that is looked for."""
        traced = all(parameter.is_meta for parameter in self.step.cost.skeleton.parameters())
        return MOST_EXAMPLES if traced else _MOST_EXAMPLES_RUN

    def trains(self, device: DeviceProfile, policy: str) -> bool:
        """Return whether a device can train under a policy of ``clients.over_budget``."""
        kept, step = self.step.kept(self.density), self.step.at(self.density)
        if step.memory_of(kept, self.batch).total <= device.memory:
            return True
        if policy == "shrink_batch":
            return micro_batch(step, kept, self.batch, device.memory) is not None
        return policy == "nest" and nested_counts(step, kept, self.batch, device.memory) is not None

    def on(self, device: DeviceProfile) -> Fit:
        """Return what of this fits a device."""
        return Fit(
            device=device,
            peak=self.step.memory(self.density, self.batch).total,
            density=largest_density(self.step, device.memory, self.batch),
            batch=largest_batch(self.step, device.memory, self.density, self.most),
        )


def sizing(scenario: Scenario, density: float | None = None, batch: int | None = None) -> Sizing:
    """Return what the clients of a scenario do in a training step, under its strategy's target density.

    Parameters
    ----------
    scenario
        One that `fedprune.server.check.check` has passed.
    density, batch
        In place of the scenario's.

    Raises
    ------
    UserError
        For a density outside (0, 1], or a batch that is empty or that the model can't train on.

    Notes
    -----
    What a method keeps in rounds that adjust masks (top-k gradients, importance) is not counted, and a
    method that starts denser than its target needs more at first.
    """
    if density is not None and not 0 < density <= 1:
        raise UserError(f"density is {density}, expected a number above 0 and at most 1")
    if batch is not None and batch < 1:
        raise UserError(f"batch is {batch}, expected at least 1")
    strategy = registry.load("strategy", scenario.strategy.name, scenario.directory)
    options = _options(scenario, strategy)
    task = tasks.build(scenario, data.describe(scenario))
    algorithm = client_class(scenario, strategy)
    module = algorithm.local_model(scenario, task, tasks.build_model(scenario, task))
    asked = options["density"] if density is None else density
    try:
        shapes = {n: tuple(module.get_parameter(n).shape) for n in prunable(module, options["keep"])}
    except UserError:
        if asked < 1:
            raise
        shapes = {}  # A model with nothing to prune is trained as it is.
    groups = _groups(module, task, options) if shapes and options["unit"] == "channel" else []
    if groups:
        shapes = {group.name: shapes.get(group.name, (group.units,)) for group in groups}
    distribution_name, distribution = assumed_distribution(scenario, options.get("distribution"), shapes)
    training = scenario.clients.training
    step = TrainingStep(
        cost=ModelCost.of(module, task),
        shapes=shapes,
        distribution=distribution,
        slots=optimizer_slots(training.optimizer.name, training.optimizer.momentum),
        overhead=_overhead(scenario, strategy, options),
        channels=_channels(module, groups, distribution) if groups else None,
    )
    batch = training.batch_size if batch is None else batch
    if issubclass(strategy, SubmodelStrategy) and groups:
        share = min(options["shares"])
        smallest = masks_of({group: part_of(group, share) for group in groups}, module)
        step = replace(step, cost=step.cost.under(smallest), shapes={}, channels=None)
        return Sizing(step, distribution_name, asked, batch, share)
    return Sizing(step, distribution_name, asked, batch)


def _groups(module: nn.Module, task: Task, options: Mapping[str, Any]) -> list[Group]:
    inputs = task.info.inputs.random(2, torch.Generator().manual_seed(0))
    try:
        return channel_groups(module, inputs, options["keep"])
    except UserError:
        if options["density"] < 1:
            raise
        return []


def _channels(
    module: nn.Module, groups: Sequence[Group], distribution: Distribution
) -> Callable[[float], Masks]:
    """Return a function from a density to masks that keep the first channels, as many as it allows."""

    @lru_cache(maxsize=128)
    def make(density: float) -> Masks:
        try:
            return prune_units(
                module,
                groups,
                criterion=_ones,
                distribution=distribution,
                density=density,
                example=torch.empty(0),
            )
        except UserError:
            if not 0 < density <= 1:
                raise
            return masks_of({group: torch.arange(group.units) < 1 for group in groups}, module)

    return make


def _ones(module: nn.Module, names: Sequence[str], **_: Any) -> dict[str, Tensor]:
    """Score all weights alike."""
    return {name: torch.ones_like(module.get_parameter(name)) for name in names}


@dataclass(frozen=True)
class Execution:
    """What the clients' training step takes in this process, in the execution that a scenario asks for.

    Parameters
    ----------
    sparse, pruned
        How many layers are executed sparse, and how many have a mask.
    memory
        Predicted bytes; None where the model is executed whole.
    smaller
        Whether it is a smaller dense model that is trained, without the pruned channels.
    """

    sparse: int
    pruned: int
    memory: MemoryBreakdown | None
    smaller: bool = False


def execution_of(scenario: Scenario, asked: Sizing) -> Execution:
    """Return what a step takes in this process, under random masks of the densities that are asked for."""
    step = asked.step
    if step.channels is not None:
        masks = step.channels(asked.density)
        small = smaller_model(step.cost.skeleton, masks, step.cost.task)
        if small is None:
            return Execution(0, len(masks), None)
        slots = step.slots + step.overhead.slots
        memory = executed_memory(small.module, step.cost.task, asked.batch, slots=slots)
        return Execution(0, len(masks), memory, smaller=True)
    counts = step.kept(asked.density) if asked.density < 1 else {}
    generator = torch.Generator().manual_seed(scenario.seed)
    masks = keep_highest(
        {name: torch.rand(step.shapes[name], generator=generator) for name in counts}, counts
    )
    strategy = registry.load("strategy", scenario.strategy.name, scenario.directory)
    can = client_class(scenario, strategy).executes_sparse
    rule = rule_of(scenario.clients.training, step.cost) if can else None
    model = sparse_model(step.cost.skeleton, masks, rule, step.cost.task) if rule and masks else None
    if model is None:
        return Execution(0, len(masks), None)
    slots = step.slots + step.overhead.slots
    memory = executed_memory(model.module, step.cost.task, asked.batch, slots=slots)
    return Execution(len(masks) - len(model.held), len(masks), memory)


def devices_of(scenario: Scenario | None = None) -> list[DeviceProfile]:
    """Return the profiles that there are, and after them the other devices of a scenario's clients.

    Of more than a handful of such devices, as a trace has, only the one with the least memory is there.
    """
    if scenario is None:
        return list(profiles().values())
    known = profiles(scenario.clients.profiles)
    others = dict.fromkeys(
        device for device in clients_of(scenario) if not _same_hardware(known.get(device.name), device)
    )
    few = others if len(others) <= _HANDFUL else [min(others, key=lambda device: device.memory)]
    return [*known.values(), *few]


def _same_hardware(one: DeviceProfile | None, other: DeviceProfile) -> bool:
    return one is not None and all(
        getattr(one, key) == getattr(other, key) for key in ("memory", "compute", "downlink", "uplink")
    )


def clients_of(scenario: Scenario) -> list[DeviceProfile]:
    """Return the device of each client of a scenario."""
    clients = scenario.clients
    return client_profiles(clients.devices, clients.count, scenario.seed, clients.churn)


def _options(scenario: Scenario, strategy: Callable[..., Any]) -> dict[str, Any]:
    """Return the options of a pruning strategy with its defaults; a stock Flower strategy prunes nothing."""
    if not (isinstance(strategy, type) and issubclass(strategy, PruningStrategy)):
        base = PruningStrategy.Options().model_dump()
        return {**base, "aggregator": {"name": scenario.strategy.name, **scenario.strategy.options}}
    return registry.place_defaults(strategy.Options.model_validate(scenario.strategy.options)).model_dump()


def _overhead(scenario: Scenario, strategy: type, options: Mapping[str, Any]) -> Overhead:
    """Return what the strategy's clients keep besides, as their class says."""
    stock = options.get("aggregator")
    told = stock.get("proximal_mu", 0.0) if isinstance(stock, dict) else 0.0
    return client_class(scenario, strategy).overhead(told or scenario.clients.training.proximal_mu, options)
