"""The entries of ``clients.devices``: a device class, and which clients have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from fedprune.scenario.base import Spec
from fedprune.scenario.device_files import ProfileEntry
from fedprune.scenario.validation import refuse
from fedprune.units import ByteRate, Bytes, FlopRate
from fedprune.wording import show


def list_of_devices(value: Any) -> Any:
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


class DeviceShare(Spec):
    """A device class, by a profile's name or by its numbers, and which clients have it.

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
