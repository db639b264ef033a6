"""Random changes of training inputs, by name: crops, flips, erased rectangles, noise, masks, mixup.

An augmentation is a function of inputs, (B, ...), a generator and options to inputs of the same shape; a
user's own is found like a built-in one. It sees inputs as they are stored or, marked by `on_model_inputs`, as
a model takes them; marked by `on_batches`, it changes targets, too. Not for what differs from client
to client and stays: see ``client_shift``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedprune import registry
from fedprune.errors import DataError, PluginError
from fedprune.scenario.data import AugmentSpec

Change = Callable[..., Any]
_F = TypeVar("_F", bound=Change)


def on_model_inputs(function: _F) -> _F:
    """Mark an augmentation as one of inputs as a model takes them, floats, and not as they are stored."""
    function.on_model_inputs = True  # type: ignore[attr-defined]
    return function


def on_batches(function: _F) -> _F:
    """Mark an augmentation that also takes and returns targets: (x, y, generator) to (x, y).

    Inputs are as a model takes them, and targets as a task's ``soft`` makes them: floats, of classes (B, K).
    """
    function.on_batches = True  # type: ignore[attr-defined]
    return on_model_inputs(function)


@dataclass(frozen=True)
class Augmentation:
    """A random change with its options.

    Parameters
    ----------
    function
        The change.
    options
        Its options.
    name
        What it is called, for messages.
    """

    function: Change
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def on_model_inputs(self) -> bool:
        """Whether it changes inputs as a model takes them."""
        return bool(getattr(self.function, "on_model_inputs", False))

    @property
    def on_batches(self) -> bool:
        """Whether it changes targets, too."""
        return bool(getattr(self.function, "on_batches", False))

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed inputs, (B, ...)."""
        made: Tensor = self.function(inputs, generator, **self.options)
        return made

    def mixed(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return changed inputs and targets, where it changes both."""
        made: tuple[Tensor, Tensor] = self.function(x, y, generator, **self.options)
        return made


def augmentations(
    specs: Iterable[str | AugmentSpec], directory: Path | None = None
) -> tuple[Augmentation, ...]:
    """Return what ``data.augment`` names.

    Raises
    ------
    PluginError
        Where there is none of a name.
    """
    found = []
    for spec in specs:
        name, options = (spec, {}) if isinstance(spec, str) else (spec.name, spec.options)
        found.append(Augmentation(registry.load("augmentation", name, directory), options, name))
    return tuple(found)


def check(changes: Iterable[Augmentation], stored: Tensor, tensor: Callable[[Tensor], Tensor]) -> None:
    """Refuse augmentations that cannot change a data set's inputs, before anything runs.

    Parameters
    ----------
    changes
        What is asked for.
    stored
        Some inputs, as they are stored.
    tensor
        Makes of these what a model takes.

    Raises
    ------
    DataError
        Where one fails on the inputs, or makes another shape of them.
    """
    for change in changes:
        if change.on_batches:
            continue  # What targets become is for the task to say, which checks it.
        given = tensor(stored) if change.on_model_inputs else stored
        try:
            made = change(given.clone(), torch.Generator().manual_seed(0))
        except (DataError, PluginError) as error:
            raise DataError(f"data.augment: {error}") from error
        except Exception as error:  # A user's own may raise anything; a wrong option is a TypeError.
            raise DataError(f"data.augment: {change.name}: {type(error).__name__}: {error}") from error
        if made.shape != given.shape:
            raise DataError(
                f"data.augment: {change.name} made inputs of shape {tuple(made.shape)} of those of "
                f"{tuple(given.shape)}: it must keep the shape"
            )


def crop_padding(height: int, width: int) -> int:
    """Return by how many black pixels ``crop`` may shift an image: an eighth of its smaller side, 1 to 4."""
    return min(4, max(1, min(height, width) // 8))


def crop(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W), each padded with black and cut back to H x W at a place of its own."""
    count, _, height, width = _images(pixels, "crop")
    padding = crop_padding(height, width)
    top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    padded = functional.pad(pixels, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, 2 padding + 1, same, H, W)
    return windows[torch.arange(count), :, top, left]


def flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W), each mirrored left to right with probability 1/2."""
    count, *_ = _images(pixels, "flip")
    mirrored = torch.rand(count, generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)


@on_model_inputs
def random_erasing(
    pixels: Tensor,
    generator: torch.Generator,
    probability: float = 0.5,
    smallest: float = 0.02,
    largest: float = 0.33,
) -> Tensor:
    """Return images (B, C, H, W), each with a rectangle set to 0, which is the mean once they are normalised.

    Random erasing (Zhong et al. 2020). A side that would be longer than the image's ends with it, where the
    paper draws again.

    Parameters
    ----------
    pixels
        What the model takes.
    generator
        Draws the rectangles.
    probability
        That an image has one.
    smallest, largest
        Share of an image that it covers; its proportions are from 0.3 to 1 / 0.3.
    """
    count, _, height, width = _images(pixels, "random_erasing")
    chosen, area, shape, down, across = torch.rand((5, count), generator=generator)
    area = (smallest + (largest - smallest) * area) * height * width
    proportion = torch.exp((2 * shape - 1) * math.log(1 / 0.3))
    tall = (area * proportion).sqrt().round().clamp(1, height)
    wide = (area / proportion).sqrt().round().clamp(1, width)
    top, left = (down * (height - tall + 1)).floor(), (across * (width - wide + 1)).floor()
    rows = _between(height, top, tall)[:, None, :, None]
    columns = _between(width, left, wide)[:, None, None, :]
    erased = rows & columns & (chosen < probability).view(-1, 1, 1, 1)
    return pixels.masked_fill(erased, 0)


@on_model_inputs
def jitter(inputs: Tensor, generator: torch.Generator, std: float = 0.1) -> Tensor:
    """Return inputs, floats (B, ...), with independent normal noise of standard deviation ``std``."""
    if not inputs.is_floating_point():
        raise DataError(f"jitter is for measured values, and inputs are {inputs.dtype}: leave it out")
    return inputs + std * torch.randn(inputs.shape, generator=generator)


@on_model_inputs
def spec_augment(
    spectrograms: Tensor,
    generator: torch.Generator,
    masks: int = 2,
    frames: float = 0.2,
    bands: float = 0.2,
) -> Tensor:
    """Return spectrograms (B, 1, frames, bands) with masked frames and bands (SpecAugment, Park et al. 2019).

    What is masked becomes the mean of its spectrogram; time is not warped.

    Parameters
    ----------
    spectrograms
        What the model takes.
    generator
        Draws the masks.
    masks
        How many in each direction.
    frames, bands
        The largest share of each that a mask covers; from 0 on.
    """
    if spectrograms.ndim != 4 or spectrograms.shape[1] != 1:
        raise DataError(
            f"spec_augment is for spectrograms (B, 1, frames, bands), and inputs have shape "
            f"{tuple(spectrograms.shape)}: leave it out"
        )
    count, _, long, high = spectrograms.shape
    masked = torch.zeros((count, long, high), dtype=torch.bool)
    for length, share, other in ((long, frames, 2), (high, bands, 1)):
        for _ in range(masks):
            size, place = torch.rand((2, count), generator=generator)
            covered = (size * (round(share * length) + 1)).floor()
            start = (place * (length - covered + 1)).floor()
            masked |= _between(length, start, covered).unsqueeze(other)
    means = spectrograms.mean(dim=(2, 3), keepdim=True)
    return torch.where(masked.unsqueeze(1), means, spectrograms)


@on_batches
def mixup(x: Tensor, y: Tensor, generator: torch.Generator, alpha: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return a batch of which each example is mixed with another, and its target (Zhang et al., ICLR 2018).

    The share of the other, one for a batch as in the authors' code, is drawn from Beta(alpha, alpha).

    Parameters
    ----------
    x
        What the model takes, floats (B, ...).
    y
        Targets, floats (B, ...).
    generator
        Draws pairs and share.
    alpha
        Above 0; the larger, the more of both.
    """
    if not x.is_floating_point():
        raise DataError(f"mixup is for measured values, and inputs are {x.dtype}: leave it out")
    seed = int(torch.randint(2**62, (), generator=generator))  # PyTorch's beta takes no generator.
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    other = torch.randperm(len(x), generator=generator)
    return torch.lerp(x, x[other], share), torch.lerp(y, y[other], share)


def _images(inputs: Tensor, name: str) -> torch.Size:
    """Return the shape of images; refuse other inputs."""
    if inputs.ndim != 4:
        raise DataError(f"{name} is for images, and inputs have shape {tuple(inputs.shape)}: leave it out")
    return inputs.shape


def _between(length: int, start: Tensor, covered: Tensor) -> Tensor:
    """Return which of so many places lie in a range of each example, (B, length)."""
    places = torch.arange(length)
    return (places >= start[:, None]) & (places < (start + covered)[:, None])


AUGMENTATIONS: dict[str, Change] = {
    "crop": crop,
    "flip": flip,
    "random_erasing": random_erasing,
    "jitter": jitter,
    "spec_augment": spec_augment,
    "mixup": mixup,
}
