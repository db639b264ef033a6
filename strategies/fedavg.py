"""FedAvg (McMahan et al., AISTATS 2017): dense federated averaging, the baseline of every comparison.

Each client trains the whole model on its own data, and the server averages the results, weighted by
examples. FedProx (Li et al., MLSys 2020) is FedAvg with ``clients.training.proximal_mu`` above 0.

References
----------
- B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas: Communication-Efficient Learning of Deep
  Networks from Decentralized Data. AISTATS 2017, arXiv 1602.05629.
- T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith: Federated Optimization in Heterogeneous
  Networks. MLSys 2020, arXiv 1812.06127.
"""

from __future__ import annotations

from pydantic import Field

from fedprune.server.strategy import PruningStrategy


class FedAvg(PruningStrategy):
    """Dense federated averaging (McMahan et al., AISTATS 2017)."""

    class Options(PruningStrategy.Options):
        """FedAvg prunes nothing."""

        density: float = Field(1.0, ge=1, le=1, description="Always 1: FedAvg prunes nothing.")
