"""Sound files decoded to samples, and samples taken to another rate.

Files of 16-bit WAV are read by Python itself, others by soundfile, which the extra ``fedprune[audio]``
installs. Not for finding files or for what a model sees of a sound: see ``audio``.
"""

from __future__ import annotations

import io
import math
import wave
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedprune.errors import DataError

#: Bytes that a header promises where its writer did not know them, as programs do that write to a pipe.
_UNKNOWN_LENGTH = 2**31 - 2**16
#: Half the length of the filter, in periods of the lower rate; and the beta of its Kaiser window.
_PERIODS, _BETA = 10, 5.0
#: Terms of the longest filter.
_LARGEST = 20_000


@dataclass(frozen=True, eq=False)
class Sound:
    """A decoded sound.

    Attributes
    ----------
    samples
        int16 (samples,), the mean of its channels.
    rate
        Samples a second.
    whole
        Whether there is as much as its header says.
    """

    samples: NDArray[np.int16]
    rate: int
    whole: bool = True


def decode(data: bytes, what: str) -> Sound:
    """Return a sound.

    Parameters
    ----------
    data
        A WAV file of 16 bits, or what soundfile reads.
    what
        Its name, for messages.

    Raises
    ------
    DataError
        Where it can't be read, or soundfile is needed and not installed.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            if file.getsampwidth() == 2:
                return _of_wave(file)
    except (wave.Error, EOFError, ValueError):
        pass  # Not of that form: soundfile knows more of them.
    try:
        import soundfile
    except ImportError as error:
        raise DataError(
            f'{what} is no WAV file of 16 bits, and others need soundfile: pip install "fedprune[audio]"'
        ) from error
    try:
        values, rate = soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        trouble = getattr(error, "error_string", "") or str(error)
        raise DataError(f"{what} can't be read as a sound ({trouble}): repair it or take it out") from error
    whole = np.clip(np.rint(values * 32768), -32768, 32767).astype(np.int16)
    return Sound(_mono(whole), int(rate))


def _of_wave(file: wave.Wave_read) -> Sound:
    channels, promised = file.getnchannels(), file.getnframes()
    read = file.readframes(promised)
    there = len(read) // (2 * channels)  # The last frame of a file that was cut off may be half a one.
    frames = np.frombuffer(read[: there * 2 * channels], dtype="<i2").reshape(-1, channels)
    whole = there == promised or promised * 2 * channels >= _UNKNOWN_LENGTH
    return Sound(_mono(frames), file.getframerate(), whole)


def _mono(frames: NDArray[np.int16]) -> NDArray[np.int16]:
    """Return the mean of the channels of (samples, channels)."""
    if frames.shape[1] == 1:
        return frames[:, 0].astype(np.int16)
    mean: NDArray[np.int16] = np.rint(frames.mean(axis=1)).astype(np.int16)
    return mean


def resampled(samples: NDArray[np.int16], rate: int, wanted: int) -> NDArray[np.int16]:
    """Return a sound at another rate, int16: as many seconds of it, up to one sample more.

    By a polyphase filter of linear phase that keeps what both rates can hold: a sinc under a Kaiser window
    (Crochiere and Rabiner 1983), as ``scipy.signal.resample_poly`` has it, which a device need not install.

    Parameters
    ----------
    samples
        int16 (samples,).
    rate, wanted
        Samples a second, of them and of what is returned.

    Raises
    ------
    DataError
        Where the rates have so little in common that the filter would be very long.
    """
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    if up == down:
        return samples
    if max(up, down) * 2 * _PERIODS > _LARGEST:
        raise DataError(
            f"sounds of {rate} samples a second can't well be taken to {wanted}: take another rate"
        )
    count = -(-len(samples) * up // down)
    before, kernels = _kernels(up, down)
    blocks = -(-count // up)  # Each of `down` samples before and `up` after.
    padded = np.zeros((blocks - 1) * down + kernels.shape[-1])
    held = samples[: len(padded) - before]
    padded[before : before + len(held)] = held
    made = functional.conv1d(torch.from_numpy(padded)[None, None], kernels, stride=down)
    values = made[0].T.flatten()[:count].round().clamp(-32768, 32767)
    found: NDArray[np.int16] = values.to(torch.int16).numpy()
    return found


@lru_cache(maxsize=8)
def _kernels(up: int, down: int) -> tuple[int, torch.Tensor]:
    """Return by how many samples a block's filters begin before it, and the filters, (up, 1, length).

    Output n = m * up + p is the sum over k of h[n * down - k * up] x[k], with h around 0: filter p, placed at
    the sample m * down.
    """
    half = _PERIODS * max(up, down)
    places = np.arange(-half, half + 1)
    low_pass = np.sinc(places / max(up, down)) * np.kaiser(len(places), _BETA)
    low_pass *= up / low_pass.sum()
    before = half // up
    after = (half + (up - 1) * down) // up
    samples = np.arange(-before, after + 1)
    steps = np.arange(up)[:, None] * down - samples * up
    filters = np.where(np.abs(steps) <= half, low_pass[np.clip(steps + half, 0, 2 * half)], 0)
    return before, torch.from_numpy(filters)[:, None]
