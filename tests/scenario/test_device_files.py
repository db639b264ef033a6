"""Device files: own profiles and traces become the devices of clients; a mistake has its file and line."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedprune.costs.devices import DeviceProfile, client_profiles, profile, profiles
from fedprune.errors import ScenarioError
from fedprune.scenario import Scenario, load_scenario
from fedprune.scenario.device_files import read_profiles, read_trace
from fedprune.server.check import check

MIB = 2**20
OWN = """\
drone:
  device: a quadcopter of ours
  memory: {value: 64 MiB, source: datasheet}
  compute: 2 GFLOP/s
  downlink: 1 Mbit/s
  uplink: {value: 125000}
  availability: 0.25
  joules_per_flop: 1e-9
laptop: {memory: 2 GiB, compute: 50e9, downlink: 1e6, uplink: 1e6}
"""
TRACE = """\
name,memory,compute,downlink,uplink,availability,dropout
pixel,64 MiB,2 GFLOP/s,8 Mbit/s,1000000,0.5,0.1
,67108864,2e9,1e6,1e6,,
"watch, small",8 MiB,100 MFLOP/s,1e5,1e5,1,0
"""


def scenario_file(folder: Path, **clients: Any) -> Path:
    path = folder / "plan.yaml"
    plan = {
        "name": "plan",
        "rounds": 1,
        "model": {"name": "cnn"},
        "clients": {"count": 3, **clients},
        "strategy": {"name": "fedavg"},
    }
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


def devices(scenario: Scenario) -> list[DeviceProfile]:
    clients = scenario.clients
    return client_profiles(clients.devices, clients.count, scenario.seed)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.yaml").write_text(OWN)
    (tmp_path / "trace.csv").write_text(TRACE)
    return tmp_path


DRONE = DeviceProfile(
    name="drone",
    memory=64 * MIB,
    compute=2e9,
    downlink=125e3,
    uplink=125e3,
    availability=0.25,
    joules_per_flop=1e-9,
)


def test_own_profiles_stand_beside_the_built_in_ones_and_before_them(own: Path) -> None:
    kinds = [{"profile": name, "count": 1} for name in ("drone", "laptop", "raspberry-pi-4")]
    scenario = load_scenario(scenario_file(own, profiles="own.yaml", devices=kinds))
    check(scenario)
    drone, laptop, board = devices(scenario)
    assert drone == DRONE
    assert laptop.memory == 2 * 2**30
    assert board == replace(profile("raspberry-pi-4"), dropout=0.0)
    assert profiles(scenario.clients.profiles)["drone"] == DRONE
    assert "a quadcopter of ours" in profiles(scenario.clients.profiles)["drone"].source


def test_what_a_scenario_adds_to_an_own_profile_counts(own: Path) -> None:
    kinds = [{"profile": "drone", "availability": 0.9, "share": 1.0}]
    scenario = load_scenario(scenario_file(own, profiles="own.yaml", devices=kinds))
    assert {(device.availability, device.memory) for device in devices(scenario)} == {(0.9, 64 * MIB)}


def test_a_copy_of_the_built_in_file_gives_the_built_in_profiles(tmp_path: Path) -> None:
    text = resources.files("fedprune.costs").joinpath("profiles.yaml").read_text(encoding="utf-8")
    (tmp_path / "copy.yaml").write_text(text, encoding="utf-8")
    assert profiles(tmp_path / "copy.yaml") == profiles()


def test_a_trace_has_a_row_for_each_client(own: Path) -> None:
    pixel, unnamed, watch = devices(load_scenario(scenario_file(own, trace="trace.csv")))
    assert pixel == DeviceProfile(
        name="pixel",
        memory=64 * MIB,
        compute=2e9,
        downlink=1e6,
        uplink=1e6,
        availability=0.5,
        dropout=0.1,
    )
    assert unnamed == DeviceProfile(name="custom-1", memory=64 * MIB, compute=2e9, downlink=1e6, uplink=1e6)
    assert (watch.name, watch.memory) == ("watch, small", 8 * MIB)
    two = load_scenario(own / "plan.yaml", {"clients.count": "2"})
    assert devices(two) == [pixel, unnamed]


GIVEN = {
    "profiles": {"profiles": "own.yaml", "devices": [{"profile": "drone", "share": 1.0}]},
    "trace": {"trace": "trace.csv"},
    "mapping": {"devices": {"2": "laptop", "0": "raspberry-pi-4", "1": {"profile": "laptop"}}},
}


@pytest.mark.parametrize("clients", GIVEN.values(), ids=GIVEN.keys())
def test_a_scenario_that_was_read_does_without_the_files(own: Path, clients: dict[str, Any]) -> None:
    scenario = load_scenario(scenario_file(own, **clients))
    expected = devices(scenario)
    changed = scenario.override(seed=scenario.seed, rounds=2)
    assert devices(changed) == expected
    dump = own / "elsewhere.yaml"
    dump.write_text(scenario.to_yaml())
    for file in ("own.yaml", "trace.csv"):
        (own / file).unlink()
    again = load_scenario(dump)
    assert again == scenario == pickle.loads(pickle.dumps(scenario))
    assert again.digest == scenario.digest
    assert devices(again) == expected == devices(pickle.loads(pickle.dumps(scenario)))


def test_the_digest_follows_what_the_files_say(own: Path) -> None:
    path = scenario_file(own, trace="trace.csv")
    before = load_scenario(path).digest
    (own / "trace.csv").write_text(TRACE.replace("pixel", "phone"))
    assert load_scenario(path).digest != before


def test_a_mapping_gives_each_client_its_device(own: Path) -> None:
    scenario = load_scenario(scenario_file(own, **GIVEN["mapping"]))
    assert [device.name for device in devices(scenario)] == ["raspberry-pi-4", "laptop", "laptop"]


SCENARIO_MISTAKES = {
    "no file": (
        {"trace": "tarce.csv"},
        ["7: clients.trace", "tarce.csv is no file; did you mean 'trace.csv'?"],
    ),
    "a folder": ({"profiles": "."}, ["7: clients.profiles", "is no file"]),
    "both": (
        {"trace": "trace.csv", "devices": [{"profile": "laptop"}]},
        ["8: clients.devices", "or the trace"],
    ),
    "few rows": (
        {"count": 9, "trace": "trace.csv"},
        ["7: clients.trace", "has 3 clients", "clients.count is 9"],
    ),
    "counts": ({"devices": [{"profile": "laptop", "count": 2}]}, ["7: clients.devices", "is for 2 clients"]),
    "mixed": (
        {"devices": [{"profile": "laptop", "count": 1}, {"profile": "laptop", "share": 0.5}]},
        ["7: clients.devices", "some have a count"],
    ),
    "share and count": (
        {"devices": [{"profile": "laptop", "count": 3, "share": 1.0}]},
        ["10: clients.devices.0.share", "beside count"],
    ),
    "no number": ({"devices": {"0": "laptop", "x": "laptop"}}, ["7: clients.devices", "'x' is no client's"]),
    "a gap": ({"devices": {"0": "laptop", "2": "laptop"}}, ["7: clients.devices", "no device for client 1"]),
    "unknown in a mapping": (
        {"devices": {"0": "laptop", "1": "laptpo", "2": "laptop"}},
        ["9: clients.devices.1.profile", "did you mean 'laptop'?"],
    ),
    "unknown beside own": (
        {"profiles": "own.yaml", "devices": [{"profile": "drome"}]},
        ["9: clients.devices.0.profile", "did you mean 'drone'?"],
    ),
    "chance": (
        {"devices": [{"profile": "laptop", "availability": 1.5}]},
        ["9: clients.devices.0.availability", "1.5 is out of range: must be at least 0 and at most 1"],
    ),
    "numbers beside": (
        {"devices": [{"profile": "laptop", "name": "mine"}]},
        ["clients.devices.0.name", "the profile or the numbers"],
    ),
}


@pytest.mark.parametrize(("clients", "words"), SCENARIO_MISTAKES.values(), ids=SCENARIO_MISTAKES.keys())
def test_a_mistake_in_a_scenario_has_its_line(own: Path, clients: dict[str, Any], words: list[str]) -> None:
    path = scenario_file(own, **clients)
    with pytest.raises(ScenarioError) as refused:
        check(load_scenario(path))
    (complaint,) = str(refused.value).splitlines()
    assert complaint.startswith(f"{path}:")
    for word in words:
        assert word in complaint


PROFILE_MISTAKES = {
    "unit": ("64 MiB", "64 megs", "3: drone.memory", "'64 megs' is not understood"),
    "key": ("downlink: 1 M", "downlnik: 1 M", "5: drone.downlnik", "did you mean 'downlink'?"),
    "missing": ("  compute: 2 GFLOP/s\n", "", "1: drone.compute", "this key is missing"),
    "inner key": ("source: datasheet", "sauce: x", "3: drone.memory", "write {value: ..., source: ...}"),
    "range": ("0.25", "25", "7: drone.availability", "at least 0 and at most 1"),
    "no mapping": ("laptop: {memory", "tablet: fast\nlaptop: {memory", "9: tablet", "'fast' is no device"),
    "syntax": ("laptop: {", "laptop: [", "9:", "not valid YAML"),
}


@pytest.mark.parametrize(
    ("old", "new", "place", "words"), PROFILE_MISTAKES.values(), ids=PROFILE_MISTAKES.keys()
)
def test_a_mistake_in_a_profiles_file_has_its_line(
    own: Path, old: str, new: str, place: str, words: str
) -> None:
    assert OWN.count(old) == 1
    path = own / "own.yaml"
    path.write_text(OWN.replace(old, new))
    complaints = _complaints(own, {"profiles": "own.yaml"})
    assert any(text.startswith(f"{path}:{place}") and words in text for text in complaints), complaints


TRACE_MISTAKES = {
    "unit": ("8 MiB,100", "8 megs,100", "4: memory", "'8 megs' is not understood"),
    "chance": ("0.5,0.1", "0.5,often", "2: dropout", "'often' is not a number"),
    "not finite": ("0.5,0.1", "0.5,nan", "2: dropout", "nan"),
    "range": ("0.5,0.1", "0.5,2", "2: dropout", "at least 0 and at most 1"),
    "empty": ("67108864,2e9", ",2e9", "3: memory", "missing"),
    "fields": ("1e5,1e5,1,0", "1e5,1e5", "4", "has 5 fields, expected 7"),
    "column": ("name,memory", "name,ram", "1", "no such column 'ram'"),
    "lacking": ("name,memory", "name,ram", "1", "the header lacks memory"),
    "twice": ("availability,dropout", "dropout,dropout", "1", "column dropout is there twice"),
    "quotes": ('"watch, small"', '"watch" small', "4", "not valid CSV"),
}


@pytest.mark.parametrize(("old", "new", "place", "words"), TRACE_MISTAKES.values(), ids=TRACE_MISTAKES.keys())
def test_a_mistake_in_a_trace_has_its_line(own: Path, old: str, new: str, place: str, words: str) -> None:
    assert TRACE.count(old) == 1
    path = own / "trace.csv"
    path.write_text(TRACE.replace(old, new))
    complaints = _complaints(own, {"trace": "trace.csv"})
    assert any(text.startswith(f"{path}:{place}: ") and words in text for text in complaints), complaints


@pytest.mark.parametrize("content", ["", "\n\n", "memory,compute,downlink,uplink\n"])
def test_a_trace_without_rows_is_refused(own: Path, content: str) -> None:
    (own / "trace.csv").write_text(content)
    (complaint,) = _complaints(own, {"trace": "trace.csv"})
    assert "no rows" in complaint or "the header lacks" in complaint


def _complaints(folder: Path, clients: dict[str, Any]) -> list[str]:
    with pytest.raises(ScenarioError) as refused:
        load_scenario(scenario_file(folder, **clients))
    return str(refused.value).splitlines()


amounts = st.floats(1, 1e12).map(lambda amount: float(f"{amount:.6g}"))
rows = st.fixed_dictionaries(
    {
        "memory": st.integers(1, 2**40),
        "compute": amounts,
        "downlink": amounts,
        "uplink": amounts,
        "availability": st.floats(0, 1),
        "dropout": st.floats(0, 1),
    }
)


@given(written=st.lists(rows, min_size=1, max_size=5), order=st.permutations(range(6)))
def test_a_trace_reads_back_as_written_whatever_the_order_of_its_columns(tmp_path_factory, written, order):
    keys = [list(written[0])[place] for place in order]
    lines = [keys, *([json.dumps(row[key]) for key in keys] for row in written)]
    path = tmp_path_factory.getbasetemp() / "trace.csv"
    path.write_text("\n".join(",".join(line) for line in lines))
    assert read_trace(path) == written


def test_an_entry_keeps_the_sources_of_its_numbers(own: Path) -> None:
    entry = read_profiles(own / "own.yaml")["drone"]
    assert entry.source == "a quadcopter of ours. memory: datasheet; uplink: no source given"
    assert entry.numbers.uplink == 125e3
