"""How a server lets clients move weights between layers: before round 1 to learn from it, or in a round.

Before round 1 a client trains on its own, moves weights meanwhile, and says how many each layer then keeps:
a number a layer. Nothing of what it has trained leaves it. In a round it replies values and masks.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

from fedprune.errors import WireError
from fedprune.protocol.messages import config_of, share, whole
from fedprune.protocol.reports import whole_numbers
from fedprune.sparsity.masks import Masks

RECORD = "sensitivity"


@dataclass(frozen=True)
class SensitivityRequest:
    """For how many epochs a client trains, and the share of weights that moves after the first of them.

    The share falls linearly, to 0 after the last epoch.
    """

    epochs: int
    rate: float

    def config(self) -> dict[str, int | float]:
        """Return the request as config values."""
        return {"sensitivity-epochs": self.epochs, "sensitivity-rate": self.rate}

    @classmethod
    def of(cls, config: ConfigRecord) -> SensitivityRequest:
        """Read a request from a message's config.

        Raises
        ------
        WireError
            Where there is none, or it is not right.
        """
        return cls(whole(config, "sensitivity-epochs", least=1), share(config, "sensitivity-rate"))


@dataclass(frozen=True)
class MoveRequest:
    """Move weights between layers during a round's training; the share of them is ``rate`` at first."""

    rate: float

    def config(self) -> dict[str, int | float]:
        """Return the request as config values."""
        return {"move-rate": self.rate}

    @classmethod
    def of(cls, config: ConfigRecord) -> MoveRequest | None:
        """Read a request from a message's config; None where there is none."""
        return cls(share(config, "move-rate")) if "move-rate" in config else None

    def check(self, masks: Masks, sent: Masks) -> None:
        """Refuse masks that keep another number of weights in all."""
        found, expected = sum(masks.kept.values()), sum(sent.kept.values())
        if found != expected:
            raise WireError(f"the own masks keep {found} weights, expected {expected}")


def kept_record(masks: Masks) -> ConfigRecord:
    """Return how many weights each layer keeps as it travels: in the order of names."""
    return ConfigRecord({"kept": [masks.kept[name] for name in sorted(masks)]})


def read_kept(content: RecordDict, masks: Masks) -> dict[str, int]:
    """Return how many weights each layer keeps of what a client was sent under masks.

    Raises
    ------
    WireError
        For another number of layers, more weights than a layer has, or more or fewer in all than were sent.
    """
    names, counts = sorted(masks), whole_numbers(config_of(content, RECORD), "kept")
    if len(counts) != len(names):
        raise WireError(f"'kept' has {len(counts)} layers, expected {len(names)}")
    kept = dict(zip(names, counts, strict=True))
    for name, count in kept.items():
        if count > masks[name].numel():
            raise WireError(f"'kept' of {name!r} is {count}, it has {masks[name].numel()} weights")
    if sum(counts) != sum(masks.kept.values()):
        raise WireError(f"'kept' is {sum(counts)} in all, expected {sum(masks.kept.values())}")
    return kept
