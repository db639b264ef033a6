"""How a training message asks clients to extrude weights (FedMef, Huang et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord

from fedprune.errors import WireError
from fedprune.protocol.messages import real
from fedprune.protocol.reports import layer_counts, read_layer_counts, whole_numbers
from fedprune.sparsity.masks import Masks


@dataclass(frozen=True)
class ExtrusionRequest:
    """How many of each layer's smallest weights to extrude in a round, and how.

    Parameters
    ----------
    counts : Mapping[str, int]
        Weights of each layer.
    strength : float
        The factor lambda of their squared norm in the loss.
    start, end : float
        Which part of the budget the round is, from 0 to 1.
    budget : bool
        Whether the learning rate follows `budget_factor`; otherwise it is that of the round.
    """

    counts: Mapping[str, int]
    strength: float
    start: float
    end: float
    budget: bool

    def config(self, masks: Masks) -> dict[str, int | float | bool | list[int]]:
        """Return the request as config values."""
        return {
            **layer_counts("extrude", self.counts, masks),
            "extrude-kept": [masks.kept[name] for name in self.counts],
            "extrude-strength": self.strength,
            "extrude-start": self.start,
            "extrude-end": self.end,
            "extrude-budget": self.budget,
        }

    @classmethod
    def of(cls, config: ConfigRecord, masks: Masks) -> ExtrusionRequest | None:
        """Read a request from a message's config; None where there is none.

        A client with nested masks lacks the smallest of the weights that are meant, and marks fewer.
        """
        asked = read_layer_counts("extrude", config, masks)
        if asked is None:
            return None
        kept = whole_numbers(config, "extrude-kept")
        if len(kept) != len(asked):
            raise WireError(f"extrusion of {len(asked)} layers says what {len(kept)} keep")
        counts = {
            name: max(0, count - (of_all - masks.kept[name]))
            for (name, count), of_all in zip(asked.items(), kept, strict=True)
        }
        strength, start, end = (real(config, f"extrude-{key}") for key in ("strength", "start", "end"))
        if not (strength >= 0 and 0 <= start <= end <= 1):
            raise WireError(f"extrusion by {strength} from {start} to {end} of its budget makes no sense")
        return cls(counts, strength, start, end, bool(config.get("extrude-budget", True)))
