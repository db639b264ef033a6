"""The JSON Schema of a scenario file."""

from __future__ import annotations

from typing import Any

from fedprune import registry
from fedprune.scenario.scenario import Scenario


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a scenario file for completion in an editor.

    The names of the strategies, models, data sets, loggers, compressors and clients that are installed are
    its examples.
    """
    schema = Scenario.model_json_schema()
    kinds = {
        "StrategySpec": "strategy",
        "ModelSpec": "model",
        "DataSpec": "data",
        "LoggerSpec": "logger",
        "UpdatesSpec": "compressor",
    }
    for spec, kind in kinds.items():
        schema["$defs"][spec]["properties"]["name"]["examples"] = registry.names(kind)
    schema["$defs"]["ClientsSpec"]["properties"]["algorithm"]["examples"] = registry.names("client")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "fedprune scenario",
    }
