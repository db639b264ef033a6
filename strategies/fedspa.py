"""FedSpa (Huang et al. 2022): Achieving Personalized Federated Learning with Sparse Local Models.

Every client has a mask of its own, at the density, and receives and trains the weights under it alone. After
training it drops the smallest weights of each layer and grows as many by gradient, for the next time it
takes part (``swap_fraction: 0`` keeps random static masks, the paper's RSM). The server adds to each weight
the mean of what all clients of the round changed of it; one that did not hold it has changed nothing.

Differences from the paper
--------------------------
- Clients count by their examples; in the paper they count the same.
- A weight that no client holds is 0 on the server, which in the paper keeps the initial one.

References
----------
- T. Huang, S. Liu, L. Shen, F. He, W. Lin, D. Tao: Achieving Personalized Federated Learning with Sparse
  Local Models. 2022, arXiv 2201.11380.
"""

from __future__ import annotations

from fedprune.server.aggregation import OverlapMean, State, TrainReply
from fedprune.server.personalised import SwappingStrategy


class MeanChange(OverlapMean):
    """The state plus the mean change of each weight, over all clients, weighted by examples.

    Where all clients have the same masks, it is `OverlapMean`.
    """

    def begin(self, server_round: int, state: State, messages: list[int]) -> dict[str, object]:
        """Forget the last round."""
        self._weight = 0
        return dict(super().begin(server_round, state, messages))

    def add(self, reply: TrainReply) -> None:
        """Add one reply where its masks keep."""
        super().add(reply)
        self._weight += reply.weight

    def finish(self) -> State:
        """Return the moved state."""
        return {
            name: (held + (total - self._weights[name] * held) / self._weight).to(held.dtype)
            for (name, total), held in zip(self._sums.items(), self._state.values(), strict=True)
        }


class FedSpa(SwappingStrategy):
    """Personal masks that clients swap, changes averaged over all clients (Huang et al., 2022)."""

    mean = MeanChange
