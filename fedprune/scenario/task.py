"""The section ``task``."""

from __future__ import annotations

from pydantic import Field

from fedprune.scenario.base import PluginName, PluginSpec


class TaskSpec(PluginSpec):
    """What is learnt, and the options of the task, such as ``label_smoothing``."""

    name: PluginName = Field(
        description="The task: a built-in one such as classification, or 'package.module:Name' or "
        "'file.py:Name'; the other keys are its options.",
        examples=["classification"],
    )
