"""A device's own sounds, recordings, rows and texts: it trains on them as a client of a simulation does."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, RecordDict
from inprocess import federate, plan

from fedprune import data, deployment
from fedprune.client.app import FederatedClientApp
from fedprune.client.site import Site
from fedprune.data import load_own
from fedprune.errors import DataError
from fedprune.scenario import Scenario, load_scenario

pytest.importorskip("pyarrow")

RATE = 2000
RNG = np.random.default_rng(0)


def sounds(root: Path, count: int) -> None:
    """Write clips of two words, high or low, some longer than half a second and some shorter."""
    for word, pitch in (("high", 400), ("low", 100)):
        (root / word).mkdir(parents=True)
        for number in range(count):
            length = int(RNG.integers(500, 1500))
            noise = RNG.normal(scale=2000, size=length)
            clip = 9000 * np.sin(2 * np.pi * pitch * np.arange(length) / RATE) + noise
            with wave.open(str(root / word / f"{word}{number:02d}_nohash_0.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(RATE)
                file.writeframes(clip.astype("<i2").tobytes())


def rows(count: int, fractions: bool = False) -> str:
    """Return a table of numbers, a category, whose a row is, and a class, or a number, to predict."""
    lines = ["age,job,score,who"]
    for number in range(count):
        age, job = int(RNG.integers(20, 70)), RNG.choice(["cook", "judge", "smith"])
        score = f"{age / 10 + 0.05}" if fractions else ("old" if age > 45 else "young")
        lines.append(f"{age if number % 7 else ''},{job},{score},p{number % 4}")
    return "\n".join(lines) + "\n"


def recordings(count: int) -> str:
    lines = ["x,y,move,who"]
    for number in range(count):
        still = number // 40 % 2
        x, y = RNG.normal(scale=0.1 + 2 * still, size=2)
        lines.append(f"{x:.4f},{y + 5:.4f},{'walk' if still else 'sit'},p{number * 4 // count}")
    return "\n".join(lines) + "\n"


def reviews(count: int) -> str:
    words = {"good": ["fine", "lovely", "great"], "bad": ["poor", "awful", "dull"]}
    lines = ["text,stars,who"]
    for number in range(count):
        stars = ("good", "bad")[number // 3 % 2]
        lines.append(f"{' '.join(RNG.choice(words[stars], 4))},{stars},p{number % 4}")
    return "\n".join(lines) + "\n"


def of_client(table: str, who: str) -> str:
    """Return the lines of a table that are a client's."""
    head, *lines = table.splitlines()
    return "\n".join([head, *(line for line in lines if line.endswith(f",{who}"))]) + "\n"


NATURAL = {"scheme": "natural", "column": "who"}
TABLES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "classes of rows": (rows(120), {"name": "tabular", "options": {"target": "score"}}, {"name": "mlp"}),
    "numbers of rows": (
        rows(120, True),
        {"name": "tabular", "options": {"target": "score"}},
        {"name": "mlp"},
    ),
    "recordings": (
        recordings(960),
        {"name": "series", "options": {"label": "move", "window": 8}},
        {"name": "mlp"},
    ),
    "classes of texts": (
        reviews(120),
        {"name": "text", "options": {"column": "text", "label": "stars", "length": 24}},
        {"name": "lstm", "hidden": 16},
    ),
    "next characters": (
        reviews(120),
        {"name": "text", "options": {"column": "text", "length": 24}},
        {"name": "lstm", "hidden": 16},
    ),
}


def asked(model: dict[str, Any], spec: dict[str, Any]) -> Scenario:
    return plan(
        model=model,
        strategy={"name": "fedavg"},
        data=spec,
        rounds=1,
        clients__training__batch_size=4,
        clients__per_round=4,
        clients__training__optimizer__lr=0.002,
    )


def as_deployed(scenario: Scenario, folder: Path) -> Scenario:
    """Return the scenario that `fedprune deploy init` writes for devices, without the data's own place."""
    deployment.init(folder, scenario, host="localhost", port=9000)
    written = folder / "app" / "scenario.yaml"
    content = yaml.safe_load(written.read_text())
    content["data"].pop("path")
    written.write_text(yaml.safe_dump(content))
    return load_scenario(written)


def check_same_answers(scenario: Scenario, devices: Scenario, places: dict[int, Path]) -> None:
    """Given its own data in a file, a client answers the messages of a simulation with the same values."""
    made = federate(scenario)
    for number, place in places.items():
        site = Site(devices, load_own(str(place), devices, number))
        assert site.data.info.inputs == made.data.info.inputs
        context = Context(1, number + 2, {"partition-id": number}, RecordDict(), {})
        pairs = [pair for pair in made.trained() if pair[0].metadata.dst_node_id == number + 2]
        assert pairs
        for message, reply in pairs:
            own = FederatedClientApp(lambda _, site=site: site)(message, context)
            assert own.has_content(), own.error.reason
            assert own.content.array_records == reply.content.array_records


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_ones_own_is_learnt_as_in_a_simulation(kind: str, tmp_path: Path) -> None:
    table, spec, model = TABLES[kind]
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "train.csv").write_text(table)
    (tmp_path / "all" / "test.csv").write_text(table)
    scenario = asked(model, {**spec, "path": str(tmp_path / "all"), "partition": NATURAL})
    devices = as_deployed(scenario, tmp_path / "edge")
    places = {}
    for number in range(4):
        places[number] = tmp_path / f"p{number}.csv"
        places[number].write_text(of_client(table, f"p{number}"))
    check_same_answers(scenario, devices, places)


def test_sounds_of_ones_own_are_learnt_as_in_a_simulation(tmp_path: Path) -> None:
    for number in range(4):
        sounds(tmp_path / f"device{number}", 6)
    for split in ("train", "test"):
        for number in range(4):
            for file in (tmp_path / f"device{number}").rglob("*.wav"):
                place = tmp_path / "all" / split / file.parent.name / f"p{number}_nohash_{file.stem[:-9]}.wav"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(file.read_bytes())
    options = {"seconds": 0.5, "window": 0.064, "hop": 0.032, "mels": 10}
    spec = {"name": "audio", "path": str(tmp_path / "all"), "options": options}
    scenario = asked({"name": "cnn", "width": 0.25}, {**spec, "partition": {"scheme": "natural"}})
    devices = as_deployed(scenario, tmp_path / "edge")
    check_same_answers(scenario, devices, {number: tmp_path / f"device{number}" for number in range(4)})
    (tmp_path / "device0" / "middle").mkdir()
    (tmp_path / "device0" / "low" / "low00_nohash_0.wav").rename(tmp_path / "device0" / "middle" / "a.wav")
    with pytest.raises(DataError, match="sounds of 'middle', which is none of the classes, high, low"):
        load_own(str(tmp_path / "device0"), devices, 0)


def test_sounds_to_reconstruct_are_all_normal(tmp_path: Path) -> None:
    sounds(tmp_path / "own", 2)
    rate = {"rate": RATE, "window": 128, "hop": 64, "samples": RATE // 2}
    inputs = {"kind": "waveforms", "shape": [1, 14, 10], "task": "reconstruction", **rate}
    asks = plan(data={"name": "synthetic_machine_sounds", "inputs": inputs}, model={"name": "autoencoder"})
    own = load_own(str(tmp_path / "own"), asks, 0)
    assert own.info.task == "reconstruction"
    held = own.client(0).examples
    assert held.inputs.shape == (4, RATE // 2)
    assert held.targets.tolist() == [0] * 4
    assert own.info.inputs.tensor(torch.from_numpy(held.inputs)).shape == (4, 1, 14, 10)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    table, spec, model = TABLES["classes of rows"]
    (tmp_path / "all.csv").write_text(table)
    scenario = asked(model, {**spec, "path": str(tmp_path / "all.csv"), "partition": NATURAL})
    devices = as_deployed(scenario, tmp_path / "edge")
    own = tmp_path / "own.csv"
    for text, said in (
        (table.replace("job", "work"), "no such column"),
        (table.replace("old", "ancient"), "'ancient', which is none of the classes to train on, old, young"),
        ("age,job,score\n", "0 examples, and a client needs 1"),
    ):
        own.write_text(text)
        with pytest.raises(DataError, match=said):
            load_own(str(own), devices, 0)
    with pytest.raises(DataError, match="does not exist"):
        load_own(str(tmp_path / "nowhere.csv"), devices, 0)
    with pytest.raises(DataError, match=r"does not describe what it has \(data\.inputs"):
        load_own(str(own), scenario, 0)
    moved = scenario.override(**{"data.inputs": {**devices.data.inputs, "numeric": ["size"]}})
    with pytest.raises(DataError, match=r"data\.inputs is not what data set 'tabular' has"):
        data.load(moved)
    with pytest.raises(DataError, match=r"data\.inputs is not as `fedprune deploy init` writes it"):
        data.load(scenario.override(**{"data.inputs": {"kind": "columns", "shape": [3], "colour": 1}}))
