"""FedAvg, the dense baseline: McMahan et al., AISTATS 2017.

FedProx (Li et al., MLSys 2020) is FedAvg with ``clients.training.proximal_mu`` above 0.
"""

from __future__ import annotations

from pydantic import Field

from fedprune.server.strategy import PruningStrategy


class FedAvg(PruningStrategy):
    """Dense federated averaging (McMahan et al., AISTATS 2017)."""

    class Options(PruningStrategy.Options):
        """FedAvg prunes nothing."""

        density: float = Field(1.0, ge=1, le=1, description="Always 1: FedAvg prunes nothing.")
