"""What a training message may let a client do to its own mask, and what the server takes back.

A request travels in a message's config. The client that follows it replies values under its new
masks, with these as a change of those it was sent; the server checks that they are what the request
allows. Where a request is for the *next* masks, values stay under those that were sent, and the masks
travel in a record of their own. Strategies decide what to ask for and what to do with the masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedprune.errors import WireError
from fedprune.protocol.messages import config_of, payload, share, whole
from fedprune.sparsity.distributions import global_, kept_counts, total_kept, uniform
from fedprune.sparsity.masks import Masks, highest, keep_highest
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
        swapped, after = share(config, "adjust-share"), share(config, "adjust-after")
        return cls(swapped, after, whole(config, "adjust-batches", least=1))

    def check(self, masks: Masks, sent: Masks) -> None:
        """Refuse masks in which a layer has another number of weights."""
        _check_counts(masks, sent)


@dataclass(frozen=True)
class NextMasksRequest:
    """Swap a share of each layer's weights, as an `AdjustRequest`, but after training and for the next time.

    Parameters
    ----------
    share : float
        Of each layer's kept weights, in [0, 1].
    batches : int
        Batches on which the gradient is judged.
    """

    share: float
    batches: int

    def config(self) -> dict[str, int | float]:
        """Return the request as config values."""
        return {"next-share": self.share, "next-batches": self.batches}

    @classmethod
    def of(cls, config: ConfigRecord) -> NextMasksRequest | None:
        """Read a request from a message's config; None where there is none."""
        if "next-share" not in config:
            return None
        return cls(share(config, "next-share"), whole(config, "next-batches", least=1))

    def check(self, masks: Masks, sent: Masks) -> None:
        """Refuse masks in which a layer has another number of weights."""
        _check_counts(masks, sent)


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
        return cls(*(share(config, key) for key in keys))

    def next_density(self, masks: Masks) -> float:
        """Return the density of these masks after one more pruning."""
        return max(self.density, masks.density * (1 - self.share))

    def check(self, masks: Masks, sent: Masks) -> None:
        """Refuse masks that keep a weight which was pruned, or not as many as one pruning leaves."""
        _check_nested(masks, sent)
        shapes = {name: mask.shape for name, mask in sent.items()}
        found, expected = sum(masks.kept.values()), total_kept(shapes, self.next_density(sent))
        if found != expected:
            raise WireError(f"the own masks keep {found} weights, expected {expected}")


@dataclass(frozen=True)
class ComplementRequest:
    """Train all weights and reply those that were pruned, in place of those that were kept."""

    def config(self) -> dict[str, int | float]:
        """Return the request as config values."""
        return {"complement": True}

    @classmethod
    def of(cls, config: ConfigRecord) -> ComplementRequest | None:
        """Read a request from a message's config; None where there is none."""
        return cls() if config.get("complement", False) else None

    def check(self, masks: Masks, sent: Masks) -> None:
        """Refuse masks that are not the complement."""
        for name, mask in sent.items():
            if not torch.equal(masks[name], ~mask):
                raise WireError(f"the own mask of {name!r} is not the complement of the one that was sent")


@dataclass(frozen=True)
class PruneAnewRequest:
    """Prune dense weights by magnitude over the whole model, to as many weights in all as were sent."""

    def config(self) -> dict[str, int | float]:
        """Return the request as config values."""
        return {"prune-anew": True}

    @classmethod
    def of(cls, config: ConfigRecord) -> PruneAnewRequest | None:
        """Read a request from a message's config; None where there is none."""
        return cls() if config.get("prune-anew", False) else None

    def masks(self, weights: Mapping[str, Tensor], sent: Masks) -> Masks:
        """Return masks that keep the largest weights, at least one of each layer."""
        scores = {name: weights[name].abs() for name in sent}
        shapes = {name: mask.shape for name, mask in sent.items()}
        return keep_highest(scores, kept_counts(global_(shapes, sent.density, scores), shapes, sent.density))

    def check(self, masks: Masks, sent: Masks) -> None:
        """Refuse masks that keep another number of weights in all."""
        found, expected = sum(masks.kept.values()), sum(sent.kept.values())
        if found != expected:
            raise WireError(f"the own masks keep {found} weights, expected {expected}")


@dataclass(frozen=True)
class OneShotRequest:
    """Prune once, to a density in every layer, by the scores that were just learned.

    A client whose masks are at the density already keeps them.

    Parameters
    ----------
    density : float
        Share of each layer to keep, in (0, 1].
    """

    density: float

    def config(self) -> dict[str, int | float]:
        """Return the request as config values."""
        return {"one-shot-density": self.density}

    @classmethod
    def of(cls, config: ConfigRecord) -> OneShotRequest | None:
        """Read a request from a message's config; None where there is none."""
        return cls(share(config, "one-shot-density")) if "one-shot-density" in config else None

    def masks(self, scores: Mapping[str, Tensor], sent: Masks) -> Masks:
        """Return masks that keep the highest scores, of shape (kept,) by name, of what is kept."""
        counts = self._counts(sent)
        if counts == sent.kept:
            return sent
        chosen = {}
        for name, mask in sent.items():
            own = torch.zeros_like(mask)
            own[mask] = highest(scores[name], counts[name], name)
            chosen[name] = own
        return Masks(chosen)

    def check(self, masks: Masks, sent: Masks) -> None:
        """Refuse masks that keep a weight which was pruned, or another number of weights."""
        _check_nested(masks, sent)
        for name, count in self._counts(sent).items():
            if masks.kept[name] != count:
                raise WireError(
                    f"the own mask of {name!r} keeps {masks.kept[name]} weights, expected {count}"
                )

    def _counts(self, sent: Masks) -> dict[str, int]:
        shapes = {name: mask.shape for name, mask in sent.items()}
        counts = kept_counts(uniform(shapes, self.density, {}), shapes, self.density)
        return {name: min(count, sent.kept[name]) for name, count in counts.items()}


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
    encoded = take_masks(record)
    if encoded is None:
        return None
    if request is None:
        raise WireError("the reply has masks of its own, which were not asked for")
    return _checked(encoded, layout, sent, request)


#: The record of a reply with the masks under which the client takes part from now on.
NEXT_MASKS = "next-masks"


def next_masks_record(masks: Masks, sent: Masks) -> ConfigRecord:
    """Return the client's next masks as they travel: as a change of those it was sent."""
    return ConfigRecord({"payload": encode_masks(masks, sent)})


def read_next_masks(content: RecordDict, layout: Layout, sent: Masks, request: MaskRequest) -> Masks:
    """Return the masks that a client has chosen for the next time.

    Raises
    ------
    WireError
        Where there are none, or they are not what the request allows; see `read_own_masks`.
    """
    return _checked(payload(config_of(content, NEXT_MASKS), "payload"), layout, sent, request)


def _checked(encoded: bytes, layout: Layout, sent: Masks, request: MaskRequest) -> Masks:
    masks = decode_masks(encoded, layout.shapes, sent)
    if list(masks) != list(sent):
        raise WireError(f"the own masks are for {sorted(masks)}, expected {sorted(sent)}")
    request.check(masks, sent)
    return masks


def _check_counts(masks: Masks, sent: Masks) -> None:
    if masks.kept != sent.kept:
        name = next(name for name in sent if masks.kept.get(name) != sent.kept[name])
        found = masks.kept.get(name)
        raise WireError(f"the own mask of {name!r} keeps {found} weights, expected {sent.kept[name]}")


def _check_nested(masks: Masks, sent: Masks) -> None:
    for name, mask in sent.items():
        if name in masks and (masks[name] & ~mask).any():
            raise WireError(f"the own mask of {name!r} keeps a weight that was pruned")
