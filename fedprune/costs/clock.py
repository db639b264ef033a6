"""Virtual time: how long a task would take on its device.

Pure functions of a device and of what was counted, so virtual time never depends on the speed of
the machine that simulates. Real time is measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import floor

from fedprune.costs.devices import DeviceProfile


def task_seconds(profile: DeviceProfile, bytes_down: int, flops: int, bytes_up: int) -> float:
    """Seconds that a device needs to receive a task, compute it and send the reply, one after the other."""
    return bytes_down / profile.downlink + flops / profile.compute + bytes_up / profile.uplink


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
