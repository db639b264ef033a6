"""Scenarios: what is right loads as it was meant; every mistake is named by file, line, key and remedy."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedprune.errors import ScenarioError
from fedprune.scenario import Scenario, json_schema, load_scenario
from fedprune.wording import known_here

SHIPPED = sorted((Path(__file__).parents[2] / "scenarios").glob("*.yaml"))

# The example of the project's plan, key for key; the tests below refer to its lines.
EXAMPLE = """\
name: fedtiny-digits
seed: 0
rounds: 30
model: {name: cnn, width: 1.0}
data:
  name: digits
  partition: {scheme: dirichlet, alpha: 0.5}
  server_fraction: 0.05
clients:
  count: 20
  per_round: 10
  training:
    optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
  devices:
    - {profile: raspberry-pi-4, share: 0.5}
    - {memory: 64 MiB, compute: 2 GFLOP/s, downlink: 20 Mbit/s, uplink: 5 Mbit/s, share: 0.5}
strategy: {name: fedtiny, density: 0.05}
engine: {workers: auto, device: auto, ray_address: null}
"""
PLAN: dict[str, Any] = {
    "name": "plan",
    "rounds": 3,
    "model": {"name": "cnn"},
    "clients": {"count": 4},
    "strategy": {"name": "fedavg"},
}


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "example.yaml"
    path.write_text(EXAMPLE)
    return path


def test_the_example_means_what_it_says(example: Path) -> None:
    scenario = load_scenario(example)
    assert scenario.model.options == {"width": 1.0}
    assert scenario.strategy.options == {"density": 0.05}
    assert scenario.clients.devices[1].memory == 64 * 2**20
    assert scenario.clients.devices[1].compute == 2e9
    assert scenario.clients.devices[1].downlink == 20e6 / 8
    assert scenario.engine.workers == "auto"
    assert scenario.directory == example.parent


def test_all_clients_train_where_per_round_is_not_given() -> None:
    assert Scenario.from_mapping(PLAN).clients.per_round == 4
    assert Scenario.from_mapping({**PLAN, "clients": {"count": 5, "per_round": None}}).clients.per_round == 5


# What is put in place of what, the line of the complaint, and what it must say.
MISTAKES = {
    "unknown key": ("per_round: 10", "per_ruond: 10", 11, ["clients.per_ruond", "did you mean 'per_round'"]),
    "unknown top key": ("seed: 0", "sead: 0", 2, ["sead", "did you mean 'seed'"]),
    "unknown key in a list": (
        "share: 0.5}\n    - {m",
        "shaer: 0.5}\n    - {m",
        15,
        ["devices.0.shaer", "'share'"],
    ),
    "not a number": ("rounds: 30", "rounds: many", 3, ["rounds", "'many' is not a whole number"]),
    "a number in quotes": ("rounds: 30", "rounds: '30'", 3, ["'30' is not a whole number"]),
    "a fraction": ("rounds: 30", "rounds: 30.5", 3, ["30.5 is not a whole number"]),
    "true for a number": ("rounds: 30", "rounds: true", 3, ["true is not a whole number"]),
    "yes is no boolean": ("momentum: 0.9", "nesterov: yes", 13, ["'yes' is not true or false"]),
    "a number for text": ("name: fedtiny-digits", "name: 2024", 1, ['put it in quotes, "2024"']),
    "not a mapping": ("model: {name: cnn, width: 1.0}", "model: cnn", 4, ["'cnn'", "{name: cnn}"]),
    "not a list": ("devices:\n    - {", "devices: {profile: x}\n  training2:\n    - {", 14, ["not a list"]),
    "out of range": ("rounds: 30", "rounds: 0", 3, ["0 is out of range", "at least 1"]),
    "both bounds": ("server_fraction: 0.05", "server_fraction: 1", 8, ["at least 0 and less than 1"]),
    "infinite": ("lr: 0.05", "lr: .inf", 13, ["lr", "finite"]),
    "unknown choice": ("scheme: dirichlet", "scheme: dirichlett", 7, ["iid, dirichlet", "mean 'dirichlet'"]),
    "another scheme's key": (
        "scheme: dirichlet",
        "scheme: iid",
        7,
        ["alpha", "scheme dirichlet", "leave it out"],
    ),
    "another optimizer's key": ("name: sgd", "name: adam", 13, ["momentum", "name sgd", "leave it out"]),
    "nesterov alone": ("momentum: 0.9", "nesterov: true", 13, ["nesterov", "momentum: 0.9"]),
    "too many a round": (
        "per_round: 10",
        "per_round: 21",
        11,
        ["per_round", "clients.count is 20", "at most 20"],
    ),
    "shares": ("raspberry-pi-4, share: 0.5", "raspberry-pi-4, share: 0.4", 14, ["sum to 0.9", "sum to 1"]),
    "bad unit": ("64 MiB", "64 megs", 16, ["clients.devices.1.memory", "'64 megs'", "'64 MiB'"]),
    "bad rate": ("5 Mbit/s", "5 Mbit", 16, ["clients.devices.1.uplink", "'5 Mbit'", "'5 Mbit/s'"]),
    "missing number": (
        "uplink: 5 Mbit/s, ",
        "",
        16,
        ["devices.1.uplink", "memory, compute, downlink, uplink"],
    ),
    "profile and number": (
        "profile: raspberry-pi-4",
        "profile: a, memory: 1 KB",
        15,
        ["memory", "or the numbers"],
    ),
    "missing key": ("  count: 20\n", "", 9, ["clients.count", "missing", "Number of clients", "count: 20"]),
    "missing key at the top": ("rounds: 30\n", "", None, ["rounds", "missing", "rounds: 30"]),
    "name of a folder": ("name: fedtiny-digits", "name: a/b", 1, ["'a/b'", "letters, digits"]),
    "workers": ("workers: auto", "workers: all", 18, ["'all'", "whole number", "auto"]),
    "repeated key": ("seed: 0", "seed: 0\nrounds: 3", 4, ["rounds", "second time", "line 3"]),
    "syntax": ("model: {name: cnn, width: 1.0}", "model: {name: cnn", 5, ["not valid YAML"]),
    "tab": ("  count: 20", "\tcount: 20", 10, ["not valid YAML", "spaces, not tabs"]),
    "a list as a key": ("seed: 0", "? [a]\n: 0", 2, ["a key is a word"]),
    "an alias in itself": ("seed: 0", "seed: &a [*a]", 2, ["contains itself"]),
    "a Python object": ("seed: 0", "seed: !!python/name:os.system", 2, ["not valid YAML"]),
    "mean without std": (
        "  name: digits",
        "  name: digits\n  mean: [0.5]",
        7,
        ["data.mean", "std", "both or neither"],
    ),
    "shares of faults": (
        "seed: 0",
        "faults: {late: 0.6, corrupt: 0.5}",
        2,
        ["faults.late", "1.1", "at most 1"],
    ),
    "a share of faults": ("seed: 0", "faults: {huge: 2}", 2, ["faults.huge", "at least 0 and at most 1"]),
    "unknown fault": (
        "seed: 0",
        "faults: {lat: 0.1}",
        2,
        ["faults.lat", "did you mean 'late'", "`fedprune schema`"],
    ),
    "a hang without end": (
        "seed: 0",
        "faults: {hang: 0.1}",
        2,
        ["faults", "set engine.task_timeout"],
    ),
    "a fault after the end": (
        "seed: 0",
        "faults: {at: [{round: 31, client: 0, fault: late}]}",
        2,
        ["faults.at.0.round", "31", "last round, 30"],
    ),
    "a fault of nobody": (
        "seed: 0",
        "faults: {at: [{round: 1, client: 20, fault: late}]}",
        2,
        ["faults.at.0.client", "no client 20", "0 to 19"],
    ),
    "two faults at once": (
        "seed: 0",
        "faults:\n  at:\n  - {round: 1, client: 3, fault: late}\n  - {round: 1, client: 3, fault: huge}",
        5,
        ["faults.at.1", "client 3", "round 1", "one at most"],
    ),
    "clients have no test data": (
        "seed: 0",
        "evaluation: {clients: true}",
        2,
        ["evaluation.clients", "data.client_test_fraction"],
    ),
}


@pytest.mark.parametrize(("old", "new", "line", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_by_file_line_key_and_remedy(
    example: Path, old: str, new: str, line: int | None, words: list[str]
) -> None:
    assert EXAMPLE.count(old) == 1 or old in ("name: sgd", "5 Mbit/s")
    example.write_text(
        EXAMPLE.replace(old, new, 1) if old != "5 Mbit/s" else EXAMPLE.replace(f" {old}", f" {new}")
    )
    with pytest.raises(ScenarioError) as refused:
        load_scenario(example)
    place = f"{example}:{line}:" if line else f"{example}: "
    complaints = [text for text in str(refused.value).splitlines() if text.startswith(place)]
    assert any(all(word in text for word in words) for text in complaints), str(refused.value)
    assert refused.value.exit_status == 2


def test_a_name_that_is_near_none_is_answered_with_a_few_and_where_all_are() -> None:
    many = [f"name{number}" for number in range(20)]
    said = known_here("colour", many, "`fedprune schema`")
    assert said == f" (known here: {', '.join(many[:6])} and 14 more: see `fedprune schema`)"
    assert known_here("name71", ["name1", "cnn"], "") == "; did you mean 'name1'?"
    assert known_here("colour", ["cnn"], "`fedprune list`") == " (known here: cnn)"


def test_every_mistake_is_listed_on_a_line_of_its_own(example: Path) -> None:
    example.write_text(EXAMPLE.replace("seed: 0", "seed: -1").replace("rounds: 30", "rounds: x"))
    with pytest.raises(ScenarioError) as refused:
        load_scenario(example, {"wire.values": "int4"})
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{example}:2: seed: -1")
    assert lines[1].startswith(f"{example}:3: rounds: 'x'")
    assert lines[2].startswith("--set wire.values: 'int4' is none of float32,")


def test_a_missing_file_is_named_with_the_ones_beside_it(example: Path) -> None:
    with pytest.raises(ScenarioError, match=r"exmaple\.yaml: no such file; did you mean .*/example\.yaml\?"):
        load_scenario(example.with_name("exmaple.yaml"))
    with pytest.raises(ScenarioError, match=r"its folder .*/nowhere does not exist"):
        load_scenario(example.parent / "nowhere" / "example.yaml")
    with pytest.raises(ScenarioError, match=r"directory, not a file; name a file in it: example\.yaml"):
        load_scenario(example.parent)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n- b\n", "top level is a list"),
        (b"just words\n", "top level is text"),
        (b"name: \xff\n", "byte 7 is not UTF-8"),
        (b"name: \x00\n", "not valid YAML"),
        (b"name: a\n---\nname: b\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match=words) as refused:
        load_scenario(path)
    assert str(refused.value).startswith(str(path))


def test_merge_keys_and_anchors_work(example: Path) -> None:
    example.write_text(
        EXAMPLE.replace("{name: sgd, lr: 0.05, momentum: 0.9}", "{<<: &o {name: sgd, lr: 0.1}, lr: 0.2}")
    )
    assert load_scenario(example).clients.training.optimizer.lr == 0.2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("true", True),
        ("on", "on"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("~", None),
        ("", None),
        ("[1, a]", [1, "a"]),
        ("'1'", "1"),
    ],
)
def test_values_are_read_as_yaml_1_2_says(example: Path, text: str, value: object) -> None:
    read = load_scenario(example, {"strategy.x": text}).strategy.options["x"]
    assert read == value
    assert type(read) is type(value)
    # The same in a file.
    example.write_text(EXAMPLE.replace("density: 0.05}", f"density: 0.05,\n  x: {text}}}"))
    assert load_scenario(example).strategy.options["x"] == value


def test_overrides_replace_make_and_append(example: Path) -> None:
    scenario = load_scenario(
        example,
        {
            "strategy.density": "1e-2",
            "clients.devices.0.share": 0.25,
            "clients.devices.2": "{profile: laptop, share: 0.25}",
            "wire.values": "int8",
            "engine.workers": 3,
        },
    )
    assert scenario.strategy.options["density"] == 0.01
    assert [device.share for device in scenario.clients.devices] == [0.25, 0.5, 0.25]
    assert scenario.wire.values == "int8"
    assert scenario.engine.workers == 3
    assert load_scenario(example).strategy.options["density"] == 0.05


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("clients.per_ruond", "3", "--set clients.per_ruond: no such key; did you mean 'per_round'?"),
        ("rounds", "0", "--set rounds: 0 is out of range"),
        ("rounds.x", "1", "--set rounds.x: rounds is a number, it has no key 'x'"),
        ("clients.devices.7.share", "1", "--set clients.devices.7.share: clients.devices is a list of 2"),
        ("clients.devices.x.share", "1", "write a number from 0 to 2, not 'x'"),
        ("rounds", "[1", "--set rounds:1:3: not valid YAML"),
        ("", "1", "write keys with dots"),
        ("model..width", "1", "write keys with dots"),
        ("clients", "{count: 3, training: {epochs: 0}}", "--set clients: clients.training.epochs: 0 is out"),
    ],
)
def test_a_mistake_in_an_override_names_the_override(example: Path, key: str, value: str, words: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        load_scenario(example, {key: value})
    assert words in str(refused.value)


_KEYS = (
    "seed",
    "rounds",
    "clients.count",
    "clients.training.epochs",
    "evaluation.every",
    "strategy.anything",
)


@given(st.dictionaries(st.sampled_from(_KEYS), st.integers(1, 10**6)))
def test_an_override_changes_its_value_and_nothing_else(changes: dict[str, int]) -> None:
    before = Scenario.from_mapping(PLAN)
    after = before.override(**changes)
    expected = copy.deepcopy(PLAN)
    for key, value in changes.items():
        place = expected
        *around, last = key.split(".")
        for part in around:
            place = place.setdefault(part, {})
        place[last] = value
    assert after == Scenario.from_mapping(expected)
    assert after == before.override(**{key.replace(".", "__"): value for key, value in changes.items()})
    assert before == Scenario.from_mapping(PLAN)


def test_an_override_in_python_is_taken_as_it_is_and_named_by_its_key() -> None:
    scenario = Scenario.from_mapping(PLAN)
    assert scenario.override(strategy__tag="1e-3").strategy.options["tag"] == "1e-3"
    with pytest.raises(ScenarioError, match=r"^clients\.count: 0 is out of range"):
        scenario.override(clients__count=0)


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abcdef_0123", min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.from_regex(r"x[a-z_]{0,5}", fullmatch=True), _PLAIN, max_size=4))
def test_a_dump_reads_back_to_an_equal_scenario(tmp_path_factory, options: dict[str, Any]) -> None:
    scenario = Scenario.from_mapping({**PLAN, "strategy": {"name": "fedavg", **options}})
    path = tmp_path_factory.getbasetemp() / "dump.yaml"
    path.write_text(scenario.to_yaml(), encoding="utf-8")
    assert load_scenario(path) == scenario
    assert load_scenario(path).strategy.options == scenario.strategy.options


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_scenario_loads_dumps_and_pickles(path: Path, tmp_path: Path) -> None:
    scenario = load_scenario(path)
    (tmp_path / "dump.yaml").write_text(scenario.to_yaml())
    again = load_scenario(tmp_path / "dump.yaml")
    thawed = pickle.loads(pickle.dumps(scenario))
    assert scenario == again == thawed
    assert scenario.model_dump() == again.model_dump()
    assert len({scenario, again, thawed}) == 1
    assert thawed.directory == path.parent
    assert scenario.name == path.stem


def test_the_quickstarts_differ_in_the_strategy_alone() -> None:
    names = ("quickstart", "quickstart-static", "quickstart-dense", "hidenseek-digits")
    tiny, static, dense, signs = (load_scenario(SHIPPED[0].with_name(f"{name}.yaml")) for name in names)
    shared = tiny.model_dump(exclude={"name", "strategy"})
    for twin in (static, dense, signs):
        assert shared == twin.model_dump(exclude={"name", "strategy"})
    assert len({quickstart.strategy.options["pretrain_epochs"] for quickstart in (tiny, static, dense)}) == 1
    assert tiny.strategy.options["density"] == static.strategy.options["density"]


def test_a_dump_has_every_value_that_counts_and_no_other(example: Path) -> None:
    dump = yaml.safe_load(load_scenario(example).to_yaml())
    assert dump["clients"]["training"]["batch_size"] == 32
    assert dump["data"]["partition"] == {"scheme": "dirichlet", "alpha": 0.5}
    assert dump["clients"]["devices"][0] == {"profile": "raspberry-pi-4", "share": 0.5}
    assert "directory" not in dump


def test_paths_start_from_the_folder_of_the_file(example: Path) -> None:
    folder = example.parent
    changes = {
        "data.path": "images",
        "strategy.name": "./mine.py:Mine",
        "strategy.criteria": "[../a/score.py:score, magnitude]",
        "model.name": "/abs/net.py:Net",
    }
    scenario = load_scenario(example, changes)
    assert scenario.data.path == folder / "images"
    assert scenario.strategy.name == f"{folder}/mine.py:Mine"
    assert scenario.strategy.options["criteria"] == [f"{folder.parent}/a/score.py:score", "magnitude"]
    assert scenario.model.name == "/abs/net.py:Net"
    (folder / "run").mkdir()
    (folder / "run" / "scenario.yaml").write_text(scenario.to_yaml())
    assert load_scenario(folder / "run" / "scenario.yaml") == scenario


def test_the_digest_is_of_the_content_alone(example: Path, tmp_path: Path) -> None:
    scenario = load_scenario(example)
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "other.yaml"
    moved.write_text("# The same, elsewhere.\n" + EXAMPLE)
    assert load_scenario(moved).digest == scenario.digest
    assert scenario.override(seed=1).digest != scenario.digest
    assert scenario.override(seed=1).override(seed=0).digest == scenario.digest
    assert scenario.override(wire__values="float32").digest == scenario.digest
    code = f"from fedprune.scenario import load_scenario; print(load_scenario({str(moved)!r}).digest)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == scenario.digest


def test_faults_are_written_where_there_are_any(example: Path) -> None:
    scenario = load_scenario(example)
    assert not scenario.faults.any
    assert yaml.safe_load(scenario.to_yaml())["faults"] == {}
    assert scenario.override(faults__late=0.0).digest == scenario.digest
    hang = {"round": 2, "client": 3, "fault": "hang"}
    faulty = scenario.override(faults={"late": 0.1, "at": [hang]}, engine__task_timeout=5.0)
    assert yaml.safe_load(faulty.to_yaml())["faults"] == {"late": 0.1, "at": [hang]}
    assert Scenario.from_mapping(yaml.safe_load(faulty.to_yaml())) == faulty
    assert [name for name in faulty.faults.shares if faulty.faults.may_have(name)] == ["hang", "late"]


def test_a_scenario_cannot_be_changed(example: Path) -> None:
    scenario = load_scenario(example)
    with pytest.raises(ValueError, match="frozen"):
        scenario.rounds = 3  # type: ignore[misc]
    scenario.strategy.options["density"] = 1.0
    assert scenario.strategy.options["density"] == 0.05


def _properties(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    models = {"Scenario": schema, **schema["$defs"]}
    return {
        f"{model}.{key}": field
        for model, content in models.items()
        for key, field in content["properties"].items()
    }


def test_the_schema_describes_every_field_in_a_sentence() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for key, field in _properties(schema).items():
        # A key that says nothing beyond what its model says leaves it to the model.
        model = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
        assert {**model, **field}.get("description", "").endswith("."), key
    assert "resnet18" in schema["$defs"]["ModelSpec"]["properties"]["name"]["examples"]
    json.dumps(schema)


def test_the_schema_accepts_what_loads_and_refuses_what_does_not(example: Path) -> None:
    validation = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validation.Draft202012Validator.check_schema(json_schema())
    validator = validation.Draft202012Validator(json_schema())
    for path in [*SHIPPED, example]:
        assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == []
    resolved = yaml.safe_load(load_scenario(example).to_yaml())
    assert list(validator.iter_errors(resolved)) == []
    for wrong in ({"sead": 1}, {"rounds": 0}, {"clients": {"count": "x"}}, {"wire": {"values": "int4"}}):
        assert list(validator.iter_errors({**resolved, **wrong})) != []
