"""Device profiles: what hardware a client has, and which client has which.

A profile is plain numbers in SI units. The built-in ones stand in ``profiles.yaml``, each number
with its source; a user's file of the same form
adds others. What to do with a client whose memory is too small is not decided here.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from itertools import count as count_from
from math import floor, isfinite
from pathlib import Path

from fedprune import seeds
from fedprune.errors import ScenarioError
from fedprune.scenario import DeviceShare
from fedprune.scenario.device_files import ProfileEntry, read_profiles

DEFAULT_PROFILE = "raspberry-pi-4"  #: What clients are where a scenario names no devices.
_MOST = 2**60  # Of bytes, FLOP/s and bytes/s: what a message can say, and sums of times stay finite.
_SLOWEST = 1e-3
_ALWAYS_THERE = {"availability": 1.0, "dropout": 0.0}


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
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for key in ("memory", "compute", "downlink", "uplink"):
            value = getattr(self, key)
            if not (isfinite(value) and 0 < value <= _MOST):
                raise ScenarioError(
                    f"device {self.name!r}: {key} is {value}, expected a number above 0 and at most 2**60"
                )
            if key != "memory" and value < _SLOWEST:
                raise ScenarioError(f"device {self.name!r}: {key} is {value}, expected at least {_SLOWEST}")
        for key in ("availability", "dropout"):
            if not 0 <= getattr(self, key) <= 1:
                raise ScenarioError(
                    f"device {self.name!r}: {key} is {getattr(self, key)}, expected a chance from 0 to 1"
                )
        for key in ("joules_per_flop", "joules_per_byte"):
            value = getattr(self, key)
            if value is not None and not (isfinite(value) and value >= 0):
                raise ScenarioError(f"device {self.name!r}: {key} is {value}, expected 0 or more")


@cache
def _built_in() -> dict[str, DeviceProfile]:
    with resources.as_file(resources.files("fedprune.costs").joinpath("profiles.yaml")) as path:
        return _of_file(read_profiles(path))


def _of_file(entries: dict[str, ProfileEntry]) -> dict[str, DeviceProfile]:
    return {
        name: DeviceProfile(name=name, source=entry.source, **entry.numbers.model_dump())
        for name, entry in entries.items()
    }


def profiles(file: Path | None = None) -> dict[str, DeviceProfile]:
    """Return the built-in profiles by name, from the weakest device to the strongest, and those of a file.

    A profile of the file takes the place of a built-in one of the same name.

    Raises
    ------
    ScenarioError
        Where the file can't be read or an entry is not right.
    """
    own = {} if file is None else _of_file(read_profiles(file))
    return {**_built_in(), **own}


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
    joules_per_flop: float | None = None,
    joules_per_byte: float | None = None,
    availability: float | None = None,
    dropout: float | None = None,
) -> DeviceProfile:
    """Return a built-in profile by name, or a custom one by at least its first four numbers.

    Parameters
    ----------
    name
        A built-in profile; numbers given as well replace its own.
    label
        How a profile without a name is called.
    memory, compute, downlink, uplink, joules_per_flop, joules_per_byte, availability, dropout
        As in `DeviceProfile`.

    Raises
    ------
    ScenarioError
        An unknown name, a number outside its range, or a number missing where no name is given.
    """
    needed = {"memory": memory, "compute": compute, "downlink": downlink, "uplink": uplink}
    details = {
        "joules_per_flop": joules_per_flop,
        "joules_per_byte": joules_per_byte,
        "availability": availability,
        "dropout": dropout,
    }
    given = {key: value for key, value in {**needed, **details}.items() if value is not None}
    if name is not None:
        return replace(profile(name), **given) if given else profile(name)  # type: ignore[arg-type]
    if missing := [key for key in needed if key not in given]:
        raise ScenarioError(f"device {label!r} has no profile: it needs {', '.join(missing)} as well")
    return DeviceProfile(name=label, **given)  # type: ignore[arg-type]


def client_profiles(
    shares: Sequence[DeviceShare], count: int, seed: int, churn: bool = False
) -> list[DeviceProfile]:
    """Return the device of each client, by client number.

    Shares are dealt by the seed; counts go in the order of the clients' numbers. Devices without a
    name are called ``custom-1``, ``custom-2``, ... in the order of the list. Without any device in the
    list, every client is a ``DEFAULT_PROFILE``. With ``churn`` the built-in profiles' chances of being
    online and of vanishing count; without, a device is always there, but for the chances that it was given.

    Raises
    ------
    ScenarioError
        A share names an unknown profile or has an impossible number.
    """
    if not shares:
        default = profile(DEFAULT_PROFILE)
        return [default if churn else replace(default, availability=1.0, dropout=0.0)] * count
    unnamed = count_from(1)
    kinds = [
        _of_share(share, share.profile or share.name or f"custom-{next(unnamed)}", churn) for share in shares
    ]
    if shares[0].count is not None:
        return [kind for kind, share in zip(kinds, shares, strict=True) for _ in range(share.count or 0)]
    return [kinds[kind] for kind in assign([share.share for share in shares], count, seed)]


def _of_share(share: DeviceShare, label: str, churn: bool) -> DeviceProfile:
    chances = {key: getattr(share, key) for key in _ALWAYS_THERE}
    if not churn:
        chances = {key: _ALWAYS_THERE[key] if chance is None else chance for key, chance in chances.items()}
    has_numbers = share.memory is not None  # Its own, or those of a profile in the scenario's file.
    return resolve(
        None if has_numbers else share.profile,
        label=label,
        memory=share.memory,
        compute=share.compute,
        downlink=share.downlink,
        uplink=share.uplink,
        joules_per_flop=share.joules_per_flop,
        joules_per_byte=share.joules_per_byte,
        **chances,
    )


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
