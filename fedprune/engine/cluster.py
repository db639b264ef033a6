"""The Ray cluster that a run uses: joined, shared or started here, and what it has to offer."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedprune.errors import RunError, UserError
from fedprune.scenario import EngineSpec

#: Several workers share a GPU, so that it is not idle while one of them prepares its data.
WORKERS_PER_GPU = 4


@dataclass(frozen=True)
class Placement:
    """How many workers a run has, what they compute on, and the share of a GPU of each."""

    workers: int
    device: str
    gpus_per_worker: float


@contextmanager
def cluster(engine: EngineSpec) -> Iterator[Placement]:
    """Have Ray ready for a run.

    Joins the cluster at ``engine.ray_address``, or uses the Ray that this process has initialised,
    or starts one on this machine and ends it afterwards.

    Raises
    ------
    UserError
        If Ray is not installed, or the cluster does not have what the scenario asks for.
    RunError
        If no cluster answers at the address, or Ray cannot start.
    """
    # Ray frees objects in batches, a second late; the replies of a second can be a gigabyte.
    os.environ.setdefault("RAY_free_objects_batch_size", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's own default is 15: on a machine that others use, a run would hardly get a core.
    os.environ |= {"RAY_worker_niceness": str(engine.niceness)}
    try:
        import ray
    except ImportError as error:
        raise UserError("running a simulation needs Ray: pip install 'fedprune[sim]'") from error

    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if engine.ray_address is None:
            # Ray starts a process for each, asked or not.
            count = (os.cpu_count() or 1) if engine.workers == "auto" else engine.workers
            options |= {"address": "local", "num_cpus": count, "include_dashboard": False}
        else:
            options["address"] = engine.ray_address
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            _knock(engine.ray_address or "")
            with _as_a_part_of_this_run():
                ray.init(**options)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray put its own in its place.
        except (OSError, ValueError, RuntimeError) as error:
            at = engine.ray_address
            message = f"engine.ray_address: no Ray cluster answers at {at!r}" if at else "Ray could not start"
            raise RunError(f"{message}: {error}") from error
    try:
        yield _placement(engine, ray.cluster_resources())  # type: ignore[no-untyped-call]
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _as_a_part_of_this_run() -> Iterator[None]:
    """Start Ray without the parts that no run uses, and out of reach of signals.

    The autoscaler's and the logs' monitor take a second of processor time to start, and one to end. A SIGTERM
    to the process group, such as a shell's ``kill %1``, would end Ray before this process receives it, and
    this process with it: so Ray gets a session of its own. It ends with this process all the same, by Linux's
    signal for a parent's death; elsewhere it stays in the group.

    ``ray.init`` has options for neither: its parts are replaced meanwhile. Flower pins the version of Ray.
    """
    from ray._private import parameter, services

    params: Any = parameter
    starter: Any = services
    before = params.RayParams, starter.ConsolePopen
    params.RayParams = partial(before[0], no_monitor=True, include_log_monitor=False)
    if sys.platform == "linux":
        starter.ConsolePopen = partial(before[1], start_new_session=True)
    try:
        yield
    finally:
        params.RayParams, starter.ConsolePopen = before


def _knock(address: str) -> None:
    """Raise an ``OSError`` if nothing listens at HOST:PORT; Ray would go on trying for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _placement(engine: EngineSpec, resources: Mapping[str, float]) -> Placement:
    cores, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
    if engine.device == "cuda" and not gpus:
        raise UserError("engine.device is cuda, but the Ray cluster has no GPU: write auto or cpu")
    device = "cuda" if gpus and engine.device != "cpu" else "cpu"
    if engine.workers == "auto":
        workers = min(cores, WORKERS_PER_GPU * gpus) if device == "cuda" else cores
    elif engine.workers > cores:
        raise UserError(f"engine.workers is {engine.workers}, but the Ray cluster has {cores} cores")
    else:
        workers = engine.workers
    return Placement(workers, device, gpus / workers if device == "cuda" else 0.0)


def return_freed_memory() -> None:
    """Have this process give large blocks back to the system as soon as they are freed.

    glibc raises the size from which it does so with every large block that is freed, and then
    keeps replies of megabytes in fragments of its heap: measured, 1 GiB for 200 replies of 4 MB
    that were dropped one by one. Elsewhere than on glibc this does nothing.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD in malloc.h; setting it ends its growth.
    try:
        ctypes.CDLL("libc.so.6").mallopt(mmap_threshold, 2**20)
    except (OSError, AttributeError):
        return
