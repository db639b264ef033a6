"""A scenario's data as a whole: who gets what, and what is refused."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprune.data import SOURCES, ClientData, FederatedData, declared, decoding, load, open_shares
from fedprune.data.known import KNOWN
from fedprune.errors import DataError, ScenarioError
from fedprune.scenario import Scenario

Make = Callable[..., Scenario]

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10"

OWN = """
import numpy as np
from fedprune.data import Examples, Source

def made(request):
    "Sixty images of two classes."
    images = Examples(np.zeros((60, 2, 4, 5), dtype=np.uint8), np.arange(60) % 2)
    return Source(images, images, ("even", "odd"))

def normalised(request):
    images = made(request).train
    return Source(images, images, ("even", "odd"), (0.1, 0.2), (1.0, 1.0))

def nothing(request):
    return None

def float_pixels(request):
    images = Examples(np.zeros((60, 2, 4, 5)), np.arange(60) % 2)
    return Source(images, images, ("even", "odd"))

def unknown_class(request):
    images = Examples(np.zeros((60, 2, 4, 5), dtype=np.uint8), np.arange(60) % 3)
    return Source(images, images, ("even", "odd"))
"""


@pytest.fixture
def own(tmp_path: Path, scenario: Make) -> Callable[..., Scenario]:
    (tmp_path / "mine.py").write_text(OWN)

    def make(function: str, **data: Any) -> Scenario:
        return scenario({"name": f"{tmp_path / 'mine.py'}:{function}", **data})

    return make


def parts(data: FederatedData) -> list[np.ndarray]:
    clients = [data.client(number) for number in range(data.clients)]
    return [data.server, *(c.train for c in clients), *(c.test for c in clients)]


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "pathological", "shard"])
@pytest.mark.parametrize(("server", "test"), [(0.0, 0.0), (0.1, 0.25), (0.0001, 0.0001)])
def test_server_and_clients_share_the_training_images_without_overlap(
    scenario: Make, scheme: str, server: float, test: float
) -> None:
    data = load(
        scenario(
            {"partition": {"scheme": scheme}, "server_fraction": server, "client_test_fraction": test},
            count=10,
            batch_size=8,
        )
    )
    public = max(1, round(1497 * server)) if server else 0
    left_out = (1497 - public) % 20 if scheme == "shard" else 0  # 10 clients with 2 equal shards each
    held = np.concatenate(parts(data))
    assert len(np.unique(held)) == len(held) == 1497 - left_out
    assert held.min() >= 0
    assert held.max() < 1497
    assert len(data.server) == public
    for number in range(data.clients):
        client = data.client(number)
        assert client.examples is data.train
        assert len(client.train) >= 8
        assert (len(client.test) > 0) == (test > 0)


def test_division_is_decided_by_the_seed(scenario: Make) -> None:
    spec = {"server_fraction": 0.1, "client_test_fraction": 0.2}
    first, again, other = (load(scenario(spec, seed=seed)) for seed in (1, 1, 2))
    for a, b in zip(parts(first), parts(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(a.tolist() != b.tolist() for a, b in zip(parts(first), parts(other), strict=True))
    np.testing.assert_array_equal(first.test.inputs, other.test.inputs)


def test_server_s_part_does_not_depend_on_the_clients(scenario: Make) -> None:
    few, many = (load(scenario({"server_fraction": 0.1}, count=count)) for count in (3, 30))
    np.testing.assert_array_equal(few.server, many.server)


def test_description_of_digits(scenario: Make) -> None:
    info = load(scenario({"name": "digits", "train_examples": 100, "test_examples": 20})).info
    assert (info.name, info.input_shape, info.classes) == ("digits", (1, 8, 8), 10)
    assert load(scenario({"mean": [0.25], "std": [2.0]})).info.inputs.mean == (0.25,)


def test_subsets_have_the_sizes_asked_for(scenario: Make) -> None:
    data = load(scenario({"train_examples": 100, "test_examples": 20}))
    assert (len(data.train), len(data.test)) == (100, 20)


def test_mean_and_std_have_one_number_a_channel(scenario: Make) -> None:
    with pytest.raises(DataError, match="mean of pixels is given for 2 channels, and the images have 1"):
        load(scenario({"mean": [0.5, 0.5], "std": [1.0, 1.0]}))


def test_more_clients_than_batches_train_on_what_they_have(scenario: Make) -> None:
    data = load(scenario({}, count=100, batch_size=32))
    assert {len(data.client(number).train) for number in range(100)} == {14, 15}


def test_source_of_a_users_own(own: Make) -> None:
    info = load(own("made")).info
    assert info.input_shape == (2, 4, 5)
    assert info.class_names == ("even", "odd")
    assert info.inputs.mean == info.inputs.std == (0.5, 0.5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("nothing", "is a NoneType: expected"),
        ("float_pixels", "train has float64 pixels .*expected uint8"),
        ("unknown_class", "labels go from 0 to 2, and there are 2 classes, 0 to 1"),
    ],
)
def test_faults_of_a_users_own_source_are_named(own: Make, function: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(own(function))


def test_arrays_travel_out_of_band(scenario: Make) -> None:
    """Pickle 5 hands all arrays over as buffers: what is left to copy is small."""
    data = load(scenario({}))
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    assert len(body) < 4096
    assert sum(len(buffer.raw()) for buffer in buffers) >= data.train.inputs.nbytes


def test_importing_needs_nothing_of_the_extra() -> None:
    code = (
        "import sys, fedprune.data, fedprune.models\n"
        "print(sorted({'datasets', 'flwr_datasets', 'sklearn', 'PIL', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- clients one by one ---


def same_share(one: ClientData, other: ClientData) -> None:
    for part in ("train", "test"):
        mine, theirs = getattr(one, part), getattr(other, part)
        np.testing.assert_array_equal(one.examples.inputs[mine], other.examples.inputs[theirs])
        np.testing.assert_array_equal(one.examples.targets[mine], other.examples.targets[theirs])


@pytest.mark.parametrize(
    "spec",
    [
        {"partition": {"scheme": "dirichlet"}, "client_test_fraction": 0.2},
        {"partition": {"scheme": "shard"}, "server_fraction": 0.1, "train_examples": 500},
    ],
)
@pytest.mark.parametrize("name", ["digits", "cifar10", "own"])
def test_an_open_share_is_the_one_of_the_whole(
    name: str, spec: dict[str, Any], scenario: Make, own: Make, no_cache_left: None
) -> None:
    if name == "own":
        plan = own("made", client_test_fraction=0.2)
    elif name == "digits":
        plan = scenario(spec)
    else:
        if not CIFAR10.exists():
            pytest.skip(f"no CIFAR-10 in {CIFAR10}")
        few = {"train_examples": 500, "test_examples": 10}
        plan = scenario({"name": "cifar10", "path": str(CIFAR10), **spec, **few})
    whole, shares = load(plan), open_shares(plan)
    assert shares.info == whole.info
    for number in (4, 0, 3):
        same_share(shares.client(number), whole.client(number))
        assert shares.client(number).examples is shares.client(number).examples


@pytest.mark.parametrize("declared", [{}, {"input_shape": [3, 8, 8], "classes": 2}])
def test_an_open_share_has_the_channels_of_all_images(
    declared: dict[str, Any], scenario: Make, tmp_path: Path, no_cache_left: None
) -> None:
    """One test image in colour makes every image coloured, also those of a client that has grey ones."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for split, mode, count in (("train", "L", 30), ("test", "RGB", 1)):
        for kind in ("a", "b"):
            (tmp_path / split / kind).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (8, 8) if mode == "L" else (8, 8, 3), dtype=np.uint8)
                image.fromarray(pixels).save(tmp_path / split / kind / f"{number}.png")
    plan = scenario({"name": "mixed", "path": str(tmp_path), **declared})
    whole, shares = load(plan), open_shares(plan)
    assert shares.info == whole.info
    assert whole.info.input_shape == (3, 8, 8)
    same_share(shares.client(1), whole.client(1))


def test_an_open_share_decodes_the_images_of_its_client_alone(
    scenario: Make, monkeypatch: pytest.MonkeyPatch, no_cache_left: None
) -> None:
    if not CIFAR10.exists():
        pytest.skip(f"no CIFAR-10 in {CIFAR10}")
    few = {"train_examples": 500, "test_examples": 10, "client_test_fraction": 0.2}
    shares = open_shares(scenario({"name": "cifar10", "path": str(CIFAR10), **few}))
    decoded = []
    array = decoding.Form.array
    monkeypatch.setattr(decoding.Form, "array", lambda *given: decoded.append(1) or array(*given))
    client = shares.client(2)
    assert len(decoded) == len(client.train) + len(client.test) == 100


# --- what a scenario declares ---


def test_what_is_declared_must_be_what_is_read(scenario: Make, own: Make) -> None:
    right = {"input_shape": [2, 4, 5], "classes": ["even", "odd"]}
    assert load(own("made", **right)).info == declared(own("made", **right).data)
    assert load(own("made", **{**right, "classes": 2})).info.class_names == ("even", "odd")
    for wrong, message in (
        ({"input_shape": [1, 4, 5]}, r"data\.input_shape is \[1, 4, 5\], and of .* it is \[2, 4, 5\]"),
        ({"classes": 3}, r"data\.classes is 3, and of .* it is 2"),
        ({"classes": ["odd", "evn"]}, r"data\.classes: .* has no class 'evn'; did you mean 'even'"),
    ):
        with pytest.raises(DataError, match=message):
            load(own("made", **wrong))
    with pytest.raises(DataError, match=r"has mean \[0\.1, 0\.2\], .* write data\.mean: \[0\.1, 0\.2\]"):
        load(own("normalised", **right))
    assert load(own("normalised")).info.inputs.mean == (0.1, 0.2)
    assert load(own("normalised", **right, mean=[0.1, 0.2], std=[1.0, 1.0])).info.inputs.std == (1.0, 1.0)


def test_known_data_sets_are_what_is_known_of_them(scenario: Make, no_cache_left: None) -> None:
    assert load(scenario({"name": "digits"})).info == declared(scenario({"name": "digits"}).data)
    if CIFAR10.exists():
        plan = scenario({"name": "cifar10", "path": str(CIFAR10), "train_examples": 40, "test_examples": 1})
        assert load(plan).info == declared(plan.data)
    assert KNOWN.keys() <= SOURCES.keys()
    assert declared(scenario({"name": "owner/images"}).data) is None


def test_a_known_name_over_other_images_is_refused(
    scenario: Make, tmp_path: Path, no_cache_left: None
) -> None:
    image = pytest.importorskip("PIL.Image")
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for number in range(30):
            image.new("L", (8, 8)).save(tmp_path / kind / f"{number}.png")
    wrong = {"name": "mnist", "path": str(tmp_path)}
    with pytest.raises(DataError, match=r"has input_shape \[1, 8, 8\], .* write data\.input_shape: \[1, 8"):
        load(scenario(wrong))
    load(scenario({**wrong, "input_shape": [1, 8, 8], "classes": ["a", "b"]}))


@pytest.mark.parametrize("wrong", [1, True, "ten", ["a"], ["a", "a"], [1, 2], {"a": 1}])
def test_classes_are_a_number_or_names(wrong: Any, scenario: Make) -> None:
    with pytest.raises(
        ScenarioError, match=r"data\.classes: .*neither a number of classes, from 2 on, nor a"
    ):
        scenario({"classes": wrong})


def test_declarations_survive_being_written(scenario: Make) -> None:
    for classes in (3, ["a", "b"], None):
        plan = scenario({"classes": classes, "input_shape": [3, 4, 5]})
        again = Scenario.from_mapping(plan.model_dump(mode="json"))
        assert again.data == plan.data


def test_data_of_one_class_is_said_once(
    scenario: Callable[..., Scenario], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(
        """
import numpy as np
from fedprune import Examples, Source

def made(request):
    few = Examples(np.zeros((40, 1, 8, 8), np.uint8), np.ones(40, np.int64))
    return Source(few, few, ("cat", "dog"))
"""
    )
    load(scenario({"name": "./mine.py:made"}, directory=tmp_path))
    assert [text for text in caplog.messages if "class" in text] == [
        f"all training examples of data set '{tmp_path}/mine.py:made' are of class 'dog': there is nothing "
        "to tell apart"
    ]
