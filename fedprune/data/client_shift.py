"""What makes one client's inputs differ from another's, as devices' sensors do: for simulations alone.

Each client has one change, drawn once by the seed and its number, of all that it holds, to train and to test
on. A shift is a function of an input's shape as it is stored, a generator and options to a change of stored
inputs, (N, ...); a user's own is found like a built-in one. Not for random changes of batches: see
``augmentation``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedprune import registry, seeds
from fedprune.data.dataset import Rows
from fedprune.errors import DataError
from fedprune.scenario.data import ShiftSpec

Values = NDArray[np.float64]
Change = Callable[[Values], Values]


@dataclass(frozen=True)
class ClientShift:
    """The shift of each of a federation's clients.

    Parameters
    ----------
    spec
        What the scenario says.
    seed
        The scenario's.
    directory
        Where a relative "file.py" starts.
    """

    spec: ShiftSpec
    seed: int
    directory: Path

    def of(self, number: int, inputs: Rows) -> Rows:
        """Return inputs as client ``number`` stores them; they are changed as they are read."""
        factory = registry.load("client_shift", self.spec.name, self.directory)
        generator = seeds.numpy_generator(self.seed, "client shift", number)
        return ShiftedRows(inputs, factory(tuple(inputs.shape[1:]), generator, **self.spec.options))

    def check(self, inputs: Rows) -> None:
        """Refuse a shift that cannot change inputs such as these, before anything runs.

        Raises
        ------
        DataError
            Where it fails on them.
        """
        if inputs.dtype.kind not in "fiu" or inputs.dtype == np.int64:
            raise DataError(f"data.client_shift is for measured values, and inputs are {inputs.dtype}")
        try:
            made = self.of(0, inputs)[np.arange(min(2, len(inputs)))]
        except DataError as error:
            raise DataError(f"data.client_shift: {error}") from error
        except Exception as error:  # A user's own may raise anything; a wrong option is a TypeError.
            raise DataError(
                f"data.client_shift: {self.spec.name}: {type(error).__name__}: {error}"
            ) from error
        if made.shape[1:] != tuple(inputs.shape[1:]):
            raise DataError(
                f"data.client_shift: {self.spec.name} made inputs of shape {made.shape[1:]} of those of "
                f"{tuple(inputs.shape[1:])}: it must keep the shape"
            )


@dataclass(frozen=True)
class ShiftedRows:
    """Stored inputs that are changed as they are read, and are of the same type after it."""

    rows: Rows
    change: Change

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        return tuple(self.rows.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a value."""
        return self.rows.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: NDArray[np.int64]) -> NDArray[Any]:
        """Return the inputs at ``chosen``, changed; whole numbers are rounded and end at their limits."""
        made = self.change(np.asarray(self.rows[chosen]).astype(np.float64))
        if self.dtype.kind == "f":
            return made.astype(self.dtype)
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(made), limits.min, limits.max).astype(self.dtype)


def rotation(shape: tuple[int, ...], generator: np.random.Generator, degrees: float = 30.0) -> Change:
    """Images (C, H, W) turned by one angle, drawn from -degrees to degrees: how a camera is mounted.

    Bilinear; what comes from outside is 0.
    """
    if len(shape) != 3:
        raise DataError(f"rotation is for images, and inputs have shape {shape}: leave it out")
    angle = np.deg2rad(generator.uniform(-degrees, degrees))
    (_, height, width), cos, sin = shape, np.cos(angle), np.sin(angle)
    # In coordinates from -1 to 1, which are stretched where an image is not square.
    turned = [[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]
    theta = torch.tensor([turned], dtype=torch.float64)
    grid = functional.affine_grid(theta, [1, 1, height, width], align_corners=False)

    def change(images: Values) -> Values:
        places = grid.expand(len(images), -1, -1, -1)
        made: Values = functional.grid_sample(torch.from_numpy(images), places, align_corners=False).numpy()
        return made

    return change


def noise(shape: tuple[int, ...], generator: np.random.Generator, std: float = 10.0) -> Change:
    """A pattern of normal noise, the same on every input: a sensor's. ``std`` is in the values' own units."""
    pattern = std * generator.standard_normal(shape)
    return lambda values: values + pattern


def gain(
    shape: tuple[int, ...], generator: np.random.Generator, low: float = 0.5, high: float = 1.5
) -> Change:
    """One factor of all values, drawn from low to high: exposure, or how loud a microphone is."""
    factor = generator.uniform(low, high)
    return lambda values: values * factor


def microphone(
    shape: tuple[int, ...], generator: np.random.Generator, decibels: float = 12.0, knots: int = 8
) -> Change:
    """A frequency response of recordings (..., L): smooth, up to ``decibels`` up or down."""
    length = shape[-1]
    bins = length // 2 + 1
    curve = generator.uniform(-decibels, decibels, knots)
    response = 10 ** (np.interp(np.linspace(0, 1, bins), np.linspace(0, 1, knots), curve) / 20)
    return lambda values: np.fft.irfft(np.fft.rfft(values, axis=-1) * response, n=length, axis=-1)


CLIENT_SHIFTS = {"rotation": rotation, "noise": noise, "gain": gain, "microphone": microphone}
