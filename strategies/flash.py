"""FLASH (Babakniya et al., TMLR 2023): Revisiting Sparsity Hunting in Federated Learning.

Federated lottery aware sparsity hunting in two stages:

- *Sensitivity.* The server prunes the initial model at random, every layer alike. A few clients train it on
  their own for some epochs. After each epoch they drop the smallest weights of every layer and grow as many
  where the layers' weights are larger, at random places. The server averages what share each layer keeps.
- *Training.* The server prunes the initial model at random again, now by these shares, scaled to the density.
  All clients train under that one mask: they agree on it from the first round (the paper's SPDST). With
  ``joint`` clients go on to move weights, half-way through a round (JMWST): the server averages their models,
  and each layer keeps its largest weights, as many as it does on average over the clients.

Differences from the paper
--------------------------
- Budgets of different sizes (hetero-FLASH) are not here.
- Training starts from the same initial weights as the first stage, not from newly drawn ones.
- Clients move exactly as many weights as they drop. The authors' code draws each place by itself, grows at
  most 99 % of what a layer has free, and spares a nearly full layer that has larger weights than most.

References
----------
- S. Babakniya, S. Kundu, S. Prakash, Y. Niu, S. Avestimehr: Revisiting Sparsity Hunting in Federated
  Learning: Why does Sparsity Consensus Matter? TMLR 2023, arXiv 2208.13092. Code:
  github.com/SaraBabakN/flash_fl.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid
from pydantic import Field

from fedprune import seeds
from fedprune.errors import RunError
from fedprune.protocol.sensitivity import MoveRequest, SensitivityRequest, read_kept
from fedprune.scenario import Scenario
from fedprune.server.aggregation import Aggregator, TrainReply, ZeroFilledMean
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.distributions import kept_counts, proportional
from fedprune.sparsity.masks import keep_highest


class Flash(PruningStrategy):
    """Layer densities that a few clients find before round 1, then one mask (Babakniya et al., TMLR 2023)."""

    client = "sensing"

    class Options(PruningStrategy.Options):
        """The first stage, and how much is kept."""

        density: float = Field(gt=0, le=1, description="Kept share of the prunable weights.")
        sensing_share: float = Field(
            0.1, gt=0, le=1, description="Share of the clients that find out how sensitive layers are."
        )
        sensing_epochs: int = Field(10, ge=2, description="Epochs for which these train.")
        move_rate: float = Field(
            0.25, gt=0, lt=1, description="Share of weights that moves at first; falls to 0 over the epochs."
        )
        joint: bool = Field(False, description="Whether clients go on to move weights (JMWST).")
        joint_every: int = Field(1, ge=1, description="Rounds from one in which they do so to the next.")

    options: Options

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find that nested parts of masks are to move."""
        yield from super().validation_errors(scenario, options)
        if options.joint and scenario.clients.over_budget == "nest":
            yield "joint", "nested masks cannot move: set clients.over_budget to exclude or shrink_batch"

    def make_mean(self) -> Aggregator:
        """Return the authors' plain average where clients have masks of their own."""
        return ZeroFilledMean() if self.options.joint else super().make_mean()

    def prepare(self, grid: Grid) -> None:
        """Find how much each layer should keep; prune the initial model at random by that."""
        initial = self.state
        self.set_masks(self.pruned("random", "uniform", draw=0))
        densities = self.sensed(grid)
        self.state = initial
        self.set_masks(self.pruned("random", proportional(densities), draw=1))

    def sensed(self, grid: Grid) -> dict[str, float]:
        """Ask some clients to train on their own; return what share each layer keeps, on average."""

        def read(reply: Message) -> dict[str, int]:
            return read_kept(reply.content, self.masks)

        count = max(1, int(self.options.sensing_share * len(self.clients)))
        generator = seeds.numpy_generator(self.scenario.seed, "sensing")
        asked = sorted(int(n) for n in generator.choice(sorted(self.clients), count, replace=False))
        request = SensitivityRequest(self.options.sensing_epochs, self.options.move_rate)
        self.federation.announce(f"round 0: {count} clients find out how sensitive layers are")
        content = self.state_contents(0, request.config())
        found = list(self.ask(grid, asked, "query.sensitivity", content, read).values())
        if not found:
            raise RunError(f"no client found out how sensitive layers are: {self.accounts.reasons}")
        return self.mean_share(found)

    def mask_request(self, server_round: int) -> MoveRequest | None:
        """Let clients move weights between layers, in every so many rounds of JMWST."""
        self.found: list[dict[str, int]] = []
        options = self.options
        due = options.joint and server_round % options.joint_every == 0
        return MoveRequest(options.move_rate) if due else None

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Note how many weights each layer of a client keeps."""
        self.found.append(reply.codec.masks.kept)

    def update_masks(self, server_round: int) -> None:
        """Keep the largest weights of each layer, as many as clients keep on average."""
        if self.move is not None:
            scores = {name: self.state[name].abs() for name in self.masks}
            shapes = {name: mask.shape for name, mask in self.masks.items()}
            shares = proportional(self.mean_share(self.found))
            density = self.options.density
            self.set_masks(
                keep_highest(scores, kept_counts(shares(shapes, density, scores), shapes, density))
            )

    def mean_share(self, found: Sequence[Mapping[str, int]]) -> dict[str, float]:
        """Return what share of each layer clients keep, on average."""
        sizes = {name: mask.numel() for name, mask in self.masks.items()}
        return {name: sum(kept[name] for kept in found) / len(found) / size for name, size in sizes.items()}
