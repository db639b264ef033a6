"""The masks that clients have made their own, as the server keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fedprune.sparsity.masks import Masks
from fedprune.wire import decode_masks, encode_masks


class PersonalMasks:
    """The masks that clients have made their own, and which weights any of them keeps.

    Held are a few bits a weight for each client that has masks of its own, and a count a weight.

    Parameters
    ----------
    whole : Masks
        What every client starts from.
    clients : int
        How many there are.
    """

    def __init__(self, whole: Masks, clients: int) -> None:
        self._whole = whole
        self._shapes = {name: mask.shape for name, mask in whole.items()}
        self._own: dict[int, bytes] = {}
        self._holders = {name: torch.where(mask, clients, 0).to(torch.int32) for name, mask in whole.items()}

    def of(self, number: int) -> Masks:
        """Return a client's masks."""
        if number not in self._own:
            return self._whole
        return decode_masks(self._own[number], self._shapes)

    def note(self, number: int, masks: Masks) -> None:
        """Note the masks that a client has made of those it had."""
        before = self.of(number)
        if masks != before:
            for name, holders in self._holders.items():
                holders += masks[name].int() - before[name].int()
            self._own[number] = encode_masks(masks)

    def state_dict(self) -> dict[str, Any]:
        """Return the clients' own masks, for a checkpoint."""
        return {str(number): payload for number, payload in self._own.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        for number, payload in state.items():
            self.note(int(number), decode_masks(payload, self._shapes))

    def union(self) -> Masks:
        """Return the masks of the weights that any client keeps."""
        return Masks({name: holders > 0 for name, holders in self._holders.items()})
