"""What a training message may let a client do to its own mask, and what the server takes back.

A request travels in a message's config. The client that follows it replies values under its new
masks, with these as a change of those it was sent; the server checks that they are what the request
allows. Which method asks for what, and what becomes of the masks, is for strategies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord

from fedprune.errors import WireError
from fedprune.messages import real, whole
from fedprune.sparsity.distributions import total_kept
from fedprune.sparsity.masks import Masks
from fedprune.wire import Layout, decode_masks, encode_masks, take_masks, with_masks


class MaskRequest(Protocol):
    """How clients may move their own masks in a round."""

    def config(self) -> dict[str, int | float]:
        """Return the request as config values."""

    def check(self, masks: Masks, sent: Masks) -> None:
        """Raise a ``WireError`` for masks that a client that was sent ``sent`` may not have made."""


@dataclass(frozen=True)
class AdjustRequest:
    """Swap a share of each layer's weights: drop by magnitude, grow by gradient; see `regrow`.

    Parameters
    ----------
    share : float
        Of each layer's kept weights, in [0, 1].
    after : float
        Share of the round's local training that comes before the swap, in (0, 1].
    batches : int
        Batches on which the gradient is judged.
    """

    share: float
    after: float
    batches: int

    def config(self) -> dict[str, int | float]:
        """Return the request as config values."""
        return {"adjust-share": self.share, "adjust-after": self.after, "adjust-batches": self.batches}

    @classmethod
    def of(cls, config: ConfigRecord) -> AdjustRequest | None:
        """Read a request from a message's config; None where there is none."""
        if "adjust-share" not in config:
            return None
        share, after = _share(config, "adjust-share"), _share(config, "adjust-after")
        return cls(share, after, whole(config, "adjust-batches", least=1))

    def check(self, masks: Masks, sent: Masks) -> None:
        """Refuse masks in which a layer has another number of weights."""
        if masks.kept != sent.kept:
            name = next(name for name in sent if masks.kept.get(name) != sent.kept[name])
            found = masks.kept.get(name)
            raise WireError(f"the own mask of {name!r} keeps {found} weights, expected {sent.kept[name]}")


@dataclass(frozen=True)
class TicketRequest:
    """Prune by magnitude and rewind, where the model as sent is accurate enough.

    Parameters
    ----------
    share : float
        Of the client's remaining weights, in (0, 1).
    accuracy : float
        On its held-out examples, from which on it prunes.
    density : float
        At which it stops.
    """

    share: float
    accuracy: float
    density: float

    def config(self) -> dict[str, int | float]:
        """Return the request as config values."""
        return {
            "ticket-share": self.share,
            "ticket-accuracy": self.accuracy,
            "ticket-density": self.density,
        }

    @classmethod
    def of(cls, config: ConfigRecord) -> TicketRequest | None:
        """Read a request from a message's config; None where there is none."""
        if "ticket-share" not in config:
            return None
        keys = ("ticket-share", "ticket-accuracy", "ticket-density")
        return cls(*(_share(config, key) for key in keys))

    def next_density(self, masks: Masks) -> float:
        """Return the density of these masks after one more pruning."""
        return max(self.density, masks.density * (1 - self.share))

    def check(self, masks: Masks, sent: Masks) -> None:
        """Refuse masks that keep a weight which was pruned, or not as many as one pruning leaves."""
        for name, mask in sent.items():
            if name in masks and (masks[name] & ~mask).any():
                raise WireError(f"the own mask of {name!r} keeps a weight that was pruned")
        shapes = {name: mask.shape for name, mask in sent.items()}
        found, expected = sum(masks.kept.values()), total_kept(shapes, self.next_density(sent))
        if found != expected:
            raise WireError(f"the own masks keep {found} weights, expected {expected}")


def with_own_masks(record: ArrayRecord, masks: Masks, sent: Masks) -> ArrayRecord:
    """Return a reply's arrays with the client's own masks, as a change of those it was sent."""
    return with_masks(record, encode_masks(masks, sent))


def read_own_masks(
    record: ArrayRecord, layout: Layout, sent: Masks, request: MaskRequest | None
) -> Masks | None:
    """Return the masks that a client made of those it was sent; None where it kept these.

    Raises
    ------
    WireError
        For masks that were not asked for, are damaged, are for other tensors, or are not what the
        request allows.
    """
    payload = take_masks(record)
    if payload is None:
        return None
    if request is None:
        raise WireError("the reply has masks of its own, which were not asked for")
    masks = decode_masks(payload, layout.shapes, sent)
    if list(masks) != list(sent):
        raise WireError(f"the own masks are for {sorted(masks)}, expected {sorted(sent)}")
    request.check(masks, sent)
    return masks


def _share(config: ConfigRecord, key: str) -> float:
    value = real(config, key)
    if not 0 <= value <= 1:
        raise WireError(f"{key!r} is {value}, expected a number from 0 to 1")
    return value
