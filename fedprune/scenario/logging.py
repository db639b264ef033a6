"""The section ``logging``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from fedprune.scenario.base import PluginName, PluginSpec


def _named(given: Any) -> Any:
    """Return a logger that is given by its name alone as a mapping."""
    return {"name": given} if isinstance(given, str) else given


class LoggerSpec(PluginSpec):
    """A logger and its own options, such as ``uri``."""

    name: PluginName = Field(
        description="The logger: a built-in one such as tensorboard, or 'package.module:Name' or "
        "'file.py:Name'; the other keys are its options.",
        examples=["tensorboard"],
    )


def each_once(loggers: Sequence[LoggerSpec]) -> Sequence[LoggerSpec]:
    """Refuse two loggers of one name: they would write into the same files."""
    names = [logger.name for logger in loggers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is given {names.count(name)} times: give each logger once")
    return loggers


Logger = Annotated[LoggerSpec, BeforeValidator(_named, json_schema_input_type=str | LoggerSpec)]
"""A logger as a scenario gives it: its name, or a mapping of its name and its options."""
