"""``PersonalStrategy``: what methods share whose every client prunes masks of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.server.aggregation import OverlapMean, TrainReply
from fedprune.server.client_masks import Tickets
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import all_kept, prunable


class PersonalStrategy(PruningStrategy):
    """Every client starts from the whole model and prunes it to masks of its own; overlaps are averaged.

    A subclass starts with ``self.set_masks(self.whole)`` or ``self.freeze(self.whole)`` and
    ``self.tickets = self.new_tickets()``, and says in ``mask_request`` how a client may prune. The global
    model has every weight that any client keeps.
    """

    mean = OverlapMean
    tickets: Tickets

    @property
    def whole(self) -> Masks:
        """The masks that keep every prunable weight."""
        return all_kept(self.module, prunable(self.module, self.options.keep))

    def new_tickets(self) -> Tickets:
        """Return the clients' masks at the start."""
        return Tickets(self.whole, len(self.clients))

    def memory(self) -> dict[str, Any]:
        """Return the clients' own masks."""
        return self.tickets.memory()

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Take them back."""
        self.tickets = self.new_tickets()
        self.tickets.recall(memory)

    def masks_for(self, number: int) -> Masks:
        """Return the client's own masks."""
        return self.tickets.of(number)

    def observe(self, server_round: int, reply: TrainReply) -> None:
        """Keep the masks that a client has pruned.

        One that trained a nested part prunes of its own masks what it has pruned of that part.
        """
        own, part = reply.codec.masks, self.nested.get(reply.client)
        if part is not None:
            before = self.masks_for(reply.client)
            own = Masks({name: mask & ~(part[name] & ~own[name]) for name, mask in before.items()})
        self.tickets.note(reply.client, own)

    def update_masks(self, server_round: int) -> None:
        """The global model has every weight that any client keeps."""
        masks = self.tickets.union()
        if masks != self.masks:
            self.set_masks(masks)
