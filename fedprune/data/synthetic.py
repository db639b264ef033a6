"""Made-up data of the kinds that edge devices see, for scenarios that run without a download.

Each is drawn from a seed, the same on every machine: keywords, machine sounds, pictures with and without a
person, movements of a wearer, scenes with shapes. A model has something to learn in each, clients differ as
people and machines do, and results say nothing about the real data sets that they stand in for. Values are
rounded to whole numbers before they are stored, as a sensor does, so that the last bits of a machine's sines
do not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedprune import seeds
from fedprune.data.audio import AudioOptions, Waveforms
from fedprune.data.dataset import Examples
from fedprune.data.partition import choose
from fedprune.data.series import Windows
from fedprune.data.source import Request, Source, SourceOptions

Floats = NDArray[np.float64]

#: Makes example ``number`` of a data set with a generator of its own: (input, target, client).
Maker = Callable[[int, np.random.Generator], tuple[NDArray[Any], Any, int]]

_TEST_SHARE = 6  # Of so many examples one is for testing, unless more is said.


def _generator(request: Request, *number: int) -> np.random.Generator:
    """Return the source of draws: a data set, and each example of it, is the same whatever the seed."""
    return seeds.numpy_generator(0, request.name, *number)


def _made(request: Request, train: int, test: int, make: Maker, **described: Any) -> Source:
    """Return the source of so many examples, of which those are made that the scenario wants."""
    wanted = choose(np.arange(train), request.train_examples, request.seed, "train")
    held = choose(np.arange(train, train + test), request.test_examples, request.seed, "test")
    parts = []
    for numbers in (wanted, held):
        rows = zip(*(make(int(number), _generator(request, int(number))) for number in numbers), strict=True)
        parts.append([np.stack(column) for column in rows])
    (inputs, targets, clients), (held_inputs, held_targets, _) = parts
    train_part, test_part = Examples(inputs, targets), Examples(held_inputs, held_targets)
    return Source(train_part, test_part, clients=clients, **described)


def _parts(examples: int) -> tuple[int, int]:
    """Return how many of so many examples are for training and for testing."""
    return examples - examples // _TEST_SHARE, examples // _TEST_SHARE


# --- sounds ---

_RATE = 16_000


class KeywordOptions(AudioOptions):
    """What ``data.options`` may say of made-up keywords."""

    clips: int = Field(default=2400, ge=12, description="How many there are in all.")
    speakers: int = Field(default=40, ge=1, description="How many people speak them.")
    words: int = Field(default=12, ge=2, description="How many different ones there are.")
    window: float = Field(default=0.04, gt=0, description="Of the spectrogram, in seconds.")
    hop: float = Field(default=0.02, gt=0, description="Of the spectrogram, in seconds.")
    mels: int = Field(default=10, ge=1, description="Bands of the spectrogram.")


def synthetic_keywords(request: Request) -> Source:
    """Made-up keywords: 2,000 + 400 clips of a second, 12 words of two gliding tones, 40 speakers."""
    options = request.read_options(KeywordOptions)
    common = _generator(request)
    samples = round(options.seconds * _RATE)
    time = np.arange(samples) / _RATE
    # A word is two syllables, each a pair of resonances that glide, as vowels do; a speaker scales them.
    words = common.uniform([300, 900], [900, 3000], (options.words, 2, 2, 2))  # syllable, begin or end
    voices = np.exp(common.normal(0, 0.06, options.speakers))

    def speak(number: int, generator: np.random.Generator) -> tuple[NDArray[Any], int, int]:
        word, speaker = int(generator.integers(options.words)), int(generator.integers(options.speakers))
        start, length = generator.uniform(0.05, 0.35), generator.uniform(0.2, 0.3)
        sound = generator.normal(0, generator.uniform(0.005, 0.03), samples)
        loudness = generator.uniform(0.1, 0.5)
        for syllable, (begin, end) in enumerate(words[word]):
            place = (time - start - syllable * length) / length
            voiced = (place >= 0) & (place < 1)
            part = place[voiced, None]
            frequency = (begin + (end - begin) * part) * voices[speaker]
            phase = 2 * np.pi * np.cumsum(frequency, axis=0) / _RATE
            sound[voiced] += loudness * np.sin(np.pi * part[:, 0]) ** 2 * (np.sin(phase) @ [0.6, 0.4])
        return _as_int16(sound), word, speaker

    names = tuple(f"word {number}" for number in range(options.words))
    inputs = Waveforms.of(samples, _RATE, options)
    return _made(request, *_parts(options.clips), speak, class_names=names, inputs=inputs)


class MachineOptions(AudioOptions):
    """What ``data.options`` may say of made-up sounds of machines."""

    clips: int = Field(
        default=2000,
        ge=2,
        description="How many there are to train on, all of machines that run as they should.",
    )
    machines: int = Field(default=20, ge=1, description="How many machines there are.")
    seconds: float = Field(default=0.192, gt=0, description="Length of a clip.")
    window: float = Field(default=0.064, gt=0, description="Of the spectrogram, in seconds.")
    hop: float = Field(default=0.032, gt=0, description="Of the spectrogram, in seconds.")
    mels: int = Field(default=128, ge=1, description="Bands of the spectrogram.")


def synthetic_machine_sounds(request: Request) -> Source:
    """Made-up sounds of 20 machines: 2,000 that run well to train on, 400 + 400 faulty ones to test."""
    options = request.read_options(MachineOptions)
    common = _generator(request)
    samples = round(options.seconds * _RATE)
    # A machine hums at its speed and multiples of it, in proportions of its own.
    speeds = common.uniform(80, 160, options.machines)
    proportions = common.dirichlet(np.full(12, 0.6), options.machines)

    def record(number: int, generator: np.random.Generator) -> tuple[NDArray[Any], int, int]:
        machine = int(generator.integers(options.machines))
        faulty = number >= options.clips and number % 2 == 1
        speed = speeds[machine] * generator.normal(1, 0.003)
        sound = _machine(generator, samples, speed, proportions[machine], faulty)
        return _as_int16(sound), int(faulty), machine

    tested = 2 * max(1, options.clips // 5)
    inputs = Waveforms.of(samples, _RATE, options)
    return _made(request, options.clips, tested, record, inputs=inputs, task="reconstruction")


def _machine(
    generator: np.random.Generator, samples: int, speed: float, proportions: Floats, faulty: bool
) -> Floats:
    """Return the sound of a machine; a faulty one knocks at twice its speed, or whistles."""
    time = np.arange(samples) / _RATE
    multiples = np.arange(1, len(proportions) + 1)
    phases = generator.uniform(0, 2 * np.pi, len(multiples))
    sound = 0.4 * np.sin(2 * np.pi * speed * np.outer(time, multiples) + phases) @ proportions
    sound += generator.normal(0, 0.03, samples)
    if not faulty:
        return np.asarray(sound)
    if generator.random() < 0.5:
        knocks = np.exp(-((time * 2 * speed) % 1) * 12) * np.sin(2 * np.pi * 2500 * time)
        return np.asarray(sound + generator.uniform(0.1, 0.3) * knocks)
    whistle = np.sin(2 * np.pi * generator.uniform(1500, 5000) * time)
    return np.asarray(sound + generator.uniform(0.03, 0.1) * whistle)


def _as_int16(sound: Floats) -> NDArray[np.int16]:
    return np.rint(np.clip(sound, -1, 1) * 32767).astype(np.int16)


# --- pictures ---


class PeopleOptions(SourceOptions):
    """What ``data.options`` may say of made-up pictures with and without a person."""

    pictures: int = Field(default=1800, ge=12, description="How many there are in all.")
    side: int = Field(default=96, ge=16, description="Height and width, in pixels.")
    cameras: int = Field(
        default=20, ge=1, description="How many cameras took them, each in a place of its own."
    )


_SKIN = np.array([235, 190, 160])


def synthetic_people(request: Request) -> Source:
    """Made-up pictures: 1,500 + 300 of 96x96, colour, with or without a figure of a person, 20 cameras."""
    options = request.read_options(PeopleOptions)
    walls = _generator(request).uniform(40, 215, (options.cameras, 2, 3))  # of a place: above and below
    down, across = np.mgrid[0 : options.side, 0 : options.side] / options.side

    def take(number: int, generator: np.random.Generator) -> tuple[NDArray[Any], int, int]:
        person, camera = int(generator.integers(2)), int(generator.integers(options.cameras))
        above, below = walls[camera]
        picture = np.where((down > generator.uniform(0.4, 0.7))[..., None], below, above)
        picture += generator.normal(0, 12, picture.shape)
        for _ in range(generator.integers(1, 5)):  # things, upright and lying, round and square
            picture[_thing(generator, down, across)] = generator.uniform(0, 255, 3)
        if person:
            head, *clothes = _person(generator, down, across)
            picture[head] = generator.uniform(0.35, 1) * _SKIN
            for part in clothes:
                picture[part] = generator.uniform(0, 255, 3)
        return _as_pixels(picture), person, camera

    return _made(request, *_parts(options.pictures), take, class_names=("no person", "person"))


def _thing(generator: np.random.Generator, down: Floats, across: Floats) -> NDArray[np.bool_]:
    middle, size = generator.uniform(0, 1, 2), generator.uniform(0.05, 0.2, 2)
    vertical, horizontal = np.abs(down - middle[0]) / size[0], np.abs(across - middle[1]) / size[1]
    square = generator.random() < 0.5
    return np.asarray((np.maximum if square else np.hypot)(vertical, horizontal) < 1)


def _person(generator: np.random.Generator, down: Floats, across: Floats) -> list[NDArray[np.bool_]]:
    """Return where head, body and legs of a person are."""
    height = generator.uniform(0.45, 0.9)
    top, middle = generator.uniform(0.02, 0.98 - height), generator.uniform(0.15, 0.85)
    # From the top of the head to the feet 0 to 1; across in the same unit.
    y, x = (down - top) / height, (across - middle) / height
    stride = generator.uniform(0.02, 0.12)
    legs = np.abs(np.abs(x) - 0.04 - stride * (y - 0.55)) < 0.045
    return [
        np.hypot(y - 0.1, x) < 0.09,
        (np.abs(x) < 0.13) & (y > 0.19) & (y < 0.58),
        legs & (y >= 0.55) & (y < 1),
    ]


class SceneOptions(SourceOptions):
    """What ``data.options`` may say of made-up scenes."""

    pictures: int = Field(default=720, ge=12, description="How many there are in all.")
    side: int = Field(default=32, ge=8, description="Height and width, in pixels.")
    cameras: int = Field(
        default=10, ge=1, description="How many cameras took them, each with a light of its own."
    )


def synthetic_scenes(request: Request) -> Source:
    """Made-up scenes with masks: 600 + 120 pictures of 32x32, discs and squares on a ground, 10 cameras."""
    options = request.read_options(SceneOptions)
    light = _generator(request).uniform(0.5, 1.2, (options.cameras, 3))
    down, across = np.mgrid[0 : options.side, 0 : options.side] / options.side

    def take(number: int, generator: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any], int]:
        camera, mask = int(generator.integers(options.cameras)), np.zeros(down.shape, dtype=np.uint8)
        picture = generator.uniform(60, 120, 3) + generator.normal(0, 10, (*down.shape, 3))
        for _ in range(generator.integers(1, 4)):
            kind, size = generator.integers(1, 3), generator.uniform(0.1, 0.25)
            y, x = (axis - generator.uniform(0.1, 0.9) for axis in (down, across))
            inside = np.hypot(y, x) < size if kind == 1 else np.maximum(np.abs(y), np.abs(x)) < size
            picture[inside] = generator.uniform(60, 255, 3)
            mask[inside] = kind
        return _as_pixels(picture * light[camera]), mask, camera

    names = ("ground", "disc", "square")
    return _made(request, *_parts(options.pictures), take, class_names=names, task="segmentation")


def _as_pixels(picture: Floats) -> NDArray[np.uint8]:
    """Return (H, W, 3) as (3, H, W)."""
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8).transpose(2, 0, 1)


# --- movements ---

_READINGS, _HERTZ = 128, 50

#: Of each activity: steps a second, how hard they are, and which way is up.
_ACTIVITIES = {
    "walking": (1.9, 1.0, (1, 0, 0)),
    "walking upstairs": (1.6, 0.8, (1, 0, 0)),
    "walking downstairs": (2.1, 1.4, (1, 0, 0)),
    "sitting": (0, 0.03, (0.8, 0.6, 0)),
    "standing": (0, 0.03, (1, 0, 0)),
    "lying": (0, 0.02, (0, 0, 1)),
}


class ActivityOptions(SourceOptions):
    """What ``data.options`` may say of made-up movements."""

    windows: int = Field(default=3600, ge=12, description="How many there are in all.")
    subjects: int = Field(default=30, ge=1, description="How many people move.")


def synthetic_activity(request: Request) -> Source:
    """Made-up movements: 3,000 + 600 windows of 128 readings, 6 channels, 6 activities, 30 subjects."""
    options = request.read_options(ActivityOptions)
    common = _generator(request)
    pace = common.normal(1, 0.12, options.subjects)
    force = np.exp(common.normal(0, 0.25, options.subjects))
    # How a subject wears the sensor: turned about one axis after the other.
    tilt = np.stack([_turned(*angles) for angles in common.normal(0, 0.25, (options.subjects, 3))])
    # How each axis of acceleration and of rotation swings with a step and with half of one, by activity.
    swing = common.normal(0, 0.5, (len(_ACTIVITIES), 6, 2))
    own = common.normal(0, 0.4, (options.subjects, len(_ACTIVITIES), 6, 2))  # a gait of one's own
    time = np.arange(_READINGS) / _HERTZ
    kinds = list(_ACTIVITIES.values())

    def move(number: int, generator: np.random.Generator) -> tuple[NDArray[Any], int, int]:
        activity, subject = int(generator.integers(len(kinds))), int(generator.integers(options.subjects))
        steps, strength, up = kinds[activity]
        cadence = steps * pace[subject] * generator.normal(1, 0.03)
        phase = 2 * np.pi * (cadence * time + generator.random())
        moved = (swing[activity] + own[subject, activity]) @ np.stack([np.sin(phase), np.sin(2 * phase + 1)])
        moved *= strength * force[subject] if steps else 0.0
        moved += generator.normal(0, 0.05 + strength / 2, moved.shape)
        moved[:3] = tilt[subject] @ (moved[:3] + np.array(up)[:, None])
        return (np.rint(moved * 1024) / 1024).astype(np.float32), activity, subject  # in whole steps

    channels = tuple(f"{what} {axis}" for what in ("acceleration", "rotation") for axis in "xyz")
    inputs = Windows((6, _READINGS), channels=channels)
    names = tuple(_ACTIVITIES)
    return _made(request, *_parts(options.windows), move, class_names=names, inputs=inputs)


def _turned(*angles: float) -> Floats:
    """Return the rotation about each of the three axes, in this order."""
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        about = np.eye(3)
        about[[one, two], [one, two]] = np.cos(angle)
        about[one, two], about[two, one] = -np.sin(angle), np.sin(angle)
        turned = turned @ about
    return turned
