"""Split training as both sides speak of it: where a model is cut, and what goes to and fro for each batch.

A round of a client begins with an ordinary ``train`` message. Then, batch by batch:

- the client sends its head's output; the server runs the body, and sends what comes out of it
  (``train.split_backward``);
- the client runs its tail and sends the gradient at the tail's input; the server runs the body backward, and
  sends the gradient at the body's input, where the client trains its head (``train.split_forward``).

The answer to ``train``, and to each ``train.split_forward`` but the last, is the next batch; that to the last
is what any client replies after training. In a simulation the body can run beside the client in one process:
the contents are then made and counted as if they had been sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from fedprune.errors import NotFiniteError, WireError
from fedprune.models.cut import Cut, cut
from fedprune.protocol.messages import config_of, metrics_of, real, whole
from fedprune.wire import CODEC
from fedprune.wire.checksum import CHECKSUM
from fedprune.wire.values import from_array, to_array

#: Flower has three categories of messages; these are of training.
FORWARD, BACKWARD = "train.split_forward", "train.split_backward"

#: The record of activations or gradients, and where the server's part travels that a simulation runs.
SMASHED, HOSTED = "smashed", "server-part"
CONVERSATION = "conversation"
"""The record in which a simulation's process says what went to and fro."""

Precision = Literal["float32", "float16", "int8"]

_DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}
_MOST = 1e200  # Sums of squares of float32 values are below it, and so are sums of many of them.
_LEVELS = 127  # An int8 value is a whole number from -127 to 127 of a step of its example's.


class SplitOptions(BaseModel):
    """What every strategy has that trains a split model."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    body: str | None = Field(
        None,
        description="The stage with which the server's part begins; of a model with blocks the first of them "
        "where not given.",
    )
    tail: str | None = Field(
        None,
        description="The stage with which the client's tail begins; of a model with blocks the last of them "
        "where not given.",
    )
    smashed: Precision = Field(
        "float32", description="How activations and their gradients travel: float32, float16 or int8."
    )
    at_once: int = Field(
        8,
        ge=1,
        description="Clients whose activations a server of real devices holds at the same time.",
    )


class SelfUpdateOptions(SplitOptions):
    """What strategies have besides whose clients prepare a round without the body."""

    local_epochs: int = Field(
        1, ge=0, description="Epochs without the body, before split training; 0: none of it."
    )
    prune: float = Field(
        0.5, ge=0, lt=1, description="Share of the examples that split training leaves out, by EL2N."
    )


def cut_of(options: Mapping[str, Any], module: nn.Module) -> Cut:
    """Return where a strategy's options cut a model; see `fedprune.models.cut.cut`."""
    return cut(module, options.get("body"), options.get("tail"))


@dataclass
class Conversation:
    """What split training of one client in one round took, besides its first message and last reply.

    Parameters
    ----------
    bytes_down, bytes_up : int
        Of the messages and replies in between.
    trips : int
        Messages that were sent and answered, the first one included.
    examples : int
        Examples that went through the body, forward and backward.
    lost, sent : float
        Sums of squares: of what rounding took from what the client sent, and of all that.
    """

    bytes_down: int = 0
    bytes_up: int = 0
    trips: int = 1
    examples: int = 0
    lost: float = 0.0
    sent: float = 0.0

    @property
    def error(self) -> float | None:
        """What rounding took from what was sent, relative, in the Euclidean norm; None: nothing was."""
        return (self.lost / self.sent) ** 0.5 if self.sent > 0 else None

    def record(self) -> ConfigRecord:
        """Return it as a record, for the reply of a process that simulated both sides."""
        return ConfigRecord(vars(self).copy())

    @classmethod
    def of(cls, record: ConfigRecord) -> Conversation:
        """Read what ``record`` returned."""
        counts = {key: whole(record, key) for key in ("bytes_down", "bytes_up", "trips", "examples")}
        return cls(**counts, lost=real(record, "lost"), sent=real(record, "sent"))


# Activations and gradients -----------------------------------------------------------------


def pack(values: Tensor, precision: Precision) -> ArrayRecord:
    """Return activations or gradients, float32 (B, ...), as a record of an array (B, values of an example).

    In int8 each example has a scale: its largest magnitude is 127, and values round to the nearest number.

    Raises
    ------
    NotFiniteError
        For a value that is not finite, or not so any more as float16.
    """
    flat = values.detach().to("cpu", torch.float32).flatten(1)
    record = ArrayRecord()
    if precision == "int8":
        scales = flat.abs().amax(dim=1, keepdim=True) / _LEVELS
        _check_finite(scales)
        steps = torch.where(scales > 0, scales, torch.ones_like(scales))
        record["values"] = to_array((flat / steps).round().to(torch.int8).numpy())
        record["scales"] = to_array(scales.contiguous().numpy())
        return record
    rounded = flat.to(getattr(torch, precision)).contiguous()
    _check_finite(rounded)
    record["values"] = to_array(rounded.numpy())
    return record


def unpack(record: ArrayRecord, precision: Precision, shape: Sequence[int]) -> Tensor:
    """Return what `pack` packed, float32 in a given shape (B, ...), in memory of its own.

    Raises
    ------
    WireError
        For arrays that are not those of this precision and shape, or not finite.
    """
    count, size = shape[0], int(np.prod(shape[1:]))
    expected = {"values", "scales"} if precision == "int8" else {"values"}
    if set(record) != expected:
        raise WireError(f"{SMASHED!r} has the arrays {sorted(record)}, expected {sorted(expected)}")
    values = np.array(from_array("values", record["values"], _DTYPES[precision], (count, size)))
    flat = torch.from_numpy(values).float()
    if precision == "int8":
        scales = np.array(from_array("scales", record["scales"], "<f4", (count, 1)))
        flat = flat * torch.from_numpy(scales)
    _check_finite(flat)
    return flat.reshape(tuple(shape))


def _check_finite(values: Tensor) -> None:
    if values.numel() and not all(extreme.isfinite() for extreme in values.aminmax()):
        raise NotFiniteError("activations or gradients are not finite as they travel")


# Contents ----------------------------------------------------------------------------------


def request(values: ArrayRecord | None, *, server_round: int, step: int) -> RecordDict:
    """Return the content of a ``train.split_forward`` or ``train.split_backward`` message."""
    config = ConfigRecord({"round": server_round, "step": step, "codec": CODEC})
    content = RecordDict({"config": config})
    if values is not None:
        content[SMASHED] = values
    return content


def answer(values: ArrayRecord | None, examples: int, lost: float, sent: float) -> RecordDict:
    """Return the content of a client's reply within a batch.

    Parameters
    ----------
    values : ArrayRecord, optional
        Activations, or gradients.
    examples : int
        Examples of the batch.
    lost, sent : float
        As in `Conversation`, of these values.
    """
    # The last two take the place of what a device puts there as it sends the reply.
    metrics = MetricRecord({"examples": examples, "lost": lost, "sent": sent, "peak-rss": 0.0})
    content = RecordDict({"metrics": metrics})
    if values is not None:
        content[SMASHED] = values
        metrics[CHECKSUM] = 1 << 32
    return content


def smashed_of(content: RecordDict) -> ArrayRecord:
    """Return the activations or gradients of a content.

    Raises
    ------
    WireError
        Where there are none.
    """
    try:
        return content.array_records[SMASHED]
    except KeyError:
        raise WireError(f"the message has no record {SMASHED!r}") from None


def is_final(content: RecordDict) -> bool:
    """Return whether a reply ends a client's round."""
    return SMASHED not in content and "arrays" in content


def examples_of(content: RecordDict) -> int:
    """Return of how many examples a reply's activations are."""
    return whole(metrics_of(content), "examples", least=1)


def add_rounding(took: Conversation, content: RecordDict) -> None:
    """Add what a reply says of its rounding to a conversation.

    Raises
    ------
    WireError
        Where it says that more was lost than there was.
    """
    metrics = metrics_of(content)
    lost, sent = real(metrics, "lost"), real(metrics, "sent")
    if not 0 <= lost <= sent <= _MOST:
        raise WireError(f"'lost' is {lost:g} of 'sent' {sent:g}, expected from 0 to that")
    took.lost += lost
    took.sent += sent


def step_of(content: RecordDict) -> int:
    """Return the step that a message is about."""
    return whole(config_of(content), "step")
