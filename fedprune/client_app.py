"""Flower's ``ClientApp`` for a scenario, on a device or on Flower's simulation runtime.

``flwr run .`` loads ``app`` from here. Which client a node is, on what device and with what data, its node
config says; see `fedprune.node_config`.
"""

from __future__ import annotations

from functools import lru_cache

from flwr.app import Context

from fedprune import data as datasets
from fedprune.app_config import scenario_of
from fedprune.client import FederatedClientApp, Site
from fedprune.determinism import make_deterministic
from fedprune.node_config import client_number, data_place, device_profile, peak_resident_bytes


@lru_cache(maxsize=1)
def _site(run_config: tuple[tuple[str, object], ...], node_config: tuple[tuple[str, object], ...]) -> Site:
    """Build the site; Flower's simulation runtime keeps processes between messages."""
    make_deterministic()
    scenario, node = scenario_of(dict(run_config)), dict(node_config)  # type: ignore[arg-type]
    place, number = data_place(node), client_number(node)
    data = datasets.load(scenario) if place is None else datasets.load_own(place, scenario, number)
    return Site(scenario, data, profile=device_profile(node, scenario))


def _find_site(context: Context) -> Site:
    return _site(tuple(sorted(context.run_config.items())), tuple(sorted(context.node_config.items())))


app = FederatedClientApp(_find_site, peak_resident_bytes)
