"""Sounds: clips out of WAV and FLAC files or a column of a table, and their log-mel spectrograms.

A clip is stored as int16 samples at one rate, cut or filled up with silence to one length; its spectrogram is
computed batch by batch. Not for decoding files: see ``sounds``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedprune.data import columns
from fedprune.data.dataset import Examples
from fedprune.data.inputs import Inputs
from fedprune.data.partition import choose, split_without_test
from fedprune.data.sounds import decode, resampled
from fedprune.data.source import Request, Source, SourceOptions
from fedprune.errors import DataError
from fedprune.wording import did_you_mean

_logger = logging.getLogger(__name__)

_SUFFIXES = (".wav", ".flac", ".ogg")

#: Decibels below full scale: softer is silence.
_FLOOR = -80.0

_EXPECTED = "expected a folder of .wav or .flac files for each class, or such folders in train/ and test/"


@dataclass(frozen=True)
class Waveforms(Inputs):
    """Clips, stored as int16 (N, samples), taken as log-mel spectrograms, (1, frames, mels).

    A frame is ``window`` samples under a Hann window, and one begins every ``hop`` samples; none reaches over
    an end. Its power spectrum, in which a sine of full scale has a line of 1, is summed by triangular filters
    that are spaced evenly in mel, 2595 log10(1 + f / 700) (O'Shaughnessy 1987; HTK's). Decibels from -80 to 0
    become -1 to 1.

    Attributes
    ----------
    shape
        (1, frames, mels).
    rate
        Samples a second.
    window, hop
        In samples.
    samples
        Of a clip.
    """

    shape: tuple[int, int, int]
    rate: int = 16_000
    window: int = 640
    hop: int = 320
    samples: int = 16_000

    kind: ClassVar = "waveforms"

    @classmethod
    def of(cls, samples: int, rate: int, options: AudioOptions) -> Waveforms:
        """Return inputs of clips of so many samples, as options ask.

        Raises
        ------
        DataError
            Where a clip is shorter than a window, or mel filters are narrower than the spectrum's lines.
        """
        window, hop = round(options.window * rate), round(options.hop * rate)
        if not 2 <= window <= samples or hop < 1:
            raise DataError(
                f"data.options.window is {options.window} s and hop {options.hop} s: of clips of "
                f"{samples / rate:g} s at {rate} Hz a window must have 2 samples or more, and a hop 1"
            )
        if not mel_filters(rate, window, options.mels).sum(0).all():
            raise DataError(
                f"data.options.mels is {options.mels}: some bands would have no line of the spectrum of "
                f"{options.window} s; take fewer, or a longer data.options.window"
            )
        frames = 1 + (samples - window) // hop
        return cls((1, frames, options.mels), rate, window, hop, samples)

    def tensor(self, stored: Tensor) -> Tensor:
        """Return spectrograms, float32 (B, 1, frames, mels), from -1 to 1."""
        frames = (stored.float() / 32768).unfold(-1, self.window, self.hop)
        hann = torch.hann_window(self.window, device=stored.device)
        spectrum = torch.fft.rfft(frames * hann)
        power = torch.view_as_real(spectrum).square().sum(-1) * (2 / hann.sum()) ** 2
        filters = mel_filters(self.rate, self.window, self.shape[-1])
        bands = power @ torch.from_numpy(filters).float().to(stored.device)
        decibels = 10 * bands.clamp_min(1e-12).log10()
        return (decibels.clamp(_FLOOR, 0) / (-_FLOOR / 2) + 1).unsqueeze(1)

    def settings(self) -> dict[str, object]:
        """Return rate, window, hop and length."""
        return {"rate": self.rate, "window": self.window, "hop": self.hop, "samples": self.samples}


@lru_cache(maxsize=8)
def mel_filters(rate: int, window: int, mels: int) -> NDArray[np.float64]:
    """Return triangular filters, (window // 2 + 1, mels), with peaks of 1, from 0 Hz to half the rate.

    Parameters
    ----------
    rate
        Samples a second.
    window
        Samples of which the spectrum is taken.
    mels
        How many filters.
    """
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    low, peak, high = corners[:-2], corners[1:-1], corners[2:]
    lines = frequencies[:, None]
    return np.maximum(0, np.minimum((lines - low) / (peak - low), (high - lines) / (high - peak)))


class AudioOptions(SourceOptions):
    """What ``data.options`` may say of sounds."""

    seconds: float = Field(
        default=1.0,
        gt=0,
        le=600,
        description="Length of a clip: longer ones are cut, shorter ones filled up with silence.",
    )
    window: float = Field(default=0.032, gt=0, description="Of the spectrogram, in seconds.")
    hop: float = Field(default=0.016, gt=0, description="Of the spectrogram, in seconds.")
    mels: int = Field(default=40, ge=1, description="Bands of the spectrogram.")


class FileOptions(AudioOptions):
    """What ``data.options`` may say of files with sounds."""

    rate: int | None = Field(
        default=None,
        ge=100,
        le=400_000,
        description="Samples a second to which all are resampled; by default those of the first sound.",
    )
    classes: tuple[str, ...] = Field(default=(), description="Those to tell apart; all by default.")
    others: str | None = Field(
        default=None, description="Name of a class of all others; by default those are left out."
    )
    hub: str | None = Field(
        default=None, description="Where the Hugging Face hub has the table, without data.path."
    )


@dataclass(frozen=True)
class _Clip:
    """A file, or what a table has of one."""

    label: str
    read: Callable[[], bytes]
    name: str
    client: str


def audio(request: Request) -> Source:
    """Sounds by class: folders of WAV or FLAC files, the layout of Speech Commands, or a table."""
    options = request.read_options(FileOptions)
    path = request.path
    folder = path is not None and path.is_dir() and not any(path.glob("**/*.parquet"))
    splits = _from_folder(path) if folder and path is not None else _from_table(request, options)
    names = _class_names(splits[0], options)
    if not options.classes and (unknown := {clip.label for clip in splits[-1]} - set(names)):
        raise DataError(
            f"data set {request.name!r} has test sounds of class {min(unknown)!r} and none to train on: name "
            "the classes to tell apart in data.options.classes"
        )
    kept = [[clip for clip in clips if _label(clip.label, names, options) is not None] for clips in splits]
    if len(kept) == 1:
        train, test = split_without_test(len(kept[0]))
        kept = [[kept[0][place] for place in places] for places in (train, test)]
    for clips, split in zip(kept, ("training", "test"), strict=True):
        if not clips:
            raise DataError(f"data set {request.name!r} has no {split} sounds of its classes: {_EXPECTED}")
    chosen = [
        [clips[place] for place in choose(np.arange(len(clips)), wanted, request.seed, split)]
        for clips, wanted, split in zip(
            kept, (request.train_examples, request.test_examples), ("train", "test"), strict=True
        )
    ]
    # The first of all: which are chosen is for the seed.
    rate = options.rate or decode(kept[0][0].read(), kept[0][0].name).rate
    samples = round(options.seconds * rate)
    train_part, test_part = (
        Examples(sounds, np.array([_label(clip.label, names, options) for clip in clips], dtype=np.int64))
        for sounds, clips in zip(_decoded(chosen, samples, rate, bool(options.rate)), chosen, strict=True)
    )
    clients = np.array([clip.client for clip in chosen[0]], dtype=np.str_)
    return Source(
        train_part,
        test_part,
        names,
        inputs=Waveforms.of(samples, rate, options),
        clients=clients if clients.astype(bool).all() else None,
    )


def own_sounds(path: Path, inputs: Waveforms, names: Sequence[str], options: FileOptions) -> list[Examples]:
    """Return a device's own sounds, for training and, if it has some apart, for testing.

    Parameters
    ----------
    path
        A folder with a folder a class, in itself or in ``train`` and ``test``.
    inputs
        What the model takes.
    names
        The classes; () where sounds are reconstructed: then all are normal, target 0.
    options
        Those of the scenario's data set.

    Raises
    ------
    DataError
        Where there are none, or some of another class.
    """
    if not path.is_dir():
        raise DataError(f"{path} is no folder: {_EXPECTED}")
    splits = _from_folder(path)
    if not names:
        splits = [[replace(clip, label="normal") for clip in clips] for clips in splits]
        names, options = ("normal",), FileOptions()
    if not options.classes and (unknown := {clip.label for clips in splits for clip in clips} - set(names)):
        raise DataError(
            f"{path} has sounds of {min(unknown)!r}, which is none of the classes, {', '.join(names)}"
        )
    kept = [[clip for clip in clips if _label(clip.label, names, options) is not None] for clips in splits]
    return [
        Examples(sounds, np.array([_label(clip.label, names, options) for clip in clips], dtype=np.int64))
        for sounds, clips in zip(_decoded(kept, inputs.samples, inputs.rate, True), kept, strict=True)
    ]


def _class_names(clips: Iterable[_Clip], options: FileOptions) -> tuple[str, ...]:
    there = sorted({clip.label for clip in clips})
    if not options.classes:
        return tuple(there)
    names = options.classes + ((options.others,) if options.others else ())
    if len(set(names)) < len(names):
        raise DataError(f"data.options.classes and others name a class twice: {', '.join(names)}")
    for name in options.classes:
        if name not in there:
            raise DataError(f"data.options.classes: no sounds of class {name!r}{did_you_mean(name, there)}")
    return names


def _label(name: str, names: Sequence[str], options: FileOptions) -> int | None:
    """Return the number of a class; None where its sounds are left out."""
    if name in names:
        return names.index(name)
    return len(names) - 1 if options.others else None


def _from_folder(root: Path) -> list[list[_Clip]]:
    """Return the clips of a folder: training and test ones, or all where nothing tells them apart."""
    if (root / "train").is_dir() and (root / "test").is_dir():
        return [_by_class(root / split) for split in ("train", "test")]
    clips = _by_class(root)
    lists = [_listed(root / f"{split}_list.txt") for split in ("validation", "testing")]
    if not any(lists):
        return [clips]
    # Speech Commands: what is listed for validation is left out.
    validation, testing = lists
    train = [clip for clip in clips if clip.name not in validation | testing]
    return [train, [clip for clip in clips if clip.name in testing]]


def _listed(file: Path) -> frozenset[str]:
    return frozenset(file.read_text(encoding="utf-8").split()) if file.is_file() else frozenset()


def _by_class(root: Path) -> list[_Clip]:
    """Return a folder's clips by class and name; folders such as ``_background_noise_`` are no classes."""
    folders = sorted(f for f in root.iterdir() if f.is_dir() and f.name[0] not in "._")
    return [
        _Clip(folder.name, file.read_bytes, f"{folder.name}/{file.name}", _speaker(file.name))
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in _SUFFIXES
    ]


def _speaker(name: str) -> str:
    """Return who speaks in a file of Speech Commands, ``SPEAKER_nohash_NUMBER.wav``; "" for other names."""
    return name.partition("_nohash_")[0] if "_nohash_" in name else ""


def _from_table(request: Request, options: FileOptions) -> list[list[_Clip]]:
    """Return the clips of parquet files, or of the hub, with columns of sounds and of labels."""
    if request.path is not None and not request.path.exists():
        raise DataError(f"data.path {request.path} does not exist: {_EXPECTED}")
    return [_rows(table, request) for table in columns.read(request, options.hub) if table is not None]


def _rows(table: Any, request: Request) -> list[_Clip]:
    sounds = [field.name for field in table.schema if _holds_sounds(field.type)]
    if len(sounds) != 1:
        raise DataError(
            f"data set {request.name!r} must have one column of sounds, {{bytes, path}}, and has "
            f"{', '.join(sounds) or 'none'} (there are {', '.join(table.column_names)})"
        )
    label = request.label_column or "label"
    columns.check(table, [label], "data.label_column")
    owners: Sequence[str | None] = [""] * len(table)
    if request.client_column is not None:
        columns.check(table, [request.client_column], "data.partition.column")
        owners = columns.texts(table, request.client_column)
    clips = []
    rows = zip(table.column(sounds[0]).to_pylist(), columns.texts(table, label), owners, strict=True)
    for number, (sound, name, owner) in enumerate(rows):
        if not sound or sound["bytes"] is None or name is None:
            raise DataError(f"data set {request.name!r}: row {number} has no sound, or no label")
        clips.append(_Clip(name, partial(bytes, sound["bytes"]), f"row {number}", owner or ""))
    return clips


def _holds_sounds(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_struct(kind)) and "bytes" in {kind.field(n).name for n in range(kind.num_fields)}


def _decoded(
    splits: Sequence[Sequence[_Clip]], samples: int, rate: int, asked: bool
) -> list[NDArray[np.int16]]:
    """Decode the clips of each split, at one rate, each cut or filled up with silence to so many samples.

    Said once is how many were cut off in their files and, unless the rate was asked for, resampled.
    """
    arrays = [np.zeros((len(clips), samples), dtype=np.int16) for clips in splits]
    empty, cut_off, others = [], [], []
    for array, clips in zip(arrays, splits, strict=True):
        for row, clip in zip(array, clips, strict=True):
            sound = decode(clip.read(), clip.name)
            if not len(sound.samples):
                empty.append(clip.name)
            if not sound.whole:
                cut_off.append(clip.name)
            if sound.rate != rate:
                others.append(clip.name)
            found = resampled(sound.samples, sound.rate, rate)
            row[: len(found)] = found[:samples]
    if empty:
        raise DataError(f"sounds that hold no sample: {_listed_few(empty)}: take them out")
    if cut_off:
        _logger.warning(
            "sounds that end before their files say so, the rest is silence: %s", _listed_few(cut_off)
        )
    if others and not asked:
        _logger.warning(
            "sounds of another rate than the first, resampled to %d a second (data.options.rate): %s",
            rate,
            _listed_few(others),
        )
    return arrays


def _listed_few(names: Sequence[str]) -> str:
    """Return how many names there are, and the first."""
    return f"{len(names)}, {names[0]}{' and others' if len(names) > 1 else ''}"
