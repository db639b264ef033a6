"""The section ``model``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from fedprune.scenario.base import PluginName, PluginSpec, absolute_path, defaults_left_out


class ModelSpec(PluginSpec):
    """The model, what of it is trained, and the options of its factory, such as ``width``."""

    name: PluginName = Field(
        description="The model: a built-in one such as cnn or resnet18, 'package.module:Name', "
        "'file.py:Name', or one of timm as 'timm:name'; the other keys are its options.",
        examples=["cnn", "resnet18"],
    )
    weights: Annotated[Path, AfterValidator(absolute_path)] | None = Field(
        default=None,
        strict=False,
        description="A safetensors file of the values that the model begins with, in place of those drawn by "
        "the seed: a model of fedprune's, or a checkpoint; read on the server alone. Relative to the "
        "scenario's folder, or else to the working directory.",
        examples=["vit.safetensors"],
    )
    frozen: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="What is not trained, and sent to a client once: patterns on the names of parameters, "
        "buffers and layers.",
    )
    trainable: tuple[str, ...] | None = Field(
        default=None,
        strict=False,
        description="What alone is trained, as patterns; all that frozen does not match, where not given.",
    )

    @property
    def factory(self) -> dict[str, Any]:
        """The model's name and its factory's options: what it takes to build it."""
        return {"name": self.name, **self.options}

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A scenario that names none of these is what it was before there were any: the same digest.
        absent = defaults_left_out(self, ("weights", "frozen", "trainable"))
        return {key: value for key, value in handler(self).items() if key not in absent}
