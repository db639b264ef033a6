"""Flower's ``ClientApp`` for a scenario, on a device or on Flower's simulation runtime.

``flwr run .`` loads ``app`` from here. Which client a node is, on what device and with what data, its node
config says; see `fedprune.client.node_config`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from flwr.app import Context

from fedprune import data as datasets
from fedprune.client.app import FederatedClientApp
from fedprune.client.node_config import client_number, data_place, device_profile, peak_resident_bytes
from fedprune.client.site import Site
from fedprune.compiler import leave_out
from fedprune.determinism import make_deterministic
from fedprune.protocol.run_config import scenario_of

_Config = tuple[tuple[str, object], ...]


@lru_cache(maxsize=1)
def _trial(run_config: _Config) -> Site:
    """Return the site of nodes that take their parts of the scenario's data set.

    Flower's simulation runtime has many in a process, and keeps it between messages.
    """
    scenario = scenario_of(dict(run_config))  # type: ignore[arg-type]
    make_deterministic(scenario.engine.instructions)
    return Site(scenario, datasets.open_shares(scenario))


def _find_site(context: Context) -> Site:
    run_config, node = tuple(sorted(context.run_config.items())), context.node_config
    place = data_place(node)
    if place is None:
        site = _trial(run_config)
        return replace(site, profile=profile) if (profile := device_profile(node, site.scenario)) else site
    scenario = scenario_of(context.run_config)
    make_deterministic(scenario.engine.instructions)
    data = datasets.load_own(place, scenario, client_number(node))
    return Site(scenario, data, profile=device_profile(node, scenario))


leave_out()  # A device starts a process for each message.
app = FederatedClientApp(_find_site, peak_resident_bytes)
