"""The aggregation rule that a scenario names, in place of the method's own mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedprune import registry
from fedprune.errors import PluginError
from fedprune.scenario import Scenario
from fedprune.server.aggregation import Aggregator, FlowerAggregator
from fedprune.server.federation import Federation


def named_aggregator(
    scenario: Scenario,
    spec: str | Mapping[str, Any] | None,
    parameters: Iterable[str] = (),
    *,
    not_a: type[Strategy],
) -> Aggregator | None:
    """Return the aggregation rule that ``strategy.aggregator`` names; None where it names none.

    Parameters
    ----------
    scenario : Scenario
        In whose folder files are looked for.
    spec : str or Mapping[str, Any], optional
        What ``strategy.aggregator`` says: a name, or a mapping of ``name`` and the arguments of the rule's
        constructor.
    parameters : Iterable[str]
        Names of the model's parameters, for a stock Flower strategy.
    not_a : type[Strategy]
        What does not aggregate for others.

    Raises
    ------
    PluginError
        If it names none, or a subclass of ``not_a``, or the rule does not take these arguments.
    """
    if spec is None:
        return None
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise PluginError("it needs the name of an aggregation rule as 'name'")
    # A strategy of Flower's kind that a package has installed may stand among the strategies.
    kinds = ("aggregator", "strategy")
    kind = next((kind for kind in kinds if name in registry.names(kind)), "aggregator")
    found = registry.load(kind, name, scenario.directory)
    if issubclass(found, not_a):
        raise PluginError(f"{name} is a pruning strategy: name a rule, or a stock Flower one")
    if not issubclass(found, Aggregator):
        return FlowerAggregator(found, options, parameters, scenario.seed)
    try:
        rule: Aggregator = found(**options)
    except Exception as error:  # Whatever a rule of a user's raises.
        raise PluginError(f"cannot build {found.__name__}: {error}") from error
    return rule


def flower_aggregator(
    federation: Federation, stock: type[Strategy], options: Mapping[str, Any]
) -> FlowerAggregator:
    """Return a stock Flower strategy as an aggregator for a federation."""
    names = [name for name, _ in federation.module.named_parameters()]
    return FlowerAggregator(stock, options, names, federation.scenario.seed)
