"""The majority vote of signSGD: the sign that most clients' updates of a weight have, times their size.

It takes the place of the mean where a compressor says so (`fedprune.compression.Compressor.majority`).

References
----------
- J. Bernstein, J. Zhao, K. Azizzadenesheli, A. Anandkumar: signSGD with Majority Vote is Communication
  Efficient and Fault Tolerant. ICLR 2019, arXiv 1810.05291.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch

from fedprune.server.aggregation import OverlapMean, State, TrainReply


class MajorityVote(OverlapMean):
    """Moves each weight in the direction for which most clients that hold it vote, one vote each.

    How far: the mean magnitude of these clients' updates of it, weighted by examples. Where as many are for
    one direction as for the other, it stays. What a state has besides parameters is averaged.

    Parameters
    ----------
    parameters : Container[str]
        Names of the model's parameters.
    """

    def __init__(self, parameters: Container[str]) -> None:
        self._parameters = parameters

    def begin(self, server_round: int, state: State, messages: list[int]) -> Mapping[str, Any]:
        """Forget the last round; remember the state that clients move."""
        self._votes = {name: torch.zeros(tensor.shape) for name, tensor in state.items()}
        self._sizes = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in state.items()}
        return super().begin(server_round, state, messages)

    def add(self, reply: TrainReply) -> None:
        """Count the votes of a reply."""
        super().add(reply)
        update = reply.update
        if update is None:
            update = reply.values - reply.codec.flatten(self._state)
        for name, values in reply.codec.unflatten(update).items():
            self._votes[name] += values.sign()
            self._sizes[name].add_(values.abs(), alpha=reply.weight)

    def finish(self) -> State:
        """Return the state after the vote."""
        found = super().finish()
        for name in found:
            if name in self._parameters:
                step = self._sizes[name] / self._weights[name].clamp(min=1) * self._votes[name].sign()
                found[name] = (self._state[name].double() + step).to(found[name].dtype)
        return found
