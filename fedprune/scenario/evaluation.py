"""The section ``evaluation``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from fedprune.scenario.base import PluginName, Spec


class EvaluationSpec(Spec):
    """When and on what the global model is tested."""

    every: int = Field(default=1, ge=1, description="Rounds from one evaluation to the next.")
    clients: bool | Literal["all"] = Field(
        default=False,
        description="Whether the clients also test the model, each on its own data: true (those of the "
        "round) or all (every client that is online).",
    )
    metrics: tuple[PluginName, ...] = Field(
        default=(),
        strict=False,
        description="What else is measured besides the task's own metrics: names such as macro_f1 or "
        "confusion_matrix (`fedprune list metrics`), or 'package.module:Name' or 'file.py:Name'.",
        examples=[["macro_f1", "confusion_matrix"]],
    )
    keep_best: Literal["clients", "test"] | None = Field(
        default=None,
        description="Whether the model of the best round is kept besides the last, in best.safetensors; best "
        "by the headline metric on what the clients hold out (clients), or on the server's test data (test), "
        "which then is no independent test of it.",
    )
    batch_size: int = Field(default=256, ge=1, description="Examples in an evaluation step.")

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without these it is what it was before there were any: the same digest and files.
        written: dict[str, Any] = handler(self)
        given = {"metrics": bool(self.metrics), "keep_best": self.keep_best is not None}
        return {key: value for key, value in written.items() if given.get(key, True)}
