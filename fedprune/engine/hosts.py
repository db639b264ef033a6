"""What a run's clients run on: Ray's workers, or this process. Results do not depend on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import Tensor, nn

from fedprune import data as datasets
from fedprune.client.app import FederatedClientApp
from fedprune.client.site import Site
from fedprune.costs.flops import ModelCost
from fedprune.costs.ledger import Listener
from fedprune.data import FederatedData, Source
from fedprune.determinism import make_deterministic
from fedprune.engine.cluster import cluster
from fedprune.engine.fault_injection import FaultyClientApp
from fedprune.engine.local_grid import LocalGrid
from fedprune.engine.simulated_grid import SimulatedGrid
from fedprune.scenario import Scenario
from fedprune.server.federation import announce
from fedprune.wire import Layout, largest_reply


class Host(Protocol):
    """Where a run gets its data and the grid of its clients from."""

    def load(self, scenario: Scenario) -> FederatedData:
        """Return the data of a scenario."""

    def grid(
        self,
        scenario: Scenario,
        data: FederatedData,
        largest: int,
        listeners: Sequence[Listener],
        frozen: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Return a context manager of the grid of the scenario's clients.

        ``largest`` is the most bytes of a reply; ``listeners`` are told what is being started; ``frozen`` is
        the frozen part of the clients' model, by name.
        """

    @property
    def pretrained(self) -> Path | None:
        """A folder that keeps models after pretraining, for runs that begin alike; None: none is kept."""


@dataclass(frozen=True)
class OnRay:
    """Workers on Ray: the cluster at ``engine.ray_address``, Ray as it is initialised, or one of its own."""

    pretrained: Path | None = None

    def load(self, scenario: Scenario) -> FederatedData:
        """Read the data of a scenario."""
        return datasets.load(scenario)

    @contextmanager
    def grid(
        self,
        scenario: Scenario,
        data: FederatedData,
        largest: int,
        listeners: Sequence[Listener],
        frozen: Mapping[str, Tensor] | None = None,
    ) -> Iterator[SimulatedGrid]:
        """Start what is not running yet, and the workers; end them afterwards."""
        engine = scenario.engine
        announce(listeners, "starting Ray" if engine.ray_address is None else "joining the Ray cluster")
        with cluster(engine) as placement:
            from fedprune.engine.grid import RayGrid  # Here: it needs Ray, which a device lacks.

            workers = "1 worker" if placement.workers == 1 else f"{placement.workers} workers"
            announce(listeners, f"starting {workers}")
            with RayGrid(
                build_client_app,
                [{}] * scenario.clients.count,
                workers=placement.workers,
                resources=resources(scenario, data, placement.device, frozen),
                gpus_per_worker=placement.gpus_per_worker,
                same_shapes=False,  # The strategy knows which shapes it expects, and checks them.
                task_timeout=engine.task_timeout,
                largest_reply=largest,
            ) as grid:
                yield grid


@dataclass(frozen=True)
class InProcess:
    """This process, for one of many runs side by side.

    Parameters
    ----------
    source : Source, optional
        What the scenario's data set holds, where it is read already.
    device : str
        What PyTorch computes on.
    """

    source: Source | None = None
    device: str = "cpu"
    pretrained: Path | None = None

    def load(self, scenario: Scenario) -> FederatedData:
        """Divide the data that is there; read it where none is."""
        return datasets.load(scenario, self.source)

    @contextmanager
    def grid(
        self,
        scenario: Scenario,
        data: FederatedData,
        largest: int,
        listeners: Sequence[Listener],
        frozen: Mapping[str, Tensor] | None = None,
    ) -> Iterator[SimulatedGrid]:
        """Build the clients' app here."""
        yield LocalGrid(
            build_client_app,
            [{}] * scenario.clients.count,
            resources=resources(scenario, data, self.device, frozen),
            same_shapes=False,
            largest_reply=largest,
        )


def can_run_in_process(scenario: Scenario) -> bool:
    """Say whether no task of a scenario may end its process or hang in it, as far as the scenario says."""
    may_end = any(scenario.faults.may_have(fault) for fault in ("hang", "kill_worker"))
    return not may_end and scenario.engine.task_timeout is None


@cache
def _import_ahead() -> None:
    """Have PyTorch import now what it imports as the first step is traced: no task's time is for that."""
    ModelCost.of(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten()), (1, 2, 2))


def resources(
    scenario: Scenario, data: FederatedData, device: str, frozen: Mapping[str, Tensor] | None
) -> dict[str, Any]:
    """Return what every worker needs: the arguments of `build_client_app`.

    Frozen values are NumPy's: Ray then lets all workers read one copy.
    """
    arrays = None if frozen is None else {name: tensor.numpy() for name, tensor in frozen.items()}
    return {"scenario": scenario, "data": data, "device": device, "frozen": arrays}


def build_client_app(
    scenario: Scenario, data: FederatedData, device: str, frozen: Mapping[str, NDArray[Any]] | None = None
) -> ClientApp:
    """Return the client app of a simulation; a worker calls it once.

    Without ``frozen`` each client keeps the frozen values that it is sent, as a device does.
    """
    make_deterministic(scenario.engine.instructions)
    tensors = None if frozen is None else {name: torch.tensor(array) for name, array in frozen.items()}
    site = Site(scenario, data, torch.device(device), frozen_state=tensors)
    _import_ahead()
    app = FederatedClientApp(lambda context: site)
    if not scenario.faults.any:
        return app
    # The server's limit is by the whole model, of which a client may hold a part.
    return FaultyClientApp(app, scenario, largest_reply(Layout.of(site.whole)))
