"""The section ``strategy``."""

from __future__ import annotations

from pydantic import Field

from fedprune.scenario.base import PluginName, PluginSpec


class StrategySpec(PluginSpec):
    """The strategy and its own options, such as ``density``."""

    name: PluginName = Field(
        description="The strategy: a built-in one, a stock Flower one such as "
        "flwr.serverapp.strategy.FedAdam, or 'package.module:Name' or 'file.py:Name'; the other keys are its "
        "options.",
        examples=["fedavg", "static"],
    )
