"""The section ``data``: the data set, and how it is partitioned over the clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fedprune.scenario.base import (
    ChoiceSpec,
    Fraction,
    PluginName,
    PluginSpec,
    Spec,
    absolute_path,
    defaults_left_out,
)
from fedprune.scenario.validation import refuse
from fedprune.wording import show


def _number_or_names(value: object) -> object:
    """Refuse what is neither a number of classes nor their names in one sentence instead of one for each."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 2):
        return value
    if isinstance(value, list | tuple):
        names = [name for name in value if isinstance(name, str) and name]
        if len(set(names)) == len(value) >= 2:
            return tuple(names)
    raise ValueError(
        f"{show(value)} is neither a number of classes, from 2 on, nor a list of two or more different "
        'names: write for example 10 or ["cat", "dog"], names that look like numbers in quotes'
    )


ChannelsOrSide = Annotated[int, Field(ge=1)]

Classes = Annotated[int, Field(ge=2)] | Annotated[tuple[str, ...], Field(min_length=2)]


class PartitionSpec(ChoiceSpec):
    """How the training images are split over the clients."""

    chooser = "scheme"
    keys_of: ClassVar = {
        "iid": (),
        "dirichlet": ("alpha",),
        "pathological": ("classes_per_client",),
        "shard": ("shards_per_client",),
        "natural": ("column",),
    }

    left_out: ClassVar = frozenset({"min_examples", "column"})

    scheme: Literal["iid", "dirichlet", "pathological", "shard", "natural"] = Field(
        default="iid",
        description="How labels are spread: iid (evenly), dirichlet (skewed by alpha), pathological (a few "
        "classes a client) or shard (a few runs of images sorted by label). Or natural: by whose examples "
        "they are, as a column or the data set's source says; of more than clients.count, so many are drawn.",
    )
    alpha: float = Field(
        default=0.5,
        gt=0,
        description="Concentration of the Dirichlet distribution: the smaller, the more skewed.",
    )
    classes_per_client: int = Field(
        default=2, ge=1, description="Classes that a client has under pathological."
    )
    shards_per_client: int = Field(default=2, ge=1, description="Shards that a client gets under shard.")
    column: str | None = Field(
        default=None,
        description="The column that says whose an example is, under natural; not needed where the data "
        "set's source says it by itself.",
        examples=["user_id"],
    )
    min_examples: int = Field(
        default=0,
        ge=0,
        description="Fewest examples that a client may get, those that it holds out among them: a division "
        "that gives one less is drawn again, and refused in the end. With 0 clients may have few, or none.",
    )


class AugmentSpec(PluginSpec):
    """A random change of training inputs, with options."""

    name: PluginName = Field(description="An augmentation's name, or 'file.py:function'.")


class ShiftSpec(PluginSpec):
    """What makes clients' inputs differ, with options."""

    name: PluginName = Field(description="A shift's name, or 'file.py:function'.")


class DataSpec(Spec):
    """The data set, and who gets which part of it."""

    name: PluginName = Field(
        default="digits",
        description="The data set: a built-in one such as digits or cifar10, a Hugging Face hub name, or "
        "'package.module:Name' or 'file.py:Name'.",
    )
    path: Annotated[Path, AfterValidator(absolute_path)] | None = Field(
        default=None,
        strict=False,
        description="Where the data set lies, a file or a folder; relative to the scenario's folder, or else "
        "to the working directory.",
    )
    partition: PartitionSpec = Field(
        default=PartitionSpec(), description="How the training images are split over the clients."
    )
    server_fraction: Fraction = Field(
        default=0.0,
        description="Share of the training images that the server keeps as public data, from 0 to below 1; "
        "no client has them.",
    )
    client_test_fraction: Fraction = Field(
        default=0.0, description="Share of each client's images that it tests on, from 0 to below 1."
    )
    train_examples: int | None = Field(
        default=None,
        ge=1,
        description="Number of training images to use, drawn at random; all where not given.",
    )
    test_examples: int | None = Field(
        default=None,
        ge=1,
        description="Number of test images to use, drawn at random; all where not given.",
    )
    options: dict[str, Any] = Field(
        default={},
        description="What else the data set's source wants to know, such as the columns of a table or the "
        "length of a window; see the documentation of data.",
        examples=[{"target": "income"}],
    )
    image_column: str | None = Field(
        default=None, description="Name of the column with the images; found by itself where not given."
    )
    label_column: str | None = Field(
        default=None, description="Name of the column with the labels; found by itself where not given."
    )
    input_shape: tuple[ChannelsOrSide, ChannelsOrSide, ChannelsOrSide] | None = Field(
        default=None,
        strict=False,
        description="Channels, height and width of an image, for devices with data of their own, which "
        "can't see the data set; known for built-in data sets.",
        examples=[[3, 32, 32]],
    )
    classes: Annotated[Classes | None, BeforeValidator(_number_or_names)] = Field(
        default=None,
        description="Number of classes, or their names in the order of their numbers. Examples of classes "
        "that are not named are left out. Needed for devices with data of their own; known for built-in data "
        "sets.",
        examples=[10, ["cat", "dog"]],
    )
    inputs: dict[str, Any] | None = Field(
        default=None,
        description="What a model takes where that is no image, for devices with data of their own: kind, "
        "shape, task and settings. `fedprune deploy init` writes it.",
    )
    resize: tuple[ChannelsOrSide, ChannelsOrSide] | None = Field(
        default=None,
        strict=False,
        description="Height and width that images of any size are made; all must have one size where not "
        "given.",
        examples=[[96, 96]],
    )
    fit: Literal["crop", "stretch"] = Field(
        default="crop",
        description="How images of other proportions become that size: crop cuts out their middle, stretch "
        "distorts them.",
    )
    channels: Literal[1, 3] | None = Field(
        default=None,
        description="Makes all images grey, 1, or coloured, 3; as they are found where not given.",
    )
    bits: Literal[8, 16] | None = Field(
        default=None,
        description="Bits of a pixel's value; where not given 16 for grey images that have as many, else 8.",
    )
    lazy: bool = Field(
        default=False,
        description="Whether images are decoded batch by batch, whenever they are needed, and not all at the "
        "start: for tables larger than memory.",
    )
    augment: tuple[PluginName | AugmentSpec, ...] = Field(
        default=(),
        strict=False,
        description="Random changes of training inputs, in this order: names that `fedprune list "
        "augmentations` shows, such as crop (shifted) and flip (mirrored), or mappings of name and options.",
        examples=[["crop", {"name": "random_erasing", "probability": 0.25}]],
    )
    client_shift: ShiftSpec | None = Field(
        default=None,
        description="What makes each client's inputs differ, drawn once for each: rotation, noise, gain, "
        "microphone or a function of your own, with its options.",
        examples=[{"name": "rotation", "degrees": 30}],
    )
    mean: tuple[float, ...] | None = Field(
        default=None,
        min_length=1,
        strict=False,
        description="Mean of each channel, of pixels from 0 to 1; the data set's own where not given.",
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None,
        min_length=1,
        strict=False,
        description="Standard deviation of each channel, of pixels from 0 to 1; the data set's own where not "
        "given.",
    )

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What came later changes no older scenario's digest.
        later = ("inputs", "resize", "fit", "channels", "bits", "lazy", "client_shift")
        default = defaults_left_out(self, later)
        return {key: value for key, value in handler(self).items() if key not in default}

    @model_validator(mode="after")
    def _mean_with_std(self) -> Self:
        if (self.mean is None) != (self.std is None):
            given, missing = ("mean", "std") if self.std is None else ("std", "mean")
            raise refuse(given, f"is given without {missing}: give both or neither")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise refuse(
                "std", f"has {len(self.std)} numbers, but mean has {len(self.mean)}: give one a channel"
            )
        return self
