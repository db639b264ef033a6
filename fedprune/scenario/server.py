"""The section ``server``."""

from __future__ import annotations

from pydantic import Field

from fedprune.scenario.base import Spec
from fedprune.units import FlopRate


class ServerSpec(Spec):
    """What the server is where it takes part in training (split training): virtual time counts it."""

    compute: FlopRate = Field(
        default=1e13,
        description="Computing rate that the server has for each client, in FLOP per second, or with a unit.",
    )
    round_trip: float = Field(
        default=0.02,
        ge=0,
        description="Seconds that a message and its answer take besides their transfer and what is computed.",
    )
