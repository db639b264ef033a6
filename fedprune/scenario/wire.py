"""The section ``wire``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedprune.scenario.base import PluginName, PluginSpec, Spec, defaults_left_out
from fedprune.scenario.validation import refuse


def _named(given: Any) -> Any:
    """Return a compressor that is given by its name alone as a mapping."""
    return {"name": given} if isinstance(given, str) else given


class UpdatesSpec(PluginSpec):
    """The compressor of clients' updates and its own options, such as ``density``."""

    name: PluginName = Field(
        description="The compressor: a built-in one such as topk, or 'package.module:Name' or "
        "'file.py:Name'; the other keys are its options.",
        examples=["topk"],
    )


class WireSpec(Spec):
    """How messages are encoded."""

    values: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        default="float32", description="Number format in which weights travel."
    )
    updates: (
        Annotated[UpdatesSpec, BeforeValidator(_named, json_schema_input_type=str | UpdatesSpec)] | None
    ) = Field(
        default=None,
        description="How clients compress what they send after training, their update: a compressor's name, "
        "or a mapping of its name and options; whole values travel where not given.",
        examples=[{"name": "topk", "density": 0.01}],
    )

    history: int = Field(
        default=0,
        ge=0,
        description="How many of the states that it has sent the server remembers: a client that holds one "
        "of them is sent what has changed since, exactly, where that is smaller. Clients then keep the "
        "values that they were sent last. 0: all values are sent.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.values == "int8" and (self.updates is not None or self.history):
            key = "history" if self.updates is None else "updates"
            raise refuse(
                "values",
                f"int8 rounds whole states, and wire.{key} sends none: write float32, float16 or bfloat16",
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A scenario that names no compressor is what it was before there were any: the same digest.
        absent = defaults_left_out(self, ("updates", "history"))
        return {key: value for key, value in handler(self).items() if key not in absent}
