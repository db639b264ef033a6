"""Virtual time: how long a task would take on its device.

Pure functions of a device and of what was counted, so virtual time never depends on the speed of
the machine that simulates. Real time is measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import floor

from fedprune.costs.devices import DeviceProfile


def task_seconds(profile: DeviceProfile, bytes_down: int, flops: int, bytes_up: int) -> float:
    """Seconds that a device needs to receive a task, compute it and send the reply, one after the other."""
    return bytes_down / profile.downlink + flops / profile.compute + bytes_up / profile.uplink


@dataclass(frozen=True)
class ServerPart:
    """What the server does of a client's training, where it takes part in it.

    Parameters
    ----------
    flops : Callable[[int], int]
        What the server computes for how many examples, forward and backward.
    compute : float
        FLOP/s that it has for each client.
    round_trip : float
        Seconds that a message and its answer take besides their transfer and what is computed.
    """

    flops: Callable[[int], int]
    compute: float
    round_trip: float

    def seconds(self, examples: int, trips: int) -> float:
        """Return how long a client waits: for what the server computes, and for messages on their way."""
        return self.flops(examples) / self.compute + trips * self.round_trip


def done_by(
    profile: DeviceProfile, bytes_down: int, flops: int, bytes_up: int, seconds: float
) -> tuple[int, int, int]:
    """Return what of a task a device has done after some seconds: bytes received, FLOPs, bytes sent.

    All of it, where the task takes no longer.
    """
    if task_seconds(profile, bytes_down, flops, bytes_up) <= seconds:
        return bytes_down, flops, bytes_up
    computing = seconds - bytes_down / profile.downlink
    sending = computing - flops / profile.compute
    return (
        _done(bytes_down, profile.downlink, seconds),
        _done(flops, profile.compute, computing),
        _done(bytes_up, profile.uplink, sending),
    )


def _done(amount: int, rate: float, seconds: float) -> int:
    return min(amount, max(0, floor(rate * seconds)))


def round_seconds(tasks: Iterable[float]) -> float:
    """Seconds of a round whose tasks run side by side: those of the slowest; 0 without tasks."""
    return max(tasks, default=0.0)
