"""The sections ``evaluation`` and ``wire``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedprune.scenario.base import Spec


class WireSpec(Spec):
    """How messages are encoded."""

    values: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        default="float32", description="Number format in which weights travel."
    )


class EvaluationSpec(Spec):
    """When and on what the global model is tested."""

    every: int = Field(default=1, ge=1, description="Rounds from one evaluation to the next.")
    clients: bool | Literal["all"] = Field(
        default=False,
        description="Whether the clients also test the model, each on its own data: true (those of the "
        "round) or all (every client that is online).",
    )
    batch_size: int = Field(default=256, ge=1, description="Images in an evaluation step.")
