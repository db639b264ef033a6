"""What the node config of a SuperNode says: which client it is, on what device, with what data.

An example: ``partition-id=3 device="raspberry-pi-4" memory="512 MiB" data="/home/pi/images"``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from pydantic import ValidationError

from fedprune.costs.devices import DeviceProfile, profiles, resolve
from fedprune.errors import UserError
from fedprune.scenario import Scenario
from fedprune.scenario.device_files import DeviceNumbers
from fedprune.scenario.validation import explain
from fedprune.wording import did_you_mean

NodeConfig = Mapping[str, object]

_NUMBERS = tuple(DeviceNumbers.model_fields)
_NEEDED = ("memory", "compute", "downlink", "uplink")


def client_number(config: NodeConfig) -> int:
    """Return the number of the client that a node is.

    Raises
    ------
    UserError
        Where the node config does not say it.
    """
    number = config.get("partition-id")
    if not isinstance(number, int) or isinstance(number, bool):
        raise UserError(
            f"partition-id in the node config is {number!r}: give the client's number, from 0, which no "
            "other device has"
        )
    return number


def data_place(config: NodeConfig) -> str | None:
    """Return where a device's own data is, None for one that takes its part of the scenario's."""
    place = config.get("data")
    if place is None:
        return None
    if not isinstance(place, str) or not place:
        raise UserError(f'data in the node config is {place!r}: give a path or "module:load", in quotes')
    return place


def device_profile(config: NodeConfig, scenario: Scenario) -> DeviceProfile | None:
    """Return what a device says that it is, None for one that is what the scenario says.

    ``device`` is the name of a profile, and numbers as in a scenario replace its own or, where there are
    all that are needed, make one. A device is online while its SuperNode runs and vanishes as it will: the
    chances of both are those of a simulation, and left out.

    Raises
    ------
    UserError
        For a profile that does not exist, or a number that is none.
    """
    name = config.get("device")
    given = {key: config[key] for key in _NUMBERS if key in config}
    if name is None and not given:
        return None
    known = profiles(scenario.clients.profiles)
    base = known.get(str(name))
    missing = [key for key in _NEEDED if key not in given] if base is None else []
    if missing and name is None:
        raise UserError(
            f"the node config gives {', '.join(given)} and no device: name one, or give {', '.join(missing)}"
        )
    if missing:
        raise UserError(
            f"device in the node config is {name!r}: no such profile{did_you_mean(str(name), known)} "
            f"(known here: {', '.join(known)}; one of your own also needs {', '.join(missing)})"
        )
    numbers = {} if base is None else {key: getattr(base, key) for key in _NUMBERS}
    try:
        checked = DeviceNumbers.model_validate({**numbers, "availability": 1.0, "dropout": 0.0, **given})
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, key))}: {what}" for key, what in explain(error, DeviceNumbers))
        raise UserError(f"the node config's device: {said}") from None
    label = "custom" if name is None else str(name)
    if base is not None and given:
        label += f" ({', '.join(f'{key} {value}' for key, value in given.items())})"
    return resolve(label=label, **checked.model_dump())


def peak_resident_bytes() -> float:
    """Return the most memory that this process has held so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)
