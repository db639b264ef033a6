"""HideNseek (Vallapuram et al. 2022): server-side pruning and sign supermasks.

The server prunes a randomly initialised network once, without data, by synaptic flow (SynFlow, Tanaka et
al., NeurIPS 2020). What is kept is frozen, and both sides draw it from a seed. Clients learn the signs
alone: each sends one bit a weight, the server takes the vote, weighted by examples, and sends one bit a
weight back. A tie leaves a sign as it was.

With ``train_dense`` batch norm, biases and the last layer are trained and sent as usual; with
``aggregate: mean`` the server sends the vote itself in ``vote_bits`` bits. By default neither is on, and
clients learn signs alone, as in the paper.

References
----------
- A. K. Vallapuram, P. Zhou, Y. D. Kwon, L. H. Lee, H. Xu, P. Hui: HideNseek: Federated Lottery Ticket via
  Server-side Pruning and Sign Supermask. 2022, arXiv 2206.04385.
- H. Tanaka, D. Kunin, D. L. K. Yamins, S. Ganguli: Pruning neural networks without any data by iteratively
  conserving synaptic flow. NeurIPS 2020, arXiv 2006.05467.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from flwr.serverapp import Grid
from pydantic import Field

from fedprune import seeds
from fedprune.protocol.supermasks import LearningOptions, Supermasks
from fedprune.server.aggregation import Aggregator, State, WeightedMean
from fedprune.server.strategy import PruningStrategy


class SignVote(WeightedMean):
    """The sign of the clients' weighted vote; where it is a tie, the sign that was before."""

    def begin(self, server_round: int, state: State, messages: list[int]) -> Mapping[str, Any]:
        """Remember the signs."""
        self._before = state
        return super().begin(server_round, state, messages)

    def finish(self) -> State:
        """Return the frozen weights with the voted signs."""
        voted = super().finish()
        assert self._codec is not None
        for name in self._codec.masks:
            before = self._before[name]
            voted[name] = torch.where(voted[name] == 0, before, voted[name].sign() * before.abs())
        return voted


class HideNseek(PruningStrategy):
    """HideNseek (Vallapuram et al. 2022): prune without data, freeze, and let clients vote on signs."""

    client = "supermask"
    mean = SignVote

    class Options(LearningOptions, PruningStrategy.Options):
        """How the network is pruned, how clients learn signs, and what the server sends of the vote."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights.")
        criterion: str = Field("synflow", description="What scores a weight; see `fedprune list criteria`.")
        distribution: str = Field("global", description="How much each layer keeps: uniform, erk or global.")
        iterations: int | None = Field(
            None, ge=1, description="Pruning steps; the criterion's own where not given, 1 is a single shot."
        )
        aggregate: Literal["sign", "mean"] = Field(
            "sign", description="What the server sends: the sign of the vote, or the vote in vote_bits bits."
        )
        vote_bits: int = Field(8, ge=1, le=16, description="Bits a weight of a vote that is sent as a mean.")

    options: Options

    def supermasks(self) -> Supermasks:
        """Clients learn signs."""
        voted = self.options.aggregate == "sign"
        learning = self.options.model_copy(update={"vote_bits": 1}) if voted else self.options
        return Supermasks("sign", learning, seeds.derive(self.scenario.seed, "weights"))

    def make_mean(self) -> Aggregator:
        """Return what takes the vote."""
        return SignVote() if self.options.aggregate == "sign" else WeightedMean()

    def prepare(self, grid: Grid) -> None:
        """Prune the network as it was drawn, and freeze it."""
        options = self.options
        self.draw()
        self.freeze(self.pruned(options.criterion, options.distribution, iterations=options.iterations))
