"""Flower's ``ClientApp`` for a scenario, on Flower's simulation runtime or on a device.

``flwr run .`` loads ``app`` from here. The client's number is ``partition-id`` in the node config.
"""

from __future__ import annotations

from functools import lru_cache

from flwr.app import Context

from fedprune import data as datasets
from fedprune.app_config import scenario_of
from fedprune.client import FederatedClientApp, Site
from fedprune.determinism import make_deterministic


@lru_cache(maxsize=1)
def _site(run_config: tuple[tuple[str, object], ...]) -> Site:
    """Build the site once a process; Flower's runtime keeps processes between messages."""
    make_deterministic()
    scenario = scenario_of(dict(run_config))  # type: ignore[arg-type]
    return Site(scenario, datasets.load(scenario))


def _find_site(context: Context) -> Site:
    return _site(tuple(sorted(context.run_config.items())))


app = FederatedClientApp(_find_site)
