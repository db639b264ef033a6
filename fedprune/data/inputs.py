"""How stored inputs become what a model takes: pixels, measured values, tokens.

Stored inputs are arrays that need little memory, such as uint8 pixels; what a model takes is made batch by
batch. Not for reading (``sources``) nor for random changes: the same input always gives the same tensor here.
A kind of input of a user's own is a subclass that its data source returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs(ABC):
    """A kind of input.

    Attributes
    ----------
    shape
        Of one input as a model takes it, without the batch.
    """

    shape: tuple[int, ...]

    #: Name of the kind in model files.
    kind: ClassVar[str]
    #: What a model takes; its tensors have this dtype where the model itself computes in float32.
    dtype: ClassVar[torch.dtype] = torch.float32

    @abstractmethod
    def tensor(self, stored: Tensor) -> Tensor:
        """Return stored inputs, (B, ...), as a model takes them, (B, *shape) of ``dtype``."""

    def known(self) -> dict[str, object]:
        """Return what a model's factory may want to know of its inputs besides their shape, by argument."""
        return {}

    def settings(self) -> dict[str, object]:
        """Return, as JSON has it, how inputs are made of raw data; a model file tells its users."""
        return {}

    def filled(
        self, value: int, examples: int, *, device: Any = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return inputs, (examples, *shape), every element of which is ``value``: for tracing a model.

        Parameters
        ----------
        value
            What they hold.
        examples
            How many.
        device
            Where.
        dtype
            Of the model's weights; inputs that are whole numbers stay so.
        """
        dtype = dtype if self.dtype.is_floating_point else self.dtype
        return torch.full((examples, *self.shape), value, device=device, dtype=dtype)

    def random(self, examples: int, generator: torch.Generator) -> Tensor:
        """Return inputs, (examples, *shape), with random values: for comparing what models compute."""
        return torch.rand((examples, *self.shape), generator=generator)


@dataclass(frozen=True)
class Pixels(Inputs):
    """Images, stored as whole numbers (B, C, H, W), normalised channel by channel.

    Attributes
    ----------
    shape
        (C, H, W).
    mean, std
        Per channel, of pixels from 0 to 1; by default those that take 0 to 1 to -1 to 1.
    depth
        The largest value of a pixel: 255, or 65535 where they have 16 bits.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    depth: int = 255

    kind: ClassVar = "pixels"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)) or (0.5,) * self.shape[0])

    def tensor(self, stored: Tensor) -> Tensor:
        """Return pixels, (B, C, H, W), as float32: (pixel / depth - mean) / std."""
        scale, shift = normalisation(self.mean, self.std, self.depth)
        return stored.float().mul_(scale).add_(shift)

    def settings(self) -> dict[str, object]:
        """Return the largest value of a pixel, where it is not that of 8 bits."""
        return {} if self.depth == 255 else {"depth": self.depth}


@dataclass(frozen=True)
class Numbers(Inputs):
    """Measured values, stored as floats (B, *shape) and taken as they are."""

    kind: ClassVar = "numbers"

    def tensor(self, stored: Tensor) -> Tensor:
        """Return the values as float32."""
        return stored.float()


@dataclass(frozen=True)
class Tokens(Inputs):
    """Sequences of tokens, stored as integers (B, L), each below ``vocabulary``.

    Attributes
    ----------
    shape
        (L,), the length of a sequence.
    vocabulary
        How many different tokens there are.
    padding
        The token that fills a short sequence up; None where all have full length.
    """

    shape: tuple[int]
    vocabulary: int = 256
    padding: int | None = None

    kind: ClassVar = "tokens"
    dtype: ClassVar = torch.int64

    def tensor(self, stored: Tensor) -> Tensor:
        """Return the tokens as int64."""
        return stored.long()

    def random(self, examples: int, generator: torch.Generator) -> Tensor:
        """Return random tokens, int64 (examples, L)."""
        return torch.randint(self.vocabulary, (examples, *self.shape), generator=generator)

    def known(self) -> dict[str, object]:
        """Return ``vocabulary`` and ``padding``."""
        return {"vocabulary": self.vocabulary, "padding": self.padding}


def normalisation(mean: Sequence[float], std: Sequence[float], depth: int = 255) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (C, 1, 1), for which pixel * scale + shift = (pixel / depth - mean) / std."""
    means, stds = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
    return (1 / (depth * stds)).float(), (-means / stds).float()
