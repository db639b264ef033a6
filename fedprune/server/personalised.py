"""What methods share whose every client has masks of its own: those it prunes, or those it moves.

``PersonalisedStrategy`` begins with the whole model, ``SwappingStrategy`` with masks at the density, of which
clients swap a share every time. Who keeps which masks, and how long, is for `fedprune.server.client_masks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid
from pydantic import Field

from fedprune.protocol.client_masks import NextMasksRequest, read_next_masks
from fedprune.server.aggregation import OverlapMean, TrainReply
from fedprune.server.client_masks import PersonalMasks
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import all_kept, prunable
from fedprune.sparsity.schedules import cosine


class PersonalisedStrategy(PruningStrategy):
    """Every client starts from the whole model and prunes it to masks of its own; overlaps are averaged.

    A subclass starts with ``self.set_masks(self.whole)`` or ``self.freeze(self.whole)`` and
    ``self.personal_masks = self.new_personal_masks()``, and says in ``mask_request`` how a client may
    prune. The global model has every weight that any client keeps.
    """

    mean = OverlapMean
    personal_masks: PersonalMasks

    @property
    def whole(self) -> Masks:
        """The masks that keep every prunable weight."""
        return all_kept(self.module, prunable(self.module, self.options.keep))

    def new_personal_masks(self) -> PersonalMasks:
        """Return the clients' masks at the start."""
        return PersonalMasks(self.whole, len(self.clients))

    def state_dict(self) -> dict[str, Any]:
        """Return the clients' own masks."""
        return self.personal_masks.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.personal_masks = self.new_personal_masks()
        self.personal_masks.load_state_dict(state)

    def masks_for(self, number: int) -> Masks:
        """Return the client's own masks."""
        return self.personal_masks.of(number)

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Keep the masks that a client has pruned.

        One that trained a nested part prunes of its own masks what it has pruned of that part.
        """
        own, part = reply.codec.masks, self.nested.get(reply.client)
        if part is not None:
            before = self.masks_for(reply.client)
            own = Masks({name: mask & ~(part[name] & ~own[name]) for name, mask in before.items()})
        self.personal_masks.note(reply.client, own)

    def update_masks(self, server_round: int) -> None:
        """The global model has every weight that any client keeps."""
        masks = self.personal_masks.union()
        if masks != self.masks:
            self.set_masks(masks)


class SwappingStrategy(PersonalisedStrategy):
    """Every client keeps masks of its own at the density; after training it swaps a share of each layer.

    Values travel under the masks that a client trained with, and its next masks beside them. The share falls
    along a cosine over all rounds.
    """

    class Options(PersonalisedStrategy.Options):
        """The first masks, and how clients move them."""

        density: float = Field(gt=0, le=1, description="Share of the prunable weights that a client keeps.")
        distribution: str = Field("erk", description="How much each layer keeps: uniform, erk or global.")
        alike: bool = Field(
            True, description="Whether all clients start from one random mask; false: from one each."
        )
        swap_fraction: float = Field(
            0.5, ge=0, le=1, description="Share of each layer that is swapped at first; 0: masks stay."
        )
        growth_batches: int = Field(1, ge=1, description="Batches on which a client judges what should grow.")

    options: Options

    def prepare(self, grid: Grid) -> None:
        """Prune the initial model at random for every client, by the layer distribution."""
        options = self.options
        self.personal_masks = self.new_personal_masks()
        first = self.pruned("random", options.distribution, draw=0)
        for place, number in enumerate(sorted(self.clients)):
            alike = options.alike or place == 0
            own = first if alike else self.pruned("random", options.distribution, draw=place)
            self.personal_masks.note(number, own)
        self.set_masks(self.personal_masks.union())

    def next_masks(self, server_round: int) -> NextMasksRequest | None:
        """Return how clients move their masks in a round; None: not at all."""
        options = self.options
        share = cosine((server_round - 1) / self.scenario.rounds, options.swap_fraction, 0.0)
        return NextMasksRequest(share, options.growth_batches) if share > 0 else None

    def train_config(self, server_round: int) -> dict[str, Any]:
        """Ask for the next masks."""
        request = self.next_masks(server_round)
        return dict(request.config()) if request else {}

    def read(self, server_round: int, reply: Message) -> Masks | None:
        """Read the masks that a client has chosen for the next time."""
        request = self.next_masks(server_round)
        if request is None:
            return None
        sent = self.sent_masks(self.registry.number_of(reply))
        return read_next_masks(reply.content, self.layout, sent, request)

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Keep these; of a client that trained a nested part, with the rest of its masks."""
        chosen = reply.report
        if chosen is None:
            return
        self.exchange.note_held(reply.client, chosen)
        if (part := self.nested.get(reply.client)) is not None:
            own = self.masks_for(reply.client)
            chosen = Masks({name: (mask & ~part[name]) | chosen[name] for name, mask in own.items()})
        self.personal_masks.note(reply.client, chosen)
