"""FedRolex (Alam et al., NeurIPS 2022): submodels as a window that rolls over the channels, round by round.

With HeteroFL's first channels, those at the end are trained by the largest clients alone. Here the window of
a client's channels begins one channel later in each round, and after the last comes the first, so that all
are trained evenly, also where no client can hold the whole model.

Differences from the paper
--------------------------
- A window begins at round modulo channels of each layer (section 4.2), but all layers of a residual stage
  share one window, since their outputs are summed up.
- Batch norm as in `heterofl`; averages are weighted by examples.

References
----------
- S. Alam, L. Liu, M. Yan, M. Zhang: FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model
  Extraction. NeurIPS 2022, arXiv 2212.01548.
"""

from __future__ import annotations

from fedprune.server.submodels import SubmodelStrategy
from fedprune.sparsity.structure import Group


class FedRolex(SubmodelStrategy):
    """Clients train a window of each layer's channels that rolls on (Alam et al., NeurIPS 2022)."""

    def first_of(self, group: Group, server_round: int) -> int:
        """Return the channel at which the window begins: one further in each round."""
        return (server_round - 1) % group.units
