"""``PersonalisedStrategy``: what methods share whose every client prunes masks of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.server.aggregation import OverlapMean, TrainReply
from fedprune.server.client_masks import PersonalMasks
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import all_kept, prunable


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
