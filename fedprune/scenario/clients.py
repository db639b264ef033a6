"""The section ``clients``: how many, what they do in a round, their devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from fedprune.scenario.base import PluginName, Spec, existing_file
from fedprune.scenario.device_files import read_profiles, read_trace
from fedprune.scenario.devices import DeviceShare, list_of_devices
from fedprune.scenario.training import TrainingSpec
from fedprune.scenario.validation import refuse


class ClientsSpec(Spec):
    """The clients: how many, what they do in a round, what they run on."""

    count: int = Field(ge=1, description="Number of clients in the federation.", examples=[20])
    per_round: int = Field(
        default_factory=lambda given: given["count"],
        ge=1,
        description="Number of clients that train in a round; all where not given.",
    )
    algorithm: PluginName | None = Field(
        default=None,
        description="The training algorithm of the clients: a built-in one such as sparse, or "
        "'package.module:Name' or 'file.py:Name'; the strategy's own where not given.",
        examples=["sparse"],
    )
    training: TrainingSpec = Field(
        default=TrainingSpec(), description="What a client does with its data in a round."
    )
    over_budget: Literal["error", "exclude", "shrink_batch", "nest"] = Field(
        default="error",
        description="What to do with a client whose memory is too small for a training step: error (the run "
        "is refused), exclude (it is not sampled), shrink_batch (it trains in smaller batches, with the "
        "gradients added up) or nest (it trains the largest part of the mask that fits).",
    )
    deadline: float | None = Field(
        default=None,
        gt=0,
        description="Seconds of virtual time that the server waits for a round's training; stragglers are "
        "dropped. Where not given it waits for all.",
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
    profiles: Annotated[Path, AfterValidator(existing_file)] | None = Field(
        default=None,
        strict=False,
        description="A YAML file with device profiles of your own, in the form of the built-in ones; "
        "relative to the scenario's folder, or else to the working directory.",
    )
    trace: Annotated[Path, AfterValidator(existing_file)] | None = Field(
        default=None,
        strict=False,
        description="A CSV file with a row for each client, instead of devices: the columns memory, compute, "
        "downlink and uplink, and where wanted availability, dropout and name. Rows beyond the number of "
        "clients are not used.",
    )
    devices: Annotated[
        tuple[DeviceShare, ...],
        BeforeValidator(
            list_of_devices,
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
