"""FedPM (Isik et al., ICLR 2023): Sparse Random Networks for Federated Learning.

Weights are frozen. Clients learn with which probability each is used, and sample a {0, 1} mask in every
forward pass; each sends one sampled mask. The server keeps a Beta posterior of every probability over
the masks since the last reset, and sends its mean.

As in the paper, scores are logits, the sampled mask passes its gradient straight through to the
probability, and every client's mask counts the same.

Differences from the paper
--------------------------
- What the server sends is quantised to ``vote_bits`` bits.
- The server sends the mean of the posterior, as the authors describe; their algorithm writes its mode.
- The random network may be pruned at first (``density``), which the paper does not do.

References
----------
- B. Isik, F. Pase, D. Gunduz, T. Weissman, M. Zorzi: Sparse Random Networks for Communication-Efficient
  Federated Learning. ICLR 2023, arXiv 2209.15472.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from flwr.serverapp import Grid
from pydantic import Field
from torch import Tensor

from fedprune import seeds
from fedprune.protocol.supermasks import LearningOptions, Supermasks
from fedprune.server.aggregation import Aggregator, State, TrainReply, WeightedMean
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.pruning import all_kept, prunable
from fedprune.wire import SupermaskCodec


class BetaPosterior(WeightedMean):
    """The mean of a Beta posterior for each number, given the masks since the last reset.

    What is no number is the weighted mean of the round, as in `WeightedMean`.

    Parameters
    ----------
    prior : float
        Both parameters of the Beta prior.
    reset_every : int
        Rounds after which the masks seen so far are forgotten.
    """

    def __init__(self, prior: float, reset_every: int) -> None:
        super().__init__()
        self.prior = prior
        self.reset_every = reset_every
        self._ones: Tensor | float = 0.0
        self._masks = 0

    def begin(self, server_round: int, state: State, messages: list[int]) -> Mapping[str, Any]:
        """Forget the masks, in a round with a reset."""
        if (server_round - 1) % self.reset_every == 0:
            self._ones, self._masks = 0.0, 0
        return super().begin(server_round, state, messages)

    def state_dict(self) -> dict[str, Any]:
        """Return the masks seen so far; nothing where the next round forgets them."""
        return {"ones": self._ones, "masks": self._masks} if self.reset_every > 1 else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the masks back."""
        if state:
            self._ones, self._masks = state["ones"], state["masks"]

    def add(self, reply: TrainReply) -> None:
        """Count the ones of a mask."""
        super().add(reply)
        self._ones = self._ones + reply.values.double()
        self._masks += 1

    def mean(self) -> Tensor:
        """Return the posterior means, and the weighted mean of the rest."""
        assert isinstance(self._codec, SupermaskCodec)
        posterior = (self.prior + self._ones) / (2 * self.prior + self._masks)
        return torch.where(self._codec.is_number, posterior, super().mean()).float()


class FedPM(PruningStrategy):
    """FedPM (Isik et al., ICLR 2023): probabilistic masks of a frozen random network, one bit a weight."""

    client = "supermask"
    mean = BetaPosterior

    class Options(LearningOptions, PruningStrategy.Options):
        """The network, how clients learn masks, and the server's posterior."""

        density: float = Field(
            1.0, gt=0, le=1, description="Kept share of the prunable weights, before any mask is learned."
        )
        criterion: str = Field("synflow", description="What scores a weight, at a density below 1.")
        distribution: str = Field("global", description="How much each layer keeps: uniform, erk or global.")
        prior: float = Field(1.0, gt=0, allow_inf_nan=False, description="Both parameters of the Beta prior.")
        reset_every: int = Field(1, ge=1, description="Rounds from one reset of the posterior to the next.")
        vote_bits: int = Field(8, ge=1, le=16, description="Bits of a probability that the server sends.")

    options: Options

    def supermasks(self) -> Supermasks:
        """Clients learn probabilities."""
        return Supermasks("bernoulli", self.options, seeds.derive(self.scenario.seed, "weights"))

    def make_mean(self) -> Aggregator:
        """Return the posterior."""
        return BetaPosterior(self.options.prior, self.options.reset_every)

    def prepare(self, grid: Grid) -> None:
        """Prune where asked, and start every weight at an even chance."""
        options = self.options
        self.draw()
        if options.density < 1:
            self.freeze(self.pruned(options.criterion, options.distribution))
        else:
            self.freeze(all_kept(self.module, prunable(self.module, options.keep)))
        self.state = {name: t / 2 if name in self.masks else t for name, t in self.state.items()}
