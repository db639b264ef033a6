"""What a run's clients run on: Ray's workers, or this process. Results do not depend on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from flwr.clientapp import ClientApp

from fedprune import data as datasets
from fedprune.client.app import FederatedClientApp
from fedprune.client.site import Site
from fedprune.costs.ledger import Listener
from fedprune.data import FederatedData, Source
from fedprune.determinism import make_deterministic
from fedprune.engine.cluster import cluster
from fedprune.engine.fault_injection import FaultyClientApp
from fedprune.engine.local_grid import LocalGrid
from fedprune.engine.simulated_grid import SimulatedGrid
from fedprune.scenario import Scenario
from fedprune.server.federation import announce
from fedprune.wire import largest_reply


class Host(Protocol):
    """Where a run gets its data and the grid of its clients from."""

    def load(self, scenario: Scenario) -> FederatedData:
        """Return the data of a scenario."""

    def grid(
        self, scenario: Scenario, data: FederatedData, largest: int, listeners: Sequence[Listener]
    ) -> Any:
        """Return a context manager of the grid of the scenario's clients.

        ``largest`` is the most bytes of a reply; ``listeners`` are told what is being started.
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
        self, scenario: Scenario, data: FederatedData, largest: int, listeners: Sequence[Listener]
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
                resources={"scenario": scenario, "data": data, "device": placement.device},
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
        self, scenario: Scenario, data: FederatedData, largest: int, listeners: Sequence[Listener]
    ) -> Iterator[SimulatedGrid]:
        """Build the clients' app here."""
        yield LocalGrid(
            build_client_app,
            [{}] * scenario.clients.count,
            resources={"scenario": scenario, "data": data, "device": self.device},
            same_shapes=False,
            largest_reply=largest,
        )


def can_run_in_process(scenario: Scenario) -> bool:
    """Say whether no task of a scenario may end its process or hang in it, as far as the scenario says."""
    may_end = any(scenario.faults.may_have(fault) for fault in ("hang", "kill_worker"))
    return not may_end and scenario.engine.task_timeout is None


def build_client_app(scenario: Scenario, data: FederatedData, device: str) -> ClientApp:
    """Return the client app of a simulation; a worker calls it once."""
    make_deterministic(scenario.engine.instructions)
    site = Site(scenario, data, torch.device(device))
    app = FederatedClientApp(lambda context: site)
    return FaultyClientApp(app, scenario, largest_reply(site.layout)) if scenario.faults.any else app
