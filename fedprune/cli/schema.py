"""`fedprune schema`."""

from __future__ import annotations

import json


def schema() -> None:
    """Print the JSON Schema of scenario files, for an editor."""
    from fedprune.scenario import json_schema

    print(json.dumps(json_schema(), indent=2))
