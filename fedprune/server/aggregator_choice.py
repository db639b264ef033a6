"""The aggregator that a scenario names: a stock Flower strategy, in place of the method's own mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedprune import registry
from fedprune.errors import PluginError
from fedprune.scenario import Scenario
from fedprune.server.aggregation import FlowerAggregator
from fedprune.server.federation import Federation


def stock_aggregator(
    scenario: Scenario, spec: str | dict[str, Any] | None, *, not_a: type[Strategy]
) -> tuple[type[Strategy], dict[str, Any]] | None:
    """Return the stock Flower strategy that ``strategy.aggregator`` names, and its options.

    Parameters
    ----------
    scenario : Scenario
        In whose folder files are looked for.
    spec : str or dict, optional
        What ``strategy.aggregator`` says.
    not_a : type[Strategy]
        What does not aggregate for others.

    Raises
    ------
    PluginError
        If it names none, or a subclass of ``not_a``.
    """
    if spec is None:
        return None
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise PluginError("it needs the dotted name of a Flower strategy as 'name'")
    stock: type[Strategy] = registry.load("strategy", name, scenario.directory)
    if issubclass(stock, not_a):
        raise PluginError(f"{name} is a pruning strategy: name a stock Flower one, which aggregates")
    return stock, options


def flower_aggregator(
    federation: Federation, stock: type[Strategy], options: Mapping[str, Any]
) -> FlowerAggregator:
    """Return a stock Flower strategy as an aggregator for a federation."""
    names = [name for name, _ in federation.module.named_parameters()]
    return FlowerAggregator(stock, options, names, federation.scenario.seed)
