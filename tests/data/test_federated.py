"""A scenario's data as a whole: who gets what, and what is refused."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprune.data import FederatedData, load
from fedprune.errors import DataError
from fedprune.scenario import Scenario

Make = Callable[..., Scenario]

OWN = """
import numpy as np
from fedprune.data import Pictures, Source

def made(request):
    "Sixty pictures of two classes."
    pictures = Pictures(np.zeros((60, 2, 4, 5), dtype=np.uint8), np.arange(60) % 2)
    return Source(pictures, pictures, ("even", "odd"))

def float_pixels(request):
    pictures = Pictures(np.zeros((60, 2, 4, 5)), np.arange(60) % 2)
    return Source(pictures, pictures, ("even", "odd"))

def unknown_class(request):
    pictures = Pictures(np.zeros((60, 2, 4, 5), dtype=np.uint8), np.arange(60) % 3)
    return Source(pictures, pictures, ("even", "odd"))
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
def test_server_and_clients_share_the_training_pictures_without_overlap(
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
        assert client.pictures is data.train
        assert len(client.train) >= 8
        assert (len(client.test) > 0) == (test > 0)


def test_division_is_decided_by_the_seed(scenario: Make) -> None:
    spec = {"server_fraction": 0.1, "client_test_fraction": 0.2}
    first, again, other = (load(scenario(spec, seed=seed)) for seed in (1, 1, 2))
    for a, b in zip(parts(first), parts(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(a.tolist() != b.tolist() for a, b in zip(parts(first), parts(other), strict=True))
    np.testing.assert_array_equal(first.test.pixels, other.test.pixels)


def test_server_s_part_does_not_depend_on_the_clients(scenario: Make) -> None:
    few, many = (load(scenario({"server_fraction": 0.1}, count=count)) for count in (3, 30))
    np.testing.assert_array_equal(few.server, many.server)


def test_description_of_digits(scenario: Make) -> None:
    info = load(scenario({"name": "digits", "train_examples": 100, "test_examples": 20})).info
    assert (info.name, info.input_shape, info.classes) == ("digits", (1, 8, 8), 10)
    assert load(scenario({"mean": [0.25], "std": [2.0]})).info.mean == (0.25,)


def test_subsets_have_the_sizes_asked_for(scenario: Make) -> None:
    data = load(scenario({"train_examples": 100, "test_examples": 20}))
    assert (len(data.train), len(data.test)) == (100, 20)


def test_mean_and_std_have_one_number_a_channel(scenario: Make) -> None:
    with pytest.raises(DataError, match="mean of pixels is given for 2 channels, and the pictures have 1"):
        load(scenario({"mean": [0.5, 0.5], "std": [1.0, 1.0]}))


def test_too_many_clients_are_refused(scenario: Make) -> None:
    with pytest.raises(DataError, match="1497 training pictures can't give 100 clients 32 each"):
        load(scenario({}, count=100, batch_size=32))


def test_source_of_a_users_own(own: Make) -> None:
    info = load(own("made")).info
    assert info.input_shape == (2, 4, 5)
    assert info.class_names == ("even", "odd")
    assert info.mean == info.std == (0.5, 0.5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("float_pixels", "train has float64 pixels .*expected uint8"),
        ("unknown_class", "labels from 0 to 2: expected 0 to 1"),
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
    assert sum(len(buffer.raw()) for buffer in buffers) >= data.train.pixels.nbytes


def test_importing_needs_nothing_of_the_extra() -> None:
    code = (
        "import sys, fedprune.data, fedprune.models\n"
        "print(sorted({'datasets', 'flwr_datasets', 'sklearn', 'PIL', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
