"""What all tests share: quiet libraries, one PyTorch thread, one Ray for a process of pytest, an order."""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["WANDB_ERROR_REPORTING"] = "false"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from fedprune.determinism import use_portable_instructions

torch.set_num_threads(1)
use_portable_instructions()  # Here and in all processes that tests start: they compare bits.
# How long an example takes says more of the machine than of the code.
# CI draws the same examples each time: a change is judged by itself.
settings.register_profile("fedprune", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("fedprune")

_TESTS = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, keep together what shares something that is slow to make, and let it begin first.

    Deployments begin, one after the other; then what shares a Ray, folder by folder, as Ray takes seconds of
    both cores to start; then the other slow tests. The fast ones even out what is left.
    """
    for item in items:
        folder = item.path.relative_to(_TESTS).parts[0]
        if folder == "deploy":
            for mark in (pytest.mark.deploy, pytest.mark.slow, pytest.mark.timeout(1500)):
                item.add_marker(mark)
            item.add_marker(pytest.mark.xdist_group("deploy"))
        if "shared_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group(f"ray-{folder.removesuffix('.py')}"))
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))  # Beside a deployment everything takes longer.
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Return when a test is to begin; those of one turn keep their order."""
    groups = {str(mark.args[0]) for mark in item.iter_markers("xdist_group")}
    if "deploy" in groups:
        return 0
    if any(group.startswith("ray-") for group in groups):
        return 1
    return 2 if item.get_closest_marker("slow") else 3


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[None]:
    """Have Ray initialised in this process; what is tested joins it rather than starting its own."""
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore", FutureWarning)
        patch.setenv("PYTHONPATH", str(_TESTS), prepend=os.pathsep)  # Workers import the tests' apps.
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=300 * 2**20,
        )
    yield
    ray.shutdown()
