"""The scenario: a federation described in one YAML file, as typed, validated, immutable models.

Everything that a run depends on is a field here, with its unit and its range; a wrong value is refused
before anything runs, with the file, the line and what would be right. Files of devices are read with the
scenario, which from then on holds what they say. Whether a named strategy, model, data set or device
exists is not looked up here: `fedprune.server.check` does that.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from fedprune.errors import ScenarioError
from fedprune.scenario import yaml_file as documents
from fedprune.scenario.device_files import ProfileEntry, read_profiles, read_trace
from fedprune.scenario.validation import explain, refuse
from fedprune.scenario.yaml_file import KeyPath, Origin
from fedprune.units import ByteRate, Bytes, FlopRate
from fedprune.wording import did_you_mean, show

_FILE_PLUGIN = re.compile(r".+\.py:\w+")


def _directory(info: ValidationInfo) -> Path:
    """Return the folder that relative paths start from: the scenario file's, else the working one."""
    directory: Path | None = (info.context or {}).get("directory")
    return directory or Path.cwd()


def _absolute_path(path: Path, info: ValidationInfo) -> Path:
    """Start a relative path from the scenario's folder or, where nothing is there, from the working one.

    The second is what a person means who types a path after ``--set``.
    """
    beside = Path(os.path.abspath(_directory(info) / path.expanduser()))
    here = Path(os.path.abspath(path.expanduser()))
    return here if here.exists() and not beside.exists() else beside


def _absolute_plugins(value: Any, info: ValidationInfo) -> Any:
    """Make the path of every "file.py:Name" absolute, so that it means the same file everywhere."""
    if isinstance(value, str) and _FILE_PLUGIN.fullmatch(value):
        file, _, name = value.rpartition(":")
        return f"{_absolute_path(Path(file), info)}:{name}"
    if isinstance(value, list):
        return [_absolute_plugins(item, info) for item in value]
    if isinstance(value, dict):
        return {key: _absolute_plugins(item, info) for key, item in value.items()}
    return value


def _file(path: Path, info: ValidationInfo) -> Path:
    """Make the path of a file that is read with the scenario absolute; refuse one that does not exist."""
    absolute = _absolute_path(path, info)
    if not absolute.is_file():
        near = did_you_mean(absolute.name, (file.name for file in absolute.parent.glob("*")))
        raise ValueError(f"{absolute} is no file{near or ': correct it'}")
    return absolute


def _list_of_devices(value: Any) -> Any:
    """Return devices given as a mapping, client's number -> device, as the list of them."""
    if not isinstance(value, dict):
        return value
    by_number: dict[int, Any] = {}
    for key, device in value.items():
        if not str(key).isdecimal():
            raise ValueError(
                f"{show(value)} is not a list of devices, nor a device for each client: {show(key)} is no "
                "client's number; write for example {0: raspberry-pi-4, 1: laptop}"
            )
        if isinstance(device, dict) and (extra := device.keys() & {"share", "count"}):
            raise ValueError(f"client {key} is one client: leave out {' and '.join(sorted(extra))}")
        of_client = {"profile": device} if isinstance(device, str) else device
        by_number[int(key)] = {**of_client, "count": 1} if isinstance(of_client, dict) else of_client
    if missing := [number for number in range(len(by_number)) if number not in by_number]:
        raise ValueError(
            f"no device for client {missing[0]}: give one to every client from 0 on, or write a list with "
            "shares or counts"
        )
    return [by_number[number] for number in sorted(by_number)]


def _number_or_auto(value: object) -> object:
    """Refuse what is neither a whole number nor "auto" in one sentence instead of one for each."""
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{value!r} is not a number of workers: write a whole number from 1 on, or auto")
    return value


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


PluginName = Annotated[str, Field(min_length=1), AfterValidator(_absolute_plugins)]
"""A built-in name, an entry point, "package.module:Name" or "file.py:Name", whose path becomes absolute."""

Fraction = Annotated[float, Field(ge=0, lt=1)]

ChannelsOrSide = Annotated[int, Field(ge=1)]

Classes = Annotated[int, Field(ge=2)] | Annotated[tuple[str, ...], Field(min_length=2)]


class _Spec(BaseModel):
    """What all parts of a scenario share: no unknown keys, no silent conversions, no changes afterwards."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )


class _PluginSpec(_Spec):
    """A plug-in's name with options of its own, which are checked against the plug-in, not here."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Annotated[Any, AfterValidator(_absolute_plugins)]] = Field(init=False)

    @property
    def options(self) -> dict[str, Any]:
        """The plug-in's own options: every key but ``name``."""
        return dict(self.model_extra or {})


class _ChoiceSpec(_Spec):
    """A spec in which some keys belong to one choice: refused, and left out of a dump, under another."""

    chooser: ClassVar[str]
    """The field that chooses."""
    keys_of: ClassVar[Mapping[str, tuple[str, ...]]]
    """Choice to the keys that belong to it; keys named nowhere belong to all."""

    def _foreign(self) -> dict[str, str]:
        """Return every key that does not belong to the choice made, with the choices that it belongs to."""
        chosen = self.keys_of.get(getattr(self, self.chooser), ())
        owners: dict[str, list[str]] = {}
        for choice, keys in self.keys_of.items():
            for key in keys:
                owners.setdefault(key, []).append(choice)
        return {key: " or ".join(choices) for key, choices in owners.items() if key not in chosen}

    @model_validator(mode="after")
    def _refuse_foreign_keys(self) -> Self:
        for key, owners in self._foreign().items():
            if key in self.model_fields_set:
                raise refuse(
                    key,
                    f"belongs to {self.chooser} {owners}, but {self.chooser} is "
                    f"{getattr(self, self.chooser)}: leave it out",
                )
        return self

    @model_serializer(mode="wrap")
    def _without_foreign_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        foreign = self._foreign()
        return {key: value for key, value in handler(self).items() if key not in foreign}


class ModelSpec(_PluginSpec):
    """The model and the options of its factory, such as ``width``."""

    name: PluginName = Field(
        description="The model: a built-in one such as cnn or resnet18, or 'package.module:Name' or "
        "'file.py:Name'; the other keys are its options.",
        examples=["cnn", "resnet18"],
    )


class StrategySpec(_PluginSpec):
    """The strategy and its own options, such as ``density``."""

    name: PluginName = Field(
        description="The strategy: a built-in one, a stock Flower one such as "
        "flwr.serverapp.strategy.FedAdam, or 'package.module:Name' or 'file.py:Name'; the other keys are its "
        "options.",
        examples=["fedavg", "static"],
    )


class PartitionSpec(_ChoiceSpec):
    """How the training images are split over the clients."""

    chooser = "scheme"
    keys_of: ClassVar = {
        "iid": (),
        "dirichlet": ("alpha",),
        "pathological": ("classes_per_client",),
        "shard": ("shards_per_client",),
    }

    scheme: Literal["iid", "dirichlet", "pathological", "shard"] = Field(
        default="iid",
        description="How labels are spread: iid (evenly), dirichlet (skewed by alpha), pathological (a few "
        "classes a client) or shard (a few runs of images sorted by label).",
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


class DataSpec(_Spec):
    """The data set, and who gets which part of it."""

    name: PluginName = Field(
        default="digits",
        description="The data set: a built-in one such as digits or cifar10, a Hugging Face hub name, or "
        "'package.module:Name' or 'file.py:Name'.",
    )
    path: Annotated[Path, AfterValidator(_absolute_path)] | None = Field(
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
        description="Number of classes, or their names in the order of their numbers, for devices with data "
        "of their own; known for built-in data sets.",
        examples=[10, ["cat", "dog"]],
    )
    augment: tuple[Literal["crop", "flip"], ...] = Field(
        default=(),
        strict=False,
        description="Random changes of training images: crop (shifted) and flip (mirrored).",
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


class OptimizerSpec(_ChoiceSpec):
    """The optimizer of a client's training steps."""

    chooser = "name"
    keys_of: ClassVar = {"sgd": ("momentum", "nesterov"), "adam": ("betas", "eps")}

    name: Literal["sgd", "adam"] = Field(default="sgd", description="The optimizer: sgd or adam.")
    lr: float = Field(default=0.05, gt=0, description="Learning rate of the first round.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty on the weights.")
    nesterov: bool = Field(default=False, description="Whether the momentum of sgd is Nesterov's.")
    betas: tuple[Fraction, Fraction] = Field(
        default=(0.9, 0.999),
        strict=False,
        description="Decay of adam's averages of the gradient and of its square.",
    )
    eps: float = Field(default=1e-8, gt=0, description="Number that adam adds to the denominator.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise refuse("nesterov", "needs a momentum above 0: add 'momentum: 0.9'")
        return self


class ScheduleSpec(_ChoiceSpec):
    """How the learning rate falls over the rounds."""

    chooser = "name"
    keys_of: ClassVar = {
        "constant": (),
        "cosine": ("end_factor",),
        "cubic": ("end_factor",),
        "linear": ("end_factor",),
    }

    name: Literal["constant", "cosine", "cubic", "linear"] = Field(
        default="constant", description="The shape in which the learning rate falls over the rounds."
    )
    end_factor: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Where the learning rate falls to by the end, as a share of the first round's.",
    )


class TrainingSpec(_Spec):
    """What a client does with its data in a round."""

    epochs: int = Field(default=1, ge=1, description="Passes over a client's data in a round.")
    batch_size: int = Field(default=32, ge=1, description="Images in a training step.")
    optimizer: OptimizerSpec = Field(
        default=OptimizerSpec(), description="The optimizer of a client's training steps."
    )
    schedule: ScheduleSpec = Field(
        default=ScheduleSpec(), description="How the learning rate falls over the rounds."
    )
    proximal_mu: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the FedProx term that pulls a client towards the global model.",
    )
    execution: Literal["auto", "dense", "sparse"] = Field(
        default="auto",
        description="How pruned layers are computed: dense under a mask, sparse on their kept weights alone, "
        "or auto: sparse where that is faster by a layer's shape, its density, the batch and the CPU.",
    )


class DeviceShare(_Spec):
    """A kind of device, by a profile's name or by its numbers, and which part of the clients has it.

    One whose profile stands in ``clients.profiles`` has the name and, from that file, the numbers.
    """

    numbers: ClassVar = ("memory", "compute", "downlink", "uplink")
    details: ClassVar = ("name", "joules_per_flop", "joules_per_byte")

    profile: str | None = Field(
        default=None,
        description="Name of a device profile, a built-in one such as raspberry-pi-4 or one in the file "
        "clients.profiles; instead of the numbers.",
    )
    name: str | None = Field(
        default=None, min_length=1, description="How results call a device that is given by its numbers."
    )
    memory: Bytes | None = Field(default=None, description="Memory in bytes, or with a unit: 64 MiB.")
    compute: FlopRate | None = Field(
        default=None, description="Sustained computing rate in FLOP per second, or with a unit: 2 GFLOP/s."
    )
    downlink: ByteRate | None = Field(
        default=None, description="Receiving rate in bytes per second, or with a unit: 20 Mbit/s."
    )
    uplink: ByteRate | None = Field(
        default=None, description="Sending rate in bytes per second, or with a unit: 5 Mbit/s."
    )
    joules_per_flop: float | None = Field(default=None, ge=0, description="Energy of a FLOP in joules.")
    joules_per_byte: float | None = Field(
        default=None, ge=0, description="Energy in joules of a byte that is sent or received."
    )
    availability: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Chance of being online in a round; where not given 1, or under clients.churn the "
        "profile's.",
    )
    dropout: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Chance of vanishing inside a round; where not given 0, or under clients.churn the "
        "profile's.",
    )
    share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the clients that have this device; the seed says which.",
    )
    count: int | None = Field(
        default=None,
        ge=1,
        description="Number of clients that have this device, in the order of their numbers; instead of the "
        "share, for all devices.",
    )

    @model_validator(mode="after")
    def _profile_or_numbers(self) -> Self:
        given = [key for key in (*self.numbers, *self.details) if getattr(self, key) is not None]
        missing = [key for key in self.numbers if key not in given]
        if self.profile is not None and given:
            raise refuse(
                given[0], f"is given beside profile {self.profile!r}: give the profile or the numbers"
            )
        if self.profile is None and missing:
            raise refuse(
                missing[0], f"is missing: a device has a profile, or all of {', '.join(self.numbers)}"
            )
        if self.count is not None and "share" in self.model_fields_set:
            raise refuse("share", "is given beside count: give one of them")
        return self

    def with_numbers(self, entries: Mapping[str, ProfileEntry]) -> DeviceShare:
        """Return this device with the numbers of its profile where that is among the entries of a file."""
        if self.profile is None or self.profile not in entries:
            return self
        own = {key: getattr(self, key) for key in type(self).model_fields if getattr(self, key) is not None}
        numbers = entries[self.profile].numbers.model_dump(exclude_none=True)
        # What was given stays known, and alone counts where the scenario is changed and read again.
        return DeviceShare.model_construct(_fields_set=self.model_fields_set, **{**numbers, **own})

    @model_serializer(mode="wrap")
    def _without_absent(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        written = {key: value for key, value in handler(self).items() if value is not None}
        if self.count is not None:
            written.pop("share", None)
        if self.profile is not None and self.memory is not None and not info.exclude_unset:
            # A dump of all values does without the file of profiles.
            written["name"] = written.pop("profile")
        return written


class ClientsSpec(_Spec):
    """The clients: how many, what they do in a round, what they run on."""

    count: int = Field(ge=1, description="Number of clients in the federation.", examples=[20])
    per_round: int = Field(
        default_factory=lambda given: given["count"],
        ge=1,
        description="Number of clients that train in a round; all where not given.",
    )
    training: TrainingSpec = Field(
        default=TrainingSpec(), description="What a client does with its data in a round."
    )
    over_budget: Literal["error", "exclude", "shrink_batch", "nest"] = Field(
        default="error",
        description="What becomes of a client whose memory is too small for a training step: error (the run "
        "is refused), exclude (it is not sampled), shrink_batch (it trains in smaller batches, with the "
        "gradients added up) or nest (it trains the largest part of the mask that fits).",
    )
    deadline: float | None = Field(
        default=None,
        gt=0,
        description="Seconds of virtual time after which the server waits no longer for a round's training; "
        "who is late is dropped. Where not given it waits for all.",
    )
    over_sample: float = Field(
        default=1.0,
        ge=1,
        description="How many times per_round clients are asked to train; the first per_round replies, in "
        "virtual time, are taken.",
    )
    churn: bool = Field(
        default=False,
        description="Whether devices come and go by the chances of their profiles; chances that are given "
        "with a device always count.",
    )
    profiles: Annotated[Path, AfterValidator(_file)] | None = Field(
        default=None,
        strict=False,
        description="A YAML file with device profiles of your own, in the form of the built-in ones; "
        "relative to the scenario's folder, or else to the working directory.",
    )
    trace: Annotated[Path, AfterValidator(_file)] | None = Field(
        default=None,
        strict=False,
        description="A CSV file with a row for each client, instead of devices: the columns memory, compute, "
        "downlink and uplink, and where wanted availability, dropout and name. Rows beyond the number of "
        "clients are not used.",
    )
    devices: Annotated[
        tuple[DeviceShare, ...],
        BeforeValidator(
            _list_of_devices,
            json_schema_input_type=tuple[DeviceShare, ...] | dict[str, str | DeviceShare],
        ),
    ] = Field(
        default=(),
        strict=False,
        validate_default=True,
        description="The devices that the clients have: a list of kinds with shares that sum to 1 or counts "
        "that sum to the number of clients, or a mapping from every client's number, from 0, to a device.",
    )

    @field_validator("devices", mode="after")
    @classmethod
    def _read_files(cls, devices: tuple[DeviceShare, ...], info: ValidationInfo) -> tuple[DeviceShare, ...]:
        """Put in what the files say, so that a scenario does not need them any more."""
        trace, profiles = info.data.get("trace"), info.data.get("profiles")
        if trace is not None:
            if devices:
                raise ValueError("is given beside clients.trace: give the devices or the trace")
            rows = read_trace(trace)[: info.data.get("count")]
            return tuple(DeviceShare(**row, count=1) for row in rows)
        if profiles is not None:
            entries = read_profiles(profiles)
            return tuple(device.with_numbers(entries) for device in devices)
        return devices

    @model_serializer(mode="wrap")
    def _without_files(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        written = dict(handler(self))
        if not info.exclude_unset:
            # The devices hold what the files say.
            for file in ("profiles", "trace"):
                written.pop(file, None)
        return written

    @model_validator(mode="before")
    @classmethod
    def _null_is_all(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("per_round", ...) is None:
            return {key: value for key, value in given.items() if key != "per_round"}
        return given

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.per_round > self.count:
            raise refuse(
                "per_round",
                f"{self.per_round} clients a round, but clients.count is {self.count}: "
                f"write at most {self.count}",
            )
        if self.devices:
            self._check_shares()
        return self

    def _check_shares(self) -> None:
        counts = [device.count for device in self.devices]
        if None in counts:
            if any(counts):
                raise refuse("devices", "some have a count and some have not: give one to each, or shares")
            total = sum(device.share for device in self.devices)
            if abs(total - 1) > 1e-6:
                raise refuse("devices", f"the shares sum to {total:.6g}: change them so that they sum to 1")
        elif (clients := sum(filter(None, counts))) != self.count:
            key, what = ("devices", "is for") if self.trace is None else ("trace", "has")
            raise refuse(
                key,
                f"{what} {clients} clients, but clients.count is {self.count}: make them the same number",
            )


class WireSpec(_Spec):
    """How messages are encoded."""

    values: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        default="float32", description="Number format in which weights travel."
    )


class EvaluationSpec(_Spec):
    """When and on what the global model is tested."""

    every: int = Field(default=1, ge=1, description="Rounds from one evaluation to the next.")
    clients: bool | Literal["all"] = Field(
        default=False,
        description="Whether the clients also test the model, each on its own data: true (those of the "
        "round) or all (every client that is online).",
    )
    batch_size: int = Field(default=256, ge=1, description="Images in an evaluation step.")


class EngineSpec(_Spec):
    """What the simulation runs on; results do not depend on it."""

    workers: Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)] = Field(
        default="auto", description="Number of worker processes; auto: one for each core or GPU."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where training runs: cpu, cuda, or auto: cuda where there is one."
    )
    ray_address: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="Address of a running Ray cluster; null: one is started on this machine."
    )
    timeout: float = Field(
        default=3600.0, gt=0, description="Longest time in seconds to wait for the replies to all messages."
    )
    task_timeout: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Longest time in seconds that one task may run on a worker, which is then replaced; "
        "null: as long as timeout.",
    )
    checkpoint_every: int = Field(
        default=1,
        ge=0,
        description="Rounds from one checkpoint to the next, from which `fedprune resume` goes on; 0: never.",
    )


FaultName = Literal[
    "exception", "hang", "late", "corrupt", "not_finite", "wrong_shape", "huge", "kill_worker"
]
Share = Annotated[float, Field(ge=0, le=1)]


class FaultAt(_Spec):
    """A fault that one client has in one round."""

    round: int = Field(ge=1, description="The round.")
    client: int = Field(ge=0, description="The client's number, from 0.")
    fault: FaultName = Field(description="What goes wrong, by the names of the shares.")


class FaultsSpec(_Spec):
    """Faults that a simulation injects into training tasks; none where not given.

    A task, a client's part in a round, has one fault at most. It is drawn by the scenario's seed, the
    round and the client alone.
    """

    exception: Share = Field(
        default=0.0, description="Share of tasks in which the client's code raises an error."
    )
    hang: Share = Field(
        default=0.0,
        description="Share of tasks that never end; engine.task_timeout must say how long to wait for them.",
    )
    late: Share = Field(
        default=0.0, description="Share of tasks whose reply comes after the server has stopped waiting."
    )
    corrupt: Share = Field(
        default=0.0, description="Share of tasks whose reply arrives cut short or with a flipped bit."
    )
    not_finite: Share = Field(
        default=0.0, description="Share of tasks whose reply holds numbers that are not finite."
    )
    wrong_shape: Share = Field(
        default=0.0,
        description="Share of tasks whose reply has more values than the model, in another shape.",
    )
    huge: Share = Field(default=0.0, description="Share of tasks whose reply is larger than any good one.")
    kill_worker: Share = Field(
        default=0.0,
        description="Share of tasks during which the worker process is killed, each time it is run.",
    )
    at: tuple[FaultAt, ...] = Field(
        default=(),
        strict=False,
        description="Faults of certain clients in certain rounds, in the place of a draw.",
    )

    @property
    def shares(self) -> dict[FaultName, float]:
        """The share of each fault, in the order in which a draw goes through them."""
        return {name: getattr(self, name) for name in get_args(FaultName)}

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self.at) or any(self.shares.values())

    def may_have(self, fault: FaultName) -> bool:
        """Return whether a task may have this fault."""
        return self.shares[fault] > 0 or any(each.fault == fault for each in self.at)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        total = sum(self.shares.values())
        if total > 1 + 1e-9:
            largest = max(self.shares, key=lambda name: self.shares[name])
            raise refuse(largest, f"the shares of all faults sum to {total:.6g}: they must sum to at most 1")
        places = [(each.round, each.client) for each in self.at]
        for number, place in enumerate(places):
            if place in places[:number]:
                raise refuse(
                    f"at.{number}",
                    f"client {place[1]} has a fault in round {place[0]} already: give it one at most",
                )
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value}


class Scenario(_Spec):
    """A federation: read one with `load_scenario`, or make one with `Scenario.from_mapping`.

    Immutable, comparable, hashable and picklable. Two scenarios are equal when they describe the same
    federation, whatever file each came from.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run and of its folder: letters, digits, '.', '_' and '-', the first a "
        "letter or a digit.",
        examples=["my-run"],
    )
    seed: int = Field(default=0, ge=0, description="Seed that every random draw of the run derives from.")
    rounds: int = Field(ge=1, description="Number of federated rounds.", examples=[30])
    model: ModelSpec = Field(description="The model that the federation trains.", examples=[{"name": "cnn"}])
    data: DataSpec = Field(default=DataSpec(), description="The data set, and who gets which part of it.")
    clients: ClientsSpec = Field(
        description="The clients: how many, what they do in a round, what they run on.",
        examples=[{"count": 20}],
    )
    strategy: StrategySpec = Field(
        description="The federated pruning method and its options.", examples=[{"name": "fedavg"}]
    )
    wire: WireSpec = Field(default=WireSpec(), description="How messages are encoded.")
    evaluation: EvaluationSpec = Field(
        default=EvaluationSpec(), description="When and on what the global model is tested."
    )
    engine: EngineSpec = Field(
        default=EngineSpec(), description="What the simulation runs on; results do not depend on it."
    )
    faults: FaultsSpec = Field(
        default=FaultsSpec(),
        description="Faults that a simulation injects into training tasks; none where not given.",
    )

    _directory: Path = PrivateAttr(default_factory=Path.cwd)
    _origin: Origin = PrivateAttr(default_factory=Origin)

    def model_post_init(self, context: Any, /) -> None:
        """Keep where the scenario came from, given as the validation context."""
        for name, value in (context or {}).items():
            setattr(self, f"_{name}", value)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.evaluation.clients and self.data.client_test_fraction == 0:
            raise refuse(
                "evaluation.clients",
                "the clients have no test images: set data.client_test_fraction, for example to 0.2",
            )
        for number, each in enumerate(self.faults.at):
            if each.round > self.rounds:
                raise refuse(
                    f"faults.at.{number}.round", f"{each.round} is after the last round, {self.rounds}"
                )
            if each.client >= self.clients.count:
                last = self.clients.count - 1
                raise refuse(
                    f"faults.at.{number}.client", f"there is no client {each.client}: they are 0 to {last}"
                )
        if self.faults.may_have("hang") and self.engine.task_timeout is None:
            raise refuse(
                "faults", "a task that hangs needs an end: set engine.task_timeout, for example to 60"
            )
        return self

    @property
    def directory(self) -> Path:
        """The folder of the scenario's file, which relative paths in it start from."""
        return self._directory

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any], directory: Path | str | None = None) -> Scenario:
        """Return the scenario that a mapping of plain values describes.

        Parameters
        ----------
        content : Mapping[str, Any]
            What a scenario file holds, as Python values.
        directory : Path or str, optional
            The folder that relative paths start from; the working directory where not given.

        Raises
        ------
        ScenarioError
            Where it describes no federation; one line for each mistake.
        """
        return cls._validated(content, Path(directory or "."), Origin())

    @classmethod
    def _validated(cls, content: Mapping[str, Any], directory: Path, origin: Origin) -> Scenario:
        context = {"directory": Path(os.path.abspath(directory)), "origin": origin}
        try:
            return cls.model_validate(dict(content), context=context)
        except ValidationError as error:
            raise ScenarioError("\n".join(origin.complaint(*item) for item in explain(error, cls))) from None

    def override(self, **changes: Any) -> Scenario:
        """Return the scenario with some values replaced, validated again.

        Parameters
        ----------
        **changes
            Key to value; keys are joined by "." or by "__":
            ``override(strategy__density=0.1)``, ``override(**{"clients.devices.0.share": 0.5})``.

        Raises
        ------
        ScenarioError
            Where a key is unknown or a value impossible.

        Examples
        --------
        >>> plan = {"name": "x", "rounds": 3, "model": {"name": "cnn"}, "clients": {"count": 4}}
        >>> scenario = Scenario.from_mapping({**plan, "strategy": {"name": "fedavg"}})
        >>> scenario.override(clients__count=8).clients.per_round
        8
        """
        # What was never set stays open, so that a default which depends on another value follows it.
        content = self.model_dump(mode="json", exclude_unset=True)
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        changed, origin = documents.override(content, self._origin, dotted)
        return self._validated(changed, self._directory, origin)

    def complaint(self, key: KeyPath, message: str) -> str:
        """Return one line that says where in which file the value at a key path stands, and the message."""
        return self._origin.complaint(key, message)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of all values, defaults included; the same in every process."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()

    def to_yaml(self) -> str:
        """Return the scenario with all values resolved, as YAML that reads back to an equal scenario."""
        return documents.write(self.model_dump(mode="json"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scenario):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def load_scenario(path: Path | str, overrides: Mapping[str, object] | None = None) -> Scenario:
    """Read a scenario file.

    Parameters
    ----------
    path : Path or str
        A YAML file.
    overrides : Mapping[str, object], optional
        Dotted key to value, put in place of the file's: ``{"strategy.density": "0.1"}``. Text is read as
        YAML, as if it stood in the file.

    Raises
    ------
    ScenarioError
        Where the file cannot be read or describes no federation; one line for each mistake, with the file,
        the line, the key and what would be right.
    """
    path = Path(path)
    content, origin = documents.read(path)
    values = {
        key: documents.parse(value, f"--set {key}") if isinstance(value, str) else value
        for key, value in (overrides or {}).items()
    }
    changed, origin = documents.override(content, origin, values, prefix="--set ")
    return Scenario._validated(changed, path.parent, origin)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a scenario file, by which an editor completes one.

    The names of the strategies, models and data sets that are installed are its examples.
    """
    from fedprune import registry

    schema = Scenario.model_json_schema()
    for spec, kind in (("StrategySpec", "strategy"), ("ModelSpec", "model"), ("DataSpec", "data")):
        schema["$defs"][spec]["properties"]["name"]["examples"] = registry.names(kind)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "fedprune scenario",
    }
