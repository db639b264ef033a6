"""Static pruning: prune once on the server, then train under that mask.

Single weights or, with ``unit: channel``, whole channels, neurons and attention heads. Any criterion and any
distribution will do. The SynFlow and SNIP baselines of the federated pruning papers are settings of it:
``criterion: synflow, distribution: global`` (Tanaka et al., NeurIPS 2020) and ``criterion: snip,
distribution: global`` (Lee et al., ICLR 2019).

References
----------
- H. Tanaka, D. Kunin, D. L. K. Yamins, S. Ganguli: Pruning neural networks without any data by iteratively
  conserving synaptic flow. NeurIPS 2020, arXiv 2006.05467.
- N. Lee, T. Ajanthan, P. H. S. Torr: SNIP: Single-shot Network Pruning based on Connection Sensitivity.
  ICLR 2019, arXiv 1810.02340.
"""

from __future__ import annotations

from flwr.serverapp import Grid
from pydantic import Field

from fedprune.server.strategy import PruningStrategy


class Static(PruningStrategy):
    """Prune once on the server by any criterion, then train under that mask."""

    class Options(PruningStrategy.Options):
        """What decides the mask."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights.")
        criterion: str = Field("magnitude", description="What scores a weight; see `fedprune list criteria`.")
        distribution: str = Field("erk", description="How much each layer keeps: uniform, erk or global.")
        iterations: int | None = Field(
            None, ge=1, description="Pruning steps; the criterion's own default where not given."
        )

    options: Options
    units = ("weight", "channel")

    def prepare(self, grid: Grid) -> None:
        """Prune the initial model; criteria that need data use the server's public data."""
        options = self.options
        self.set_masks(self.pruned(options.criterion, options.distribution, iterations=options.iterations))
