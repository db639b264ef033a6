"""Divisions over clients: what every scheme must hold, each scheme's own, and what is refused."""

import logging
import re
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from fedprune import seeds
from fedprune.data import Shares
from fedprune.data.partition import (
    choose,
    held_out,
    hold_out,
    partition,
    smallest_share,
    split_without_test,
)
from fedprune.errors import DataError
from fedprune.scenario import PartitionSpec

CLASSES = 10
LABELS = np.random.default_rng(0).integers(0, CLASSES, 5_000)


def divide(clients: int, smallest: int = 1, seed: int = 0, labels: Any = LABELS, **spec: Any) -> Shares:
    return partition(labels, clients, PartitionSpec(**spec), smallest, seed)


def counts(shares: Shares, labels: Any = LABELS) -> np.ndarray:
    """Return how many images of each class each client has."""
    return np.stack(
        [np.bincount(labels[shares.of(client)], minlength=CLASSES) for client in range(len(shares))]
    )


SPECS = st.one_of(
    st.just({"scheme": "iid"}),
    st.floats(0.3, 100).map(lambda alpha: {"scheme": "dirichlet", "alpha": alpha}),
    st.integers(1, 4).map(lambda n: {"scheme": "pathological", "classes_per_client": n}),
    st.integers(1, 4).map(lambda n: {"scheme": "shard", "shards_per_client": n}),
)


@given(
    st.lists(st.integers(0, 3), min_size=60, max_size=200),
    st.integers(2, 8),
    SPECS,
    st.floats(0, 0.6),
    st.data(),
)
def test_every_image_given_out_is_held_by_one_client_for_one_purpose(
    labels: list[int], clients: int, spec: dict[str, Any], fraction: float, data: st.DataObject
) -> None:
    present = [*labels, *range(4), *range(4), *range(4), *range(4)]  # no class too scarce for a scheme
    array, seed = np.array(present), data.draw(st.integers(0, 5))
    try:
        shares = divide(clients, 2, seed, labels=array, min_examples=2, **spec)
    except DataError:  # 100 draws of a skewed scheme may not do; what is said then is tested below
        reject()
    train, test = hold_out(shares, fraction, seed)
    given_out = sorted([*train.indices, *test.indices])
    assert len(set(given_out)) == len(given_out)
    assert set(given_out) <= set(range(len(array)))
    if spec["scheme"] == "shard":
        shards = clients * spec["shards_per_client"]
        assert len(given_out) == len(array) - len(array) % shards
    elif spec["scheme"] == "pathological" and clients < 4:
        assert given_out == np.flatnonzero(np.isin(array, array[given_out])).tolist()  # whole classes
    else:
        assert given_out == list(range(len(array)))
    for client in range(clients):
        whole = shares.of(client)
        assert len(whole) >= 2
        assert (np.diff(whole) > 0).all()
        assert sorted([*train.of(client), *test.of(client)]) == whole.tolist()
        expected = max(1, int(len(whole) * fraction)) if fraction else 0
        assert len(test.of(client)) == expected


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "pathological", "shard"])
def test_division_depends_on_the_seed_alone(scheme: str) -> None:
    first, again, other = (divide(20, seed=seed, scheme=scheme) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.indices, again.indices)
    np.testing.assert_array_equal(first.offsets, again.offsets)
    assert first.indices.tolist() != other.indices.tolist()


def test_iid_shares_are_equal_in_size_and_alike_in_classes() -> None:
    table = counts(divide(7, scheme="iid"))
    assert np.ptp(table.sum(1)) <= 1
    expected = np.bincount(LABELS) / 7
    # Chi-squared with 9 degrees of freedom a client (hypergeometric, so a little less): 33.7 has p = 1e-4.
    assert (((table - expected) ** 2 / expected).sum(1) < 33.7).all()


def test_dirichlet_spread_of_a_class_is_that_of_the_distribution() -> None:
    """A share's variance is (1/n)(1 - 1/n) / (n alpha + 1), over draws and over clients alike."""
    clients = 10
    for alpha in (0.1, 1.0, 10.0):
        drawn = np.concatenate(
            [
                (counts(divide(clients, 0, seed, scheme="dirichlet", alpha=alpha)) / np.bincount(LABELS)).T
                for seed in range(40)
            ]
        )
        variance = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
        assert drawn.mean() == pytest.approx(1 / clients)
        assert drawn.var() == pytest.approx(variance, rel=0.15)


@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")  # of pyarrow, to datasets
@settings(max_examples=20)
@given(st.integers(1, 15), SPECS, st.integers(0, 99), st.sampled_from([2, 7, CLASSES]))
def test_division_is_what_flwr_datasets_gives(
    clients: int, spec: dict[str, Any], seed: int, classes: int
) -> None:
    """Its own partitioner, over an ordinary table of the shuffled images, read one client at a time."""
    from datasets import Dataset
    from flwr_datasets import partitioner

    labels = LABELS[:300] % classes
    common = {"partition_by": "label", "shuffle": False, "seed": seeds.derive(seed, "partition", 0)}
    match spec:
        case {"scheme": "iid"}:
            theirs: Any = partitioner.IidPartitioner(clients)
        case {"scheme": "dirichlet", "alpha": alpha}:
            theirs = partitioner.DirichletPartitioner(clients, alpha=alpha, min_partition_size=0, **common)
        case {"scheme": "pathological", "classes_per_client": each}:
            theirs = partitioner.PathologicalPartitioner(
                clients,
                num_classes_per_partition=each,
                class_assignment_mode="first-deterministic",  # As in its paper.
                **common,
            )
        case {"scheme": "shard", "shards_per_client": each}:
            theirs = partitioner.ShardPartitioner(clients, num_shards_per_partition=each, **common)
    order = seeds.numpy_generator(seed, "partition").permutation(len(labels))
    theirs.dataset = Dataset.from_dict({"label": labels[order], "image": order})
    with warnings.catch_warnings(action="ignore"):
        try:
            expected = [sorted(theirs.load_partition(client)["image"]) for client in range(clients)]
        except ValueError:
            with pytest.raises(DataError, match="can't divide"):
                divide(clients, 0, seed, labels, **spec)
            return
    shares = divide(clients, 0, seed, labels, **spec)
    assert [shares.of(client).tolist() for client in range(clients)] == expected


def test_dirichlet_is_drawn_again_until_every_client_has_enough() -> None:
    alone = min(divide(20, 0, seed, scheme="dirichlet", alpha=0.3).sizes.min() for seed in range(20))
    assert alone < 40 <= divide(20, 40, scheme="dirichlet", alpha=0.3).sizes.min()


@given(st.integers(1, 30), st.integers(1, CLASSES), st.integers(0, 3))
def test_pathological_gives_each_client_so_many_classes_in_equal_parts(
    clients: int, each: int, seed: int
) -> None:
    table = counts(divide(clients, seed=seed, scheme="pathological", classes_per_client=each))
    assert ((table > 0).sum(axis=1) == each).all()
    for column in table.T[table.any(axis=0)]:
        assert np.ptp(column[column > 0]) <= 1
    assert all(table[client, client % CLASSES] for client in range(clients))


def test_shard_clients_have_runs_of_images_sorted_by_class() -> None:
    shares = divide(100, scheme="shard", shards_per_client=2)
    assert shares.sizes.tolist() == [50] * 100
    table = counts(shares)
    # A shard of 25 of about 500 images a class spans two classes at most.
    assert (table > 0).sum(1).max() <= 4
    assert (table > 0).sum(1).mean() < 2.5


def test_uneven_shards_leave_out_less_than_a_image_a_shard() -> None:
    shares = divide(7, scheme="shard", shards_per_client=3)
    assert shares.sizes.tolist() == [3 * (len(LABELS) // 21)] * 7


@pytest.mark.parametrize(
    ("spec", "left_out"),
    [
        ({"scheme": "pathological", "classes_per_client": 1}, np.sum(LABELS >= 3)),
        ({"scheme": "shard", "shards_per_client": 7}, len(LABELS) % 21),
    ],
)
def test_images_that_are_left_out_are_counted_in_one_warning(
    spec: dict[str, Any], left_out: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(action="error"):
        divide(3, **spec)
        divide(4, scheme="shard", shards_per_client=5)  # 5,000 images in 20 shards: nothing to warn of
    scheme = spec["scheme"]
    assert caplog.messages == [f"the {scheme} partition leaves out {left_out} of 5000 examples"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("clients", "smallest", "spec", "message"),
    [
        (200, 32, {"scheme": "iid"}, "5000 training examples can't give 200 clients 32 each.*min_examples"),
        (100, 32, {"scheme": "dirichlet", "alpha": 0.05}, r"leaves client \d+ with \d+ .*asks for 32.*alpha"),
        (
            20,
            1,
            {"scheme": "pathological", "classes_per_client": 11},
            "5000 training examples of 10 classes over 20 clients with classes_per_client 11: take a smaller",
        ),
        (
            4000,
            1,
            {"scheme": "pathological", "classes_per_client": 3},
            "4000 clients with classes_per_client 3: .*smaller partition.classes_per_client or fewer clients",
        ),
        (
            2000,
            1,
            {"scheme": "shard", "shards_per_client": 3},
            "2000 clients with shards_per_client 3: take a smaller partition.shards_per_client or fewer",
        ),
        (
            1500,
            3,
            {"scheme": "shard", "shards_per_client": 2},
            r"leaves client \d+ with 2 .*asks for 3.*smaller partition.shards_per_client",
        ),
    ],
)
def test_impossible_divisions_say_what_to_change(
    clients: int, smallest: int, spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        divide(clients, min_examples=smallest, **spec)


def test_error_tells_how_many_clients_have_too_few() -> None:
    """100 clients with a mean of 50 images: some, but not all, are below 30 in every draw."""
    with pytest.raises(DataError) as raised:
        divide(100, min_examples=30, scheme="dirichlet", alpha=0.1)
    found = re.search(r"leaves client (\d+) with (\d+) examples.*\((\d+) of 100 clients", str(raised.value))
    assert found
    client, size, lacking = map(int, found.groups())
    assert 0 <= client < 100
    assert 0 <= size < 30
    assert 0 < lacking < 60


def test_ten_thousand_clients_get_their_share() -> None:
    labels = np.random.default_rng(1).integers(0, 10, 50_000)
    for scheme, given_out in (("iid", 50_000), ("pathological", 50_000), ("shard", 40_000)):
        shares = divide(10_000, 1, labels=labels, scheme=scheme)
        assert len(shares) == 10_000
        assert len(np.unique(shares.indices)) == len(shares.indices) == given_out


@given(st.integers(1, 300), st.floats(0, 0.95))
def test_smallest_share_leaves_one_full_batch(batch_size: int, fraction: float) -> None:
    size = smallest_share(batch_size, fraction)
    assert size - held_out(np.array([size]), fraction)[0] >= batch_size


def test_choice_is_a_seeded_subset() -> None:
    candidates = np.arange(100, 200)
    chosen = choose(candidates, 30, seed=1, split="train")
    assert len(set(chosen)) == 30
    assert set(chosen) <= set(candidates)
    assert chosen.tolist() == choose(candidates, 30, seed=1, split="train").tolist()
    assert chosen.tolist() != choose(candidates, 30, seed=2, split="train").tolist()
    with pytest.raises(DataError, match="train_examples is 101: there are no more than 100"):
        choose(candidates, 101, seed=1, split="train")


@given(st.integers(2, 500))
def test_split_without_test_takes_a_sixth(examples: int) -> None:
    train, test = split_without_test(examples)
    assert sorted([*train, *test]) == list(range(examples))
    assert abs(len(test) - examples / 6) <= 0.5


def test_there_is_no_client_beyond_the_last() -> None:
    shares = divide(3, scheme="iid")
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match="clients 0 to 2"):
            shares.of(wrong)


def test_a_division_that_cannot_give_everybody_a_batch_is_the_first_drawn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        shares = divide(40, 32, scheme="dirichlet", alpha=0.05)
    assert shares.indices.tolist() == divide(40, 0, scheme="dirichlet", alpha=0.05).indices.tolist()
    few, none = int((shares.sizes < 32).sum()), int((shares.sizes == 0).sum())
    assert few > 0
    assert caplog.messages == [
        f"the dirichlet partition gives {few} of 40 clients fewer than 32 examples, one batch and its "
        f"held-out part: they train on what they have ({none} have none)"
    ]


def test_more_clients_than_examples_leave_some_with_none() -> None:
    assert sorted(divide(8, 4, labels=np.zeros(5, np.int64), scheme="iid").sizes) == [0] * 3 + [1] * 5


def test_fewest_examples_that_are_asked_for_do_not_change_a_division_that_gives_more() -> None:
    spec = {"scheme": "dirichlet", "alpha": 0.3}
    plain, asked = divide(20, 40, **spec), divide(20, 40, min_examples=30, **spec)
    assert plain.indices.tolist() == asked.indices.tolist()
    assert divide(20, 1, min_examples=40, **spec).indices.tolist() == plain.indices.tolist()


def test_who_has_one_example_trains_on_it_and_who_has_none_holds_out_none() -> None:
    shares = Shares(np.arange(6), np.array([0, 1, 1, 3, 6]))
    train, test = hold_out(shares, 0.5, 0)
    assert train.sizes.tolist() == [1, 0, 1, 2]
    assert test.sizes.tolist() == [0, 0, 1, 1]
