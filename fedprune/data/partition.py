"""Who holds which image: the division over clients, and the parts held out for testing.

Not for images: everything here is labels and indices. Nor for schemes: those are the partitioners of
``flwr-datasets``; here a division that leaves a client too little is drawn again, and in the end refused. A
partitioner answers ``load_partition`` with a ``datasets.Dataset`` made for that one client, and making
thousands of those takes far longer than dividing does. So it is given a table that answers with the images'
numbers (``_table``): all four schemes are read in one way, through the public interface, for any number of
clients.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from fedprune import seeds
from fedprune.data.dataset import Indices, Shares
from fedprune.errors import DataError
from fedprune.scenario import PartitionSpec

# A division in which some client would get too little is drawn again, so many times in all.
DRAWS = 100

# Part of a data set without a test split that is taken for testing, the same part whatever the seed.
TEST_PART = 1 / 6

# The column of a table that partitioners read.
_LABEL = "label"

_logger = logging.getLogger(__name__)


def choose(candidates: Indices, wanted: int | None, seed: int, split: str) -> Indices:
    """Return ``wanted`` of the candidates, drawn at random, in ascending order; all where ``wanted`` is None.

    Raises
    ------
    DataError
        Where there are fewer candidates than wanted.
    """
    if wanted is None:
        return np.sort(candidates)
    if wanted > len(candidates):
        raise DataError(
            f"data.{split}_examples is {wanted}: there are no more than {len(candidates)} {split} images"
        )
    return np.sort(seeds.numpy_generator(seed, f"{split} examples").choice(candidates, wanted, replace=False))


def split_without_test(examples: int) -> tuple[Indices, Indices]:
    """Return indices for training and testing of a data set that comes without a test split.

    ``TEST_PART`` of the images, chosen at random but always the same ones, so that the results of two seeds
    are measured on the same images.
    """
    order = seeds.numpy_generator(0, "test split").permutation(examples)
    test = round(examples * TEST_PART)
    return np.sort(order[test:]), np.sort(order[:test])


def partition(labels: Indices, clients: int, spec: PartitionSpec, smallest: int, seed: int) -> Shares:
    """Divide the positions of ``labels`` over the clients, each of which gets at least ``smallest``.

    No position is given out twice. ``iid`` and ``dirichlet`` give out all of them. ``shard`` cuts N of them
    into S = clients x shards_per_client equal shards, and leaves out the N mod S that are then over.
    ``pathological`` gives each client exactly so many classes, and leaves out the classes that no client has:
    none where there are at least as many clients as classes. What is left out is logged as a warning.

    Parameters
    ----------
    labels
        int64 (N,), the class of each image.
    clients
        Number of clients.
    spec
        The scheme and its settings.
    smallest
        What a client needs at the least. Divisions that give less to one are drawn again.
    seed
        The scenario's seed; the result depends on it and on the other arguments alone.

    Raises
    ------
    DataError
        Where the scheme can't be applied to these labels, no draw gave every client enough, or
        ``flwr-datasets`` is not installed.
    """
    if clients * smallest > len(labels):
        raise DataError(
            f"{len(labels)} training images can't give {clients} clients {smallest} each, one batch and "
            "its held-out part: take fewer clients, a smaller clients.training.batch_size, or more images"
        )
    # Partitioners take images of a class in the order in which they come; that order must mean nothing.
    order = seeds.numpy_generator(seed, "partition").permutation(len(labels))
    draws = []
    for draw in range(DRAWS):
        shares = _draw(labels[order], order, clients, spec, seeds.derive(seed, "partition", draw))
        if shares.sizes.min() >= smallest:
            if left_out := len(labels) - len(shares.indices):
                _logger.warning(
                    "the %s partition leaves out %d of %d images", spec.scheme, left_out, len(labels)
                )
            return shares
        draws.append(shares.sizes)
    raise _too_small(min(draws, key=lambda sizes: np.sum(sizes < smallest)), smallest, spec.scheme)


def _draw(labels: Indices, numbers: Indices, clients: int, spec: PartitionSpec, seed: int) -> Shares:
    """Return the division of the images ``numbers``, which have these ``labels``, for one seed."""
    try:
        partitioner = _partitioner(clients, spec, seed)
        with warnings.catch_warnings(action="ignore"):  # what is left out is told once, by `partition`
            partitioner.dataset = _table(labels, numbers)
            parts = [np.sort(partitioner.load_partition(client)) for client in range(clients)]
    except ImportError as error:
        raise DataError(
            f"the {spec.scheme} partition needs flwr-datasets, which is not installed: "
            'pip install "fedprune[sim]"'
        ) from error
    except (ValueError, ZeroDivisionError) as error:
        settings = spec.model_dump(exclude={"scheme"})
        raise DataError(
            f"the {spec.scheme} partition can't divide {len(labels)} training images of "
            f"{len(np.unique(labels))} classes over {clients} clients with "
            f"{', '.join(f'{key} {value}' for key, value in settings.items())}: take "
            f"{' or '.join(f'a smaller partition.{key}' for key in settings)} or fewer clients"
        ) from error
    return _shares(np.concatenate(parts), np.array([len(part) for part in parts]))


def _partitioner(clients: int, spec: PartitionSpec, seed: int) -> Any:
    """Return the partitioner of ``flwr-datasets`` for a scheme."""
    from flwr_datasets import partitioner

    by_label = {"num_partitions": clients, "partition_by": _LABEL, "shuffle": False, "seed": seed}
    match spec.scheme:
        case "iid":
            return partitioner.IidPartitioner(clients)
        case "dirichlet":
            return partitioner.DirichletPartitioner(alpha=spec.alpha, min_partition_size=0, **by_label)
        case "pathological":
            return partitioner.PathologicalPartitioner(
                num_classes_per_partition=spec.classes_per_client,
                class_assignment_mode="first-deterministic",  # as in its paper
                **by_label,
            )
        case "shard":
            # `keep_incomplete_shard` would leave out more with a number of shards; with a size of shards it
            # leaves out nothing, but some clients get fewer shards, and one of them most of a shard less.
            return partitioner.ShardPartitioner(num_shards_per_partition=spec.shards_per_client, **by_label)


def _table(labels: Indices, numbers: Indices) -> Any:
    """Return a ``Dataset`` of ``labels`` that answers a selection of rows with their ``numbers``."""
    from datasets import Dataset

    class Table(Dataset):  # type: ignore[misc]
        def __getitem__(self, column: str) -> Indices:
            return labels

        def select(self, indices: Iterable[int], **_: Any) -> Indices:
            return numbers[np.asarray(indices, dtype=np.int64)]

        def sort(self, column_names: str, **_: Any) -> Any:
            order = np.argsort(labels, kind="stable")
            return _table(labels[order], numbers[order])

    return Table.from_dict({_LABEL: labels})


def _too_small(sizes: Indices, smallest: int, scheme: str) -> DataError:
    poorest = int(sizes.argmin())
    return DataError(
        f"the {scheme} partition leaves client {poorest} with {sizes[poorest]} images, and it needs "
        f"{smallest}, one batch and its held-out part ({np.sum(sizes < smallest)} of {len(sizes)} clients "
        f"have too few, in the best of {DRAWS} draws): take {_REMEDIES[scheme]}fewer clients or a smaller "
        "clients.training.batch_size"
    )


def hold_out(shares: Shares, fraction: float, seed: int) -> tuple[Shares, Shares]:
    """Return each client's share in two: what it trains on, and a random ``fraction`` that it tests on.

    A client holds out its fraction, rounded down, but at least one image where ``fraction`` is above 0.
    """
    sizes, testing = shares.sizes, held_out(shares.sizes, fraction)
    owners = np.repeat(np.arange(len(shares)), sizes)
    keys = seeds.numpy_generator(seed, "client test").random(len(owners))
    # Rank of each image within its client in a random order: below the number held out, it is held out.
    rank = np.empty(len(owners), dtype=np.int64)
    rank[np.lexsort((keys, owners))] = np.arange(len(owners)) - np.repeat(shares.offsets[:-1], sizes)
    held = rank < testing[owners]
    return _shares(shares.indices[~held], sizes - testing), _shares(shares.indices[held], testing)


def held_out(sizes: Indices, fraction: float) -> Indices:
    """Return how many of its images each client tests on, int64 like ``sizes``."""
    if fraction == 0:
        return np.zeros_like(sizes)
    return np.maximum((sizes * fraction).astype(np.int64), 1)


def smallest_share(batch_size: int, fraction: float) -> int:
    """Return how many images leave a client one full batch when a ``fraction`` of them is held out."""
    if fraction == 0:
        return batch_size
    return max(batch_size + 1, math.ceil(batch_size / (1 - fraction)))


def _shares(indices: Indices, sizes: Indices) -> Shares:
    """Return the division of ``indices``, which lie client by client, into parts of these sizes."""
    return Shares(indices, np.concatenate([[0], np.cumsum(sizes)]))


_REMEDIES = {
    "iid": "",
    "dirichlet": "a larger partition.alpha, ",
    "pathological": "a larger partition.classes_per_client, ",
    "shard": "a smaller partition.shards_per_client, ",
}
