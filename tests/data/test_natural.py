"""Natural partitions: clients are whose examples they are, in a table's column or by a source's word."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprune.data import Shares, load, open_shares, partition
from fedprune.errors import DataError, ScenarioError
from fedprune.scenario import PartitionSpec, Scenario

Make = Callable[..., Scenario]
NATURAL = PartitionSpec(scheme="natural")


def by_owner(owners: np.ndarray, clients: int, spec: PartitionSpec = NATURAL, seed: int = 0) -> Shares:
    return partition.by_owner(owners, np.unique(owners), clients, spec, 1, seed)


@given(st.lists(st.sampled_from(["anna", "ben", "cleo", "dan"]), min_size=1, max_size=60), st.integers(0, 3))
def test_a_client_has_what_is_its_owners(owners: list[str], seed: int) -> None:
    array = np.array(owners)
    names = sorted(set(owners))
    shares = by_owner(array, len(names), seed=seed)
    for number, name in enumerate(names):
        assert shares.of(number).tolist() == np.flatnonzero(array == name).tolist()


def test_of_more_owners_some_are_drawn_by_the_seed(caplog: pytest.LogCaptureFixture) -> None:
    owners = np.repeat(np.arange(100, 110), 5)
    with caplog.at_level(logging.WARNING):
        first, again, other = (by_owner(owners, 4, seed=seed) for seed in (0, 0, 1))
    assert first.indices.tolist() == again.indices.tolist() != other.indices.tolist()
    kept = [owners[first.of(number)] for number in range(4)]
    assert all(len(set(each)) == 1 for each in kept)
    assert [each[0] for each in kept] == sorted(each[0] for each in kept)
    assert caplog.messages[0] == "the natural partition leaves out 30 of 50 examples"


def test_fewer_owners_than_clients_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"examples are of 2 clients, and clients\.count is 3: write 2, or less"
    ):
        by_owner(np.array(["a", "b", "a"]), 3)


def test_fewest_examples_that_are_asked_for_hold() -> None:
    asked = PartitionSpec(scheme="natural", min_examples=2)
    with pytest.raises(DataError, match=r"leaves client 1 with 1 examples.*1 of 2 clients have too few\)"):
        by_owner(np.array(["a", "b", "a"]), 2, asked)


@pytest.fixture
def table(tmp_path: Path, no_cache_left: None) -> Callable[[list[Any]], Path]:
    """Write a table of images with a column ``user_id``."""
    pandas = pytest.importorskip("pandas")
    image = pytest.importorskip("PIL.Image")

    def write(users: list[Any]) -> Path:
        rows = []
        for number in range(len(users)):
            image.fromarray(np.full((8, 8), number, np.uint8)).save(tmp_path / "one.png")
            rows.append({"bytes": (tmp_path / "one.png").read_bytes(), "path": None})
        labels = [number % 2 for number in range(len(users))]
        path = tmp_path / "table.parquet"
        pandas.DataFrame({"image": rows, "label": labels, "user_id": users}).to_parquet(path)
        return path

    return write


@pytest.mark.parametrize("users", [["zoe", "adam", "mia"], [30, 4, 11]], ids=["text", "numbers"])
@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_clients_of_a_table(
    users: list[Any], fraction: float, table: Callable[[list[Any]], Path], scenario: Make
) -> None:
    """An image's pixels tell its row."""
    whose = [users[number * number % 3] for number in range(60)]  # Of the third there is none.
    natural = {"scheme": "natural", "column": "user_id"}
    asked = {
        "name": "mine",
        "path": str(table(whose)),
        "partition": natural,
        "client_test_fraction": fraction,
    }
    plan = scenario(asked, count=2)
    data, shares = load(plan), open_shares(plan)
    for number, name in enumerate(sorted(set(whose))):
        client, share = data.client(number), shares.client(number)
        held = np.concatenate([client.train, client.test])
        rows = data.train.inputs[held][:, 0, 0, 0].tolist()
        assert {whose[row] for row in rows} == {name}
        assert len(client.test) == int(len(held) * fraction)
        np.testing.assert_array_equal(share.examples.inputs[share.train], data.train.inputs[client.train])
    everything = [*data.client_train.indices, *data.client_test.indices]
    assert sorted(everything) == list(range(len(data.train)))


def test_clients_with_one_example_and_with_none(caplog: pytest.LogCaptureFixture) -> None:
    """Whose every example the server has keeps its place, with none."""
    everybody = np.array(["a", "b", "c"])
    with caplog.at_level(logging.WARNING):
        shares = partition.by_owner(np.array(["c", "c", "a", "c"]), everybody, 3, NATURAL, 2, 0)
    assert [shares.of(number).tolist() for number in range(3)] == [[2], [], [0, 1, 3]]
    assert caplog.messages == [
        "the natural partition gives 2 of 3 clients fewer than 2 examples, one batch and its held-out part: "
        "they train on what they have (1 have none)"
    ]


def test_what_does_not_say_whose_it_is_is_refused(table: Callable[[list[Any]], Path], scenario: Make) -> None:
    with pytest.raises(DataError, match="'digits' does not say whose its examples are: name the column"):
        load(scenario({"partition": {"scheme": "natural"}}))
    wrong = {"scheme": "natural", "column": "user"}
    path = str(table(["a", "b"] * 20))
    with pytest.raises(DataError, match=r"data\.partition\.column is 'user': no such column; did you mean"):
        load(scenario({"name": "mine", "path": path, "partition": wrong}))
    holes = {"scheme": "natural", "column": "user_id"}
    path = str(table([None] * 40))
    with pytest.raises(DataError, match="'user_id': 33 examples have no client"):
        load(scenario({"name": "mine", "path": path, "partition": holes}))
    with pytest.raises(ScenarioError, match="belongs to scheme natural"):
        scenario({"partition": {"scheme": "iid", "column": "user_id"}})


OWN = """
import numpy as np
from fedprune import Examples, Source

def made(request):
    "Sixty images of three clients."
    images = Examples(np.zeros((60, 1, 8, 8), dtype=np.uint8), np.arange(60) % 2)
    return Source(images, images, clients=np.arange(60) // {per_client})
"""


def test_a_source_may_say_whose_its_examples_are(scenario: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN.format(per_client=20))
    asked = {"name": f"{tmp_path / 'mine.py'}:made", "partition": {"scheme": "natural"}}
    data = load(scenario(asked, count=3))
    assert [data.client(number).train.tolist() for number in range(3)] == [
        list(range(start, start + 20)) for start in (0, 20, 40)
    ]


def test_schemes_by_class_need_classes(scenario: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom fedprune import Examples, Source\n"
        "from fedprune.data.inputs import Numbers\n"
        "def made(request):\n"
        "    'Numbers to predict.'\n"
        "    some = Examples(np.zeros((60, 3), 'f4'), np.zeros((60, 2), 'f4'))\n"
        "    return Source(some, some, inputs=Numbers((3,)), task='regression')\n"
    )
    name = f"{tmp_path / 'mine.py'}:made"
    assert load(scenario({"name": name}, count=4)).client_train.sizes.tolist() == [15] * 4
    with pytest.raises(DataError, match=r"dirichlet partition divides by class.* iid or natural"):
        load(scenario({"name": name, "partition": {"scheme": "dirichlet"}}, count=4))
