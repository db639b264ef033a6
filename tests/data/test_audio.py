"""Sounds against the samples that were written, and spectrograms against a direct computation."""

import io
import math
import re
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from fedprune.data import SOURCES, Request, Source
from fedprune.data.audio import AudioOptions, Waveforms, mel_filters
from fedprune.data.sounds import decode, resampled
from fedprune.errors import DataError

RNG = np.random.default_rng(0)
RATE = 8000


def samples(count: int = RATE, channels: int = 1) -> np.ndarray:
    return RNG.integers(-20_000, 20_000, (count, channels)).astype(np.int16)


def wav(sound: np.ndarray, rate: int = RATE) -> bytes:
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(sound.astype("<i2").tobytes())
    return held.getvalue()


def read(path: Path, **options: object) -> Source:
    return SOURCES["audio"](Request("audio", path, options={"seconds": 0.5, **options}))


def lay_out(root: Path, names: dict[str, list[str]], rate: int = RATE) -> dict[str, np.ndarray]:
    """Write a file of random samples for each name, by class; return the samples by class/name."""
    kept = {}
    for folder, files in names.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in files:
            sound = samples(int(RNG.integers(1000, 6000)))
            (root / folder / name).write_bytes(wav(sound, rate))
            kept[f"{folder}/{name}"] = sound[:, 0]
    return kept


def fitted(sound: np.ndarray, count: int) -> np.ndarray:
    return np.pad(sound, (0, max(0, count - len(sound))))[:count]


def test_clips_of_class_folders_are_cut_or_filled_up(tmp_path: Path) -> None:
    kept = lay_out(
        tmp_path / "train", {"yes": ["a.wav", "b.wav"], "no": ["c.wav"], "_background_noise_": ["d.wav"]}
    )
    lay_out(tmp_path / "test", {"yes": ["e.wav"], "no": ["f.wav"]})
    made = read(tmp_path)
    assert made.class_names == ("no", "yes")
    assert made.train.inputs.dtype == np.int16
    assert made.train.targets.tolist() == [0, 1, 1]
    for row, name in zip(made.train.inputs, ("no/c.wav", "yes/a.wav", "yes/b.wav"), strict=True):
        np.testing.assert_array_equal(row, fitted(kept[name], RATE // 2))
    assert made.clients is None
    lay_out(tmp_path / "test", {"maybe": ["g.wav"]})
    with pytest.raises(DataError, match="test sounds of class 'maybe' and none to train on"):
        read(tmp_path)
    assert len(read(tmp_path, classes=["no", "yes"]).test) == 2


def test_layout_of_speech_commands(tmp_path: Path) -> None:
    names = {
        word: [f"{who}_nohash_{n}.wav" for who in ("ab12", "cd34", "ef56") for n in range(2)]
        for word in ("cat", "go", "on")
    }
    lay_out(tmp_path, names)
    (tmp_path / "validation_list.txt").write_text("go/cd34_nohash_0.wav\ngo/cd34_nohash_1.wav\n")
    (tmp_path / "testing_list.txt").write_text("cat/ef56_nohash_0.wav\non/ef56_nohash_1.wav\n")
    made = read(tmp_path)
    assert (len(made.train), made.test.targets.tolist()) == (18 - 4, [0, 2])
    assert made.clients is not None
    assert made.clients.tolist().count("cd34") == 4
    few = read(tmp_path, classes=["on", "cat"], others="else")
    assert few.class_names == ("on", "cat", "else")
    assert few.test.targets.tolist() == [1, 0]
    assert few.train.targets.tolist().count(2) == 4
    without = read(tmp_path, classes=["on", "cat"])
    assert set(without.train.targets.tolist()) == {0, 1}
    with pytest.raises(DataError, match="no sounds of class 'cta'; did you mean 'cat'"):
        read(tmp_path, classes=["cta"])


def test_sounds_in_a_column_of_a_table(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sounds = [samples(4000) for _ in range(4)]
    table = pa.table(
        {
            "audio": [{"bytes": wav(sound), "path": None} for sound in sounds],
            "label": ["b", "a", "b", "a"],
            "speaker": [1, 1, 2, 2],
        }
    )
    for split in ("train", "test"):
        parquet.write_table(table, tmp_path / f"{split}.parquet")
    request = Request("audio", tmp_path, client_column="speaker", options={"seconds": 0.5})
    made = SOURCES["audio"](request)
    np.testing.assert_array_equal(made.train.inputs, np.stack([sound[:, 0] for sound in sounds]))
    assert made.train.targets.tolist() == [1, 0, 1, 0]
    assert made.clients is not None
    assert made.clients.tolist() == ["1", "1", "2", "2"]


def test_other_formats_hold_the_same_samples() -> None:
    soundfile = pytest.importorskip("soundfile")
    sound = samples()
    for form, subtype in (("FLAC", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "PCM_16")):
        held = io.BytesIO()
        soundfile.write(held, sound / 32768, RATE, format=form, subtype=subtype)
        found = decode(held.getvalue(), form)
        assert found.rate == RATE
        np.testing.assert_array_equal(found.samples, sound[:, 0])


def test_channels_become_their_mean() -> None:
    sound = samples(channels=2)
    found = decode(wav(sound), "stereo")
    np.testing.assert_array_equal(found.samples, np.rint(sound.astype(float).mean(1)))


def test_what_cannot_be_read_is_explained(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a": ["1.wav", "2.wav", "3.wav"], "b": [f"{n}.wav" for n in range(9)]})
    with pytest.raises(DataError, match="some bands would have no line"):
        read(tmp_path, classes=["b"], mels=200)
    with pytest.raises(DataError, match="a window must have 2 samples or more"):
        read(tmp_path, classes=["b"], window=0.6)
    (tmp_path / "b" / "0.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"b/0.wav (can't be read as a sound|is no WAV file)"):
        read(tmp_path, classes=["b"])
    with pytest.raises(DataError, match="no training sounds"):
        read(tmp_path / "a")
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "rates", [(8000, 16_000), (44_100, 16_000), (16_000, 11_025), (48_000, 8000), (7, 5)]
)
def test_resampling_is_that_of_scipy(rates: tuple[int, int]) -> None:
    signal = pytest.importorskip("scipy.signal")
    common = math.gcd(*rates)
    up, down = rates[1] // common, rates[0] // common
    for count in (1, 2, 50, 3001):
        sound = samples(count)[:, 0]
        expected = signal.resample_poly(sound.astype(np.float64), up, down)
        found = resampled(sound, *rates)
        assert found.shape == expected.shape
        assert np.abs(found - np.clip(expected, -32768, 32767)).max() <= 0.5 + 1e-6


def test_other_rates_become_one_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay_out(tmp_path, {"a": ["1.wav", "2.wav", "3.wav"]})
    twice = lay_out(tmp_path, {"b": ["1.wav", "2.wav", "3.wav"]}, rate=RATE * 2)
    made = read(tmp_path)
    (said,) = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(
        r"sounds of another rate than the first, resampled to 8000 .*: 3, b/.\.wav and others", said
    )
    assert made.inputs is not None
    assert made.inputs.settings()["rate"] == RATE
    everything = np.concatenate([made.train.inputs, made.test.inputs])
    for sound in twice.values():
        expected = fitted(resampled(sound, RATE * 2, RATE), RATE // 2)
        assert (everything == expected).all(axis=1).any()
    caplog.clear()
    asked = read(tmp_path, rate=RATE * 2)
    assert not caplog.records
    assert asked.train.inputs.shape[1] == RATE


def test_sounds_that_were_cut_off_are_said_and_empty_ones_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = lay_out(tmp_path, {"a": [f"{n}.wav" for n in range(6)], "b": [f"{n}.wav" for n in range(6)]})
    whole = (tmp_path / "a" / "1.wav").read_bytes()
    (tmp_path / "a" / "1.wav").write_bytes(whole[: 44 + 801])  # 400 samples, and half a one
    # As a program leaves it that wrote to a pipe: its length is not known.
    piped = (tmp_path / "b" / "2.wav").read_bytes()
    (tmp_path / "b" / "2.wav").write_bytes(piped[:40] + b"\xff\xff\xff\xff" + piped[44:])
    made = read(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        "sounds that end before their files say so, the rest is silence: 1, a/1.wav"
    ]
    everything = np.concatenate([made.train.inputs, made.test.inputs])
    assert (everything == fitted(kept["a/1.wav"][:400], RATE // 2)).all(axis=1).any()
    (tmp_path / "b" / "3.wav").write_bytes(wav(samples(0)))
    with pytest.raises(DataError, match=r"hold no sample: 1, b/3\.wav: take them out"):
        read(tmp_path)


def direct(sound: np.ndarray, rate: int, window: int, hop: int, mels: int) -> np.ndarray:
    """Return a log-mel spectrogram by sums over single samples, lines and bands."""
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / window) for n in range(window)]
    top = 2595 * math.log10(1 + rate / 2 / 700)
    corners = [700 * (10 ** (top * n / (mels + 1) / 2595) - 1) for n in range(mels + 2)]
    turns = np.exp(-2j * np.pi * np.outer(np.arange(window // 2 + 1), np.arange(window)) / window)
    rows = []
    for start in range(0, len(sound) - window + 1, hop):
        frame = sound[start : start + window] / 32768 * hann
        power = np.abs(turns @ frame * 2 / sum(hann)) ** 2
        bands = []
        for band in range(mels):
            low, peak, high = corners[band : band + 3]
            total = 0.0
            for line, value in enumerate(power):
                frequency = line * rate / window
                if low < frequency <= peak:
                    total += value * (frequency - low) / (peak - low)
                elif peak < frequency < high:
                    total += value * (high - frequency) / (high - peak)
            bands.append(10 * math.log10(max(total, 1e-12)))
        rows.append(bands)
    return np.clip(np.array(rows), -80, 0) / 40 + 1


@pytest.mark.parametrize(
    ("seconds", "window", "hop", "mels"), [(0.1, 0.032, 0.016, 12), (0.06, 0.04, 0.02, 9)]
)
def test_spectrograms_are_those_of_a_direct_computation(
    seconds: float, window: float, hop: float, mels: int
) -> None:
    count = round(seconds * RATE)
    inputs = Waveforms.of(count, RATE, AudioOptions(seconds=seconds, window=window, hop=hop, mels=mels))
    stored = np.stack([samples(count)[:, 0], np.zeros(count, dtype=np.int16)])
    found = inputs.tensor(torch.from_numpy(stored))
    assert found.shape == (2, *inputs.shape)
    assert found.dtype == torch.float32
    expected = np.stack(
        [direct(sound, RATE, round(window * RATE), round(hop * RATE), mels) for sound in stored]
    )
    np.testing.assert_allclose(found[:, 0].numpy(), expected, atol=1e-4)
    assert (found[1] == -1).all()  # silence


def test_a_sine_of_full_scale_is_loudest_in_its_own_band() -> None:
    inputs = Waveforms.of(RATE, RATE, AudioOptions(mels=20))
    peaks = 700 * (10 ** (np.linspace(0, np.log10(1 + RATE / 2 / 700), 22)) - 1)[1:-1]
    for band in (3, 10, 18):
        sine = np.sin(2 * np.pi * peaks[band] * np.arange(RATE) / RATE)
        found = inputs.tensor(torch.from_numpy(np.rint(32767 * sine).astype(np.int16))[None])[0, 0]
        assert (found.argmax(1) == band).all()
        assert found.max() > 0.9  # within 4 dB of full scale


def test_filters_overlap_to_one_between_the_outer_peaks() -> None:
    filters = mel_filters(16_000, 512, 40)
    assert filters.shape == (257, 40)
    lines = np.flatnonzero(filters[:, 0].cumsum())[0], np.flatnonzero(filters[:, -1])[0]
    inner = filters[lines[0] + 3 : lines[1]].sum(1)
    np.testing.assert_allclose(inner, 1, atol=1e-9)


def test_a_class_is_named_once(tmp_path: Path) -> None:
    lay_out(tmp_path, {"yes": ["a.wav"], "no": ["b.wav"]})
    for options in ({"classes": ["yes", "yes"]}, {"classes": ["yes"], "others": "yes"}):
        with pytest.raises(DataError, match="name a class twice"):
            read(tmp_path, **options)
