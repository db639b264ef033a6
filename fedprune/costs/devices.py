"""Device profiles: what hardware a client has, and which client has which.

A profile is plain numbers in SI units. The built-in ones stand in ``profiles.yaml``, each number
with its source. What to do with a client whose memory is too small is not decided here.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from math import floor, isfinite

import yaml

from fedprune import seeds
from fedprune.errors import ScenarioError
from fedprune.scenario import DeviceShare

DEFAULT_PROFILE = "raspberry-pi-4"  #: What clients are where a scenario names no devices.


@dataclass(frozen=True)
class DeviceProfile:
    """One kind of device.

    Parameters
    ----------
    name
        How scenarios and results call it.
    memory
        Bytes that a training process may use.
    compute
        FLOP/s that training in float32 sustains.
    downlink, uplink
        Bytes per second.
    joules_per_flop, joules_per_byte
        Energy of computing and of the radio, None where unknown.
    availability
        Chance of being online in a round.
    dropout
        Chance of vanishing inside a round.
    source
        Where the numbers come from.

    Raises
    ------
    ScenarioError
        A number outside its range.
    """

    name: str
    memory: int
    compute: float
    downlink: float
    uplink: float
    joules_per_flop: float | None = None
    joules_per_byte: float | None = None
    availability: float = 1.0
    dropout: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        for field in ("memory", "compute", "downlink", "uplink"):
            value = getattr(self, field)
            if not (isfinite(value) and value > 0):
                raise ScenarioError(f"device {self.name!r}: {field} is {value}, expected a number above 0")
        for field in ("availability", "dropout"):
            if not 0 <= getattr(self, field) <= 1:
                raise ScenarioError(
                    f"device {self.name!r}: {field} is {getattr(self, field)}, expected a chance from 0 to 1"
                )
        for field in ("joules_per_flop", "joules_per_byte"):
            value = getattr(self, field)
            if value is not None and not (isfinite(value) and value >= 0):
                raise ScenarioError(f"device {self.name!r}: {field} is {value}, expected 0 or more")


@cache
def _built_in() -> dict[str, DeviceProfile]:
    text = resources.files("fedprune.costs").joinpath("profiles.yaml").read_text(encoding="utf-8")
    return {name: _read(name, entry) for name, entry in yaml.safe_load(text).items()}


def _read(name: str, entry: dict[str, dict[str, object]]) -> DeviceProfile:
    numbers = {key: item["value"] for key, item in entry.items() if key != "device"}
    sources = "; ".join(f"{key}: {item['source']}" for key, item in entry.items() if key != "device")
    return DeviceProfile(name=name, source=f"{entry['device']}. {sources}", **numbers)  # type: ignore[arg-type]


def profiles() -> dict[str, DeviceProfile]:
    """Return the built-in profiles by name, from the weakest device to the strongest."""
    return dict(_built_in())


def profile(name: str) -> DeviceProfile:
    """Return a built-in profile.

    Raises
    ------
    ScenarioError
        No profile has this name; the message gives the nearest.
    """
    known = _built_in()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3) or list(known)
    raise ScenarioError(f"device profile {name!r} is unknown; did you mean {', '.join(near)}?")


def resolve(
    name: str | None = None,
    *,
    label: str = "custom",
    memory: int | None = None,
    compute: float | None = None,
    downlink: float | None = None,
    uplink: float | None = None,
) -> DeviceProfile:
    """Return a built-in profile by name, or one of one's own by its four numbers.

    Parameters
    ----------
    name
        A built-in profile; numbers given as well replace its own.
    label
        How a profile without a name is called.
    memory, compute, downlink, uplink
        Bytes, FLOP/s, bytes/s, bytes/s.

    Raises
    ------
    ScenarioError
        An unknown name, a number outside its range, or a number missing where no name is given.
    """
    numbers = {"memory": memory, "compute": compute, "downlink": downlink, "uplink": uplink}
    given = {key: value for key, value in numbers.items() if value is not None}
    if name is not None:
        return replace(profile(name), **given) if given else profile(name)  # type: ignore[arg-type]
    if missing := [key for key in numbers if key not in given]:
        raise ScenarioError(f"device {label!r} has no profile: it needs {', '.join(missing)} as well")
    return DeviceProfile(name=label, **given)  # type: ignore[arg-type]


def client_profiles(shares: Sequence[DeviceShare], count: int, seed: int) -> list[DeviceProfile]:
    """Return the device of each client, by client number.

    A device given by its numbers is called ``custom-1``, ``custom-2``, ... by its place among the
    shares. Without any share, every client is a ``DEFAULT_PROFILE``.

    Raises
    ------
    ScenarioError
        A share names an unknown profile or has an impossible number.
    """
    if not shares:
        return [profile(DEFAULT_PROFILE)] * count
    kinds = [
        resolve(
            share.profile,
            label=f"custom-{place}",
            memory=share.memory,
            compute=share.compute,
            downlink=share.downlink,
            uplink=share.uplink,
        )
        for place, share in enumerate(shares, start=1)
    ]
    return [kinds[kind] for kind in assign([share.share for share in shares], count, seed)]


def assign(shares: Sequence[float], count: int, seed: int) -> list[int]:
    """Deal device classes to clients: class of client i at position i.

    Each class gets its exact share, rounded by largest remainder (ties to the earlier class); which
    clients get it depends on the seed alone.

    Parameters
    ----------
    shares
        Shares of the classes; only their proportions matter.
    count
        Number of clients.
    seed
        The scenario's seed.

    Raises
    ------
    ScenarioError
        No share above 0, or a negative one.
    """
    if not shares or min(shares) < 0 or not (0 < sum(shares) < float("inf")):
        raise ScenarioError(f"device shares are {list(shares)}, expected numbers from 0 with a sum above 0")
    exact = [share / sum(shares) * count for share in shares]
    counts = [floor(amount) for amount in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: count - sum(counts)]:
        counts[index] += 1
    classes = [index for index, amount in enumerate(counts) for _ in range(amount)]
    order = seeds.numpy_generator(seed, "devices").permutation(count)
    return [classes[position] for position in order]


def joules(profile: DeviceProfile, flops: int, transferred: int) -> float | None:
    """Energy of a task in joules for its FLOPs and the bytes of both ways; None where it is unknown."""
    if profile.joules_per_flop is None or profile.joules_per_byte is None:
        return None
    return flops * profile.joules_per_flop + transferred * profile.joules_per_byte
