"""The section ``model``."""

from __future__ import annotations

from pydantic import Field

from fedprune.scenario.base import PluginName, PluginSpec


class ModelSpec(PluginSpec):
    """The model and the options of its factory, such as ``width``."""

    name: PluginName = Field(
        description="The model: a built-in one such as cnn or resnet18, or 'package.module:Name' or "
        "'file.py:Name'; the other keys are its options.",
        examples=["cnn", "resnet18"],
    )
