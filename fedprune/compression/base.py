"""What every compressor shares: what it is given of an update, and what both sides know before one is sent.

A `Compressor` writes an update as bits, whole numbers and floats, and reads one back. It does not know what
becomes of it: error feedback, and how an update travels in a message, are for `fedprune.protocol.updates`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fedprune.compression.message import Source, Writer

Feedback = Literal["none", "ef", "ef21"]

Memory = MutableMapping[str, Tensor]
"""What a client keeps of its updates from one round to the next: tensors by name."""


@dataclass(frozen=True, eq=False)
class Part:
    """One tensor of an update.

    Parameters
    ----------
    name : str
        Its name.
    shape : torch.Size
        Its shape in the model.
    mask : Tensor, optional
        bool of that shape, True where a weight is kept; None where all are.
    size : int
        How many weights are kept: so many values of the update are this tensor's.
    """

    name: str
    shape: torch.Size
    mask: Tensor | None
    size: int

    def dense(self, values: Tensor) -> Tensor:
        """Return the tensor that kept values of shape (size,) stand for, 0 where weights are pruned."""
        if self.mask is None:
            return values.reshape(self.shape)
        whole = torch.zeros(self.shape, dtype=values.dtype)
        whole[self.mask] = values
        return whole

    def kept(self, whole: Tensor) -> Tensor:
        """Return the kept values of a tensor of the model's shape, (size,) in row-major order."""
        return whole.reshape(-1) if self.mask is None else whole[self.mask]


@dataclass(frozen=True, eq=False)
class Frame:
    """What server and client both know of an update before it is sent.

    Parameters
    ----------
    parts : tuple of Part
        The tensors whose kept weights follow one another in it.
    seed : int
        The same on both sides, another one for each client and round.
    """

    parts: tuple[Part, ...]
    seed: int = 0

    @cached_property
    def size(self) -> int:
        """How many values an update has: the kept weights of all parameters."""
        return sum(part.size for part in self.parts)

    def split(self, values: Tensor) -> list[tuple[Part, Tensor]]:
        """Return each part with its values of an update of shape (size,), a view."""
        ends = list(accumulate((part.size for part in self.parts), initial=0))
        return [(part, values[a:b]) for part, a, b in zip(self.parts, ends, ends[1:], strict=False)]

    def generator(self) -> torch.Generator:
        """Return a generator that draws the same on both sides: what it says need not be sent."""
        return torch.Generator().manual_seed(self.seed)


class Compressor(ABC):
    """How a client's update travels: the trained parameters less those it was sent, of kept weights alone.

    A subclass has ``write`` and ``read``, and options where it needs some:

    >>> class Signs(Compressor):
    ...     "The sign of each weight's update, times the mean magnitude."
    ...
    ...     def write(self, update, frame, out, memory):
    ...         out.floats(update.abs().mean().reshape(1))
    ...         out.bits(update > 0)
    ...
    ...     def read(self, frame, source):
    ...         size = source.floats(1)
    ...         return torch.where(source.bits(frame.size), size, -size)

    Attributes
    ----------
    majority : bool
        Whether the server takes a majority vote on the sign of each weight's update, in place of a mean.
    """

    majority: ClassVar[bool] = False

    class Options(BaseModel):
        """The compressor's options: keys beside its name in the scenario; a subclass adds its own."""

        model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def __init__(self, options: Options | None = None) -> None:
        self.options: Any = self.Options() if options is None else options

    @property
    def feedback(self) -> Feedback:
        """Which error feedback a client applies: that of the options, else none."""
        found: Feedback = getattr(self.options, "feedback", "none")
        return found

    @abstractmethod
    def write(self, update: Tensor, frame: Frame, out: Writer, memory: Memory) -> None:
        """Write an update.

        Parameters
        ----------
        update : Tensor
            float32 of shape (frame.size,); it must not be changed.
        frame : Frame
            What both sides know of it.
        out : Writer
            Takes what is sent.
        memory : Memory
            What the client keeps for the next time, empty at first; a compressor that needs none leaves it.
        """

    @abstractmethod
    def read(self, frame: Frame, source: Source) -> Tensor:
        """Return the update that was written, as the server has it: float32 of shape (frame.size,).

        Raises
        ------
        WireError
            Where the source does not hold what ``write`` writes.
        """


class FeedbackOptions(Compressor.Options):
    """Options of a compressor whose error is worth keeping."""

    feedback: Feedback = Field(
        "ef",
        description="Error feedback: ef (a client adds to an update what was left out of its last one), ef21 "
        "(it sends how its update differs from an estimate that it and the server keep of it) or none.",
    )
