"""``data.classes`` names some of a data set's classes: the others' examples are not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedprune.data import describe, load, open_shares, read, read_key
from fedprune.errors import DataError
from fedprune.scenario import Scenario

Make = Callable[..., Scenario]


def test_they_are_kept_in_the_order_given(scenario: Make) -> None:
    everything, some = (load(scenario({"name": "digits", **more})) for more in ({}, {"classes": ["7", "2"]}))
    assert some.info.class_names == ("7", "2")
    for whole, chosen in ((everything.train, some.train), (everything.test, some.test)):
        wanted = np.isin(whole.targets, [7, 2])
        np.testing.assert_array_equal(chosen.inputs, whole.inputs[wanted])
        np.testing.assert_array_equal(np.array([7, 2])[chosen.targets], whole.targets[wanted])
    assert sum(some.info.label_counts) == len(some.train)
    assert describe(scenario({"name": "digits", "classes": ["7", "2"]})) == some.info


def test_as_many_are_drawn_among_them(scenario: Make) -> None:
    asked = {"name": "digits", "classes": ["1", "0", "9"], "test_examples": 30}
    few = load(scenario({**asked, "train_examples": 300}))
    assert (len(few.train), len(few.test)) == (300, 30)
    assert min(few.info.label_counts) > 60
    with pytest.raises(DataError, match=r"data\.train_examples is 1000: there are no more than 4"):
        load(scenario({**asked, "train_examples": 1000}))


def test_runs_share_data_of_the_same_classes_alone(scenario: Make) -> None:
    keys = {read_key(scenario({"classes": classes})) for classes in (None, ["1", "0"], ["0", "1"])}
    assert len(keys) == 3


@pytest.fixture
def pictures(tmp_path: Path, no_cache_left: None) -> Path:
    """A table of 90 pictures with the class as text, and whose they are."""
    datasets, image = pytest.importorskip("datasets"), pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    made = [image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in range(90)]
    classes = [("ant", "bee", "cow")[number % 3] for number in range(90)]
    columns = {"image": made, "label": classes, "owner": [f"p{number % 4}" for number in range(90)]}
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "pictures.parquet"))
    return tmp_path / "pictures.parquet"


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("few", [{}, {"train_examples": 40, "test_examples": 4}], ids=["all", "few"])
def test_of_tables_too(lazy: bool, few: dict[str, int], pictures: Path, scenario: Make) -> None:
    mine: dict[str, Any] = {"name": "mine", "path": str(pictures)}
    whole = load(scenario(mine)).train
    by_owner = {"scheme": "natural", "column": "owner"}
    plan = scenario(
        {**mine, "classes": ["cow", "ant"], "lazy": lazy, "partition": by_owner, **few}, count=4, batch_size=2
    )
    data, shares = load(plan), open_shares(plan)
    assert shares.info == data.info
    if few:
        assert (len(data.train), len(data.test)) == (40, 4)
    pixels = data.train.inputs[np.arange(len(data.train))]
    assert pixels.shape == data.train.inputs.shape
    number_of = {image.tobytes(): label for image, label in zip(whole.inputs, whole.targets, strict=True)}
    assert [(2, 0)[label] for label in data.train.targets] == [number_of[each.tobytes()] for each in pixels]
    assert np.unique(data.train.targets).tolist() == [0, 1]
    for client in range(4):
        here, there = shares.client(client), data.client(client)
        np.testing.assert_array_equal(here.examples.inputs[here.train], data.train.inputs[there.train])
        np.testing.assert_array_equal(here.examples.targets[here.train], data.train.targets[there.train])


SOURCE = """
import numpy as np
from fedprune.data import Examples, Source

def made(request):
    assert request.train_examples is None or request.train_examples < 9
    labels = np.array(["even", "odd", "none"])[np.arange(60) % 3]
    images = Examples(np.zeros((60, 1, 4, 4), dtype=np.uint8), labels)
    return Source(images, images, clients=np.arange(60) // 20)

def one_sided(request):
    images = made(request).train
    few = images.targets != "none"
    return Source(images, Examples(images.inputs[few], images.targets[few]), ("even", "odd", "none", "both"))
"""


def test_of_a_source_of_ones_own(tmp_path: Path, scenario: Make) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    own = {"name": f"{tmp_path / 'mine.py'}:made", "classes": ["odd", "none"]}
    source = read(scenario(own))
    np.testing.assert_array_equal(source.clients, np.repeat([0, 1, 2], [13, 13, 14]))
    assert describe(scenario(own)).class_names == ("odd", "none")
    assert len(read(scenario({**own, "train_examples": 8})).train) == 8
    with pytest.raises(DataError, match="has no test examples of none, both"):
        read(scenario({"name": f"{tmp_path / 'mine.py'}:one_sided", "classes": ["none", "both"]}))


def test_what_can_not_be_chosen_is_refused(scenario: Make) -> None:
    with pytest.raises(DataError, match=r"^data\.classes: .* has no class 'seven' \(its classes: 0, 1"):
        load(scenario({"name": "digits", "classes": ["7", "seven"]}))
    with pytest.raises(DataError, match="no class 'Benign'; did you mean 'benign'"):
        load(scenario({"name": "breast_cancer", "classes": ["malignant", "Benign"]}))
    regression = scenario({"name": "diabetes", "classes": ["low", "high"]})
    with pytest.raises(DataError, match="names classes, and the targets of data set 'diabetes' are none"):
        load(regression)
