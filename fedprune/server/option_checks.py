"""Whether a strategy's options fit the scenario, before anything runs: the checks of every strategy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from fedprune import registry
from fedprune.errors import PluginError
from fedprune.protocol.supermasks import LearningOptions
from fedprune.scenario import Scenario
from fedprune.server.aggregation import Aggregator, OverlapMean, WeightedMean
from fedprune.server.aggregator_choice import named_aggregator
from fedprune.server.updates import update_errors
from fedprune.sparsity.criteria import needs_data, scores_scales

if TYPE_CHECKING:
    from fedprune.server.strategy import PruningStrategy


def plugin_errors(scenario: Scenario, option: str, kind: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield (option, what is wrong) for a criterion or distribution that an option names."""
    try:
        found = registry.load(kind, name, scenario.directory)
    except PluginError as error:
        yield option, str(error)
        return
    if kind == "criterion" and needs_data(found) and scenario.data.server_fraction == 0:
        yield (
            option,
            f"{name} needs data on the server: set data.server_fraction, or take a criterion without data "
            "(random, magnitude, synflow)",
        )


def dense_copy_errors(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """Yield what is wrong for a strategy whose clients train a dense copy: nested masks do not go with it."""
    if scenario.clients.over_budget == "nest":
        over = "set clients.over_budget to exclude or shrink_batch"
        yield "name", f"clients train all weights of a model, not a nested part: {over}"


def option_errors(
    scenario: Scenario,
    options: PruningStrategy.Options,
    strategy: type[PruningStrategy],
    *,
    base: type[PruningStrategy],
) -> Iterator[tuple[str, str]]:
    """Yield (option, what is wrong) for the options of any strategy; ``base`` is `PruningStrategy`."""
    for kind in ("criterion", "distribution"):
        if (name := getattr(options, kind, None)) is not None:
            yield from plugin_errors(scenario, kind, kind, name)
    yield from _unit_errors(scenario, options, strategy)
    if options.pretrain_epochs > 0 and scenario.data.server_fraction == 0:
        yield "pretrain_epochs", "pretraining needs public data: set data.server_fraction, or 0 epochs"
    rule = None
    try:
        rule = named_aggregator(scenario, options.aggregator, not_a=base)
    except PluginError as error:
        yield "aggregator", str(error)
    if isinstance(options, LearningOptions):
        yield from options.validation_errors(scenario)
    own = strategy.mean is not WeightedMean or strategy.make_mean is not base.make_mean
    if options.aggregator is not None and own:
        yield "aggregator", f"{strategy.__name__} has an aggregation of its own, which no other can replace"
    yield from _nesting_errors(scenario, options, rule, strategy)
    yield from update_errors(scenario, strategy, options)


def _unit_errors(
    scenario: Scenario, options: PruningStrategy.Options, strategy: type[PruningStrategy]
) -> Iterator[tuple[str, str]]:
    """Find that a strategy, criterion or policy is of single weights alone, or of channels alone."""
    if options.unit not in strategy.units:
        yield "unit", f"{strategy.__name__} prunes single weights alone: its masks are not made in one go"
    if options.unit == "weight":
        name = getattr(options, "criterion", None)
        with suppress(PluginError):
            if name is not None and scores_scales(registry.load("criterion", name, scenario.directory)):
                yield "criterion", f"{name} scores channels: set unit: channel"
    elif scenario.clients.over_budget == "nest":
        yield (
            "unit",
            "nested masks are of single weights: set clients.over_budget to exclude or shrink_batch, or take "
            "a strategy whose clients have channels by their memory (heterofl)",
        )


def _nesting_errors(
    scenario: Scenario,
    options: PruningStrategy.Options,
    rule: Aggregator | None,
    strategy: type[PruningStrategy],
) -> Iterator[tuple[str, str]]:
    """Find that nested masks do not go with how a strategy averages."""
    if scenario.clients.over_budget != "nest":
        return
    over = "set clients.over_budget to exclude or shrink_batch"
    if options.aggregator is not None and not isinstance(rule, OverlapMean):
        yield "aggregator", f"it cannot average nested masks, of which each client has its own: {over}"
    elif isinstance(options, LearningOptions):
        yield (
            "name",
            f"the scale of frozen weights is that of the whole mask, not of a nested one: {over}",
        )
    elif not issubclass(strategy.mean, WeightedMean | OverlapMean):
        yield "name", f"{strategy.__name__} has an average of its own, which knows no nested masks: {over}"
