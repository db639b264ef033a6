"""Who holds which picture: the schemes that divide labels over clients, and the parts held out for testing.

Not for pictures: everything here is labels and indices. The schemes have the distributions of the
partitioners of ``flwr-datasets`` with the same names, but are written out on whole arrays, for three reasons.
Reading the indices of 10,000 clients out of those partitioners takes 9 to 18 seconds, here some hundredths.
Their shard partitioner leaves out up to one picture less than there are shards, their pathological one whole
classes; here every picture is held by somebody. And where a division fails, the message can say which client
has too little.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedprune import seeds
from fedprune.data.pictures import Indices, Shares
from fedprune.errors import DataError
from fedprune.scenario import PartitionSpec

Flags = NDArray[np.bool_]

# A division in which some client would get too little is drawn again, so many times in all. The partitioners
# of flwr-datasets stop after 11; here a draw takes milliseconds.
DRAWS = 100

# Part of a data set without a test split that is taken for testing, the same part whatever the seed.
TEST_PART = 1 / 6


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
            f"data.{split}_examples is {wanted}: there are no more than {len(candidates)} {split} pictures"
        )
    return np.sort(seeds.numpy_generator(seed, f"{split} examples").choice(candidates, wanted, replace=False))


def split_without_test(examples: int) -> tuple[Indices, Indices]:
    """Return indices for training and testing of a data set that comes without a test split.

    ``TEST_PART`` of the pictures, chosen at random but always the same ones, so that the results of two seeds
    are measured on the same pictures.
    """
    order = seeds.numpy_generator(0, "test split").permutation(examples)
    test = round(examples * TEST_PART)
    return np.sort(order[test:]), np.sort(order[:test])


def partition(labels: Indices, clients: int, spec: PartitionSpec, smallest: int, seed: int) -> Shares:
    """Divide all positions of ``labels`` over the clients, each of which gets at least ``smallest``.

    Parameters
    ----------
    labels
        int64 (N,), the class of each picture.
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
        Where the scheme can't be applied to these labels, or no draw gave every client enough.
    """
    if clients * smallest > len(labels):
        raise DataError(
            f"{len(labels)} training pictures can't give {clients} clients {smallest} each, one batch and "
            "its held-out part: take fewer clients, a smaller clients.training.batch_size, or more pictures"
        )
    generator = seeds.numpy_generator(seed, "partition")
    # The schemes take pictures of a class in the order in which they come; that order must mean nothing.
    order = generator.permutation(len(labels))
    owners = np.empty(len(labels), dtype=np.int64)
    draws = []
    for _ in range(DRAWS):
        owners[order] = _SCHEMES[spec.scheme](labels[order], clients, spec, generator)
        draws.append(np.bincount(owners, minlength=clients))
        if draws[-1].min() >= smallest:
            return _shares(owners, clients)
    raise _too_small(min(draws, key=lambda sizes: np.sum(sizes < smallest)), smallest, spec.scheme)


def _too_small(sizes: Indices, smallest: int, scheme: str) -> DataError:
    poorest = int(sizes.argmin())
    return DataError(
        f"the {scheme} partition leaves client {poorest} with {sizes[poorest]} pictures, and it needs "
        f"{smallest}, one batch and its held-out part ({np.sum(sizes < smallest)} of {len(sizes)} clients "
        f"have too few, in the best of {DRAWS} draws): take {_REMEDIES[scheme]}fewer clients or a smaller "
        "clients.training.batch_size"
    )


def hold_out(shares: Shares, fraction: float, seed: int) -> tuple[Shares, Shares]:
    """Return each client's share in two: what it trains on, and a random ``fraction`` that it tests on.

    A client holds out its fraction, rounded down, but at least one picture where ``fraction`` is above 0.
    """
    owners = np.repeat(np.arange(len(shares)), shares.sizes)
    keys = seeds.numpy_generator(seed, "client test").random(len(owners))
    # Rank of each picture within its client in a random order: below the number held out, it is held out.
    rank = np.empty(len(owners), dtype=np.int64)
    rank[np.lexsort((keys, owners))] = np.arange(len(owners)) - np.repeat(shares.offsets[:-1], shares.sizes)
    held = rank < held_out(shares.sizes, fraction)[owners]
    return _part(shares.indices, owners, ~held, len(shares)), _part(shares.indices, owners, held, len(shares))


def held_out(sizes: Indices, fraction: float) -> Indices:
    """Return how many of its pictures each client tests on, int64 like ``sizes``."""
    if fraction == 0:
        return np.zeros_like(sizes)
    return np.maximum((sizes * fraction).astype(np.int64), 1)


def smallest_share(batch_size: int, fraction: float) -> int:
    """Return how many pictures leave a client one full batch when a ``fraction`` of them is held out."""
    if fraction == 0:
        return batch_size
    return max(batch_size + 1, math.ceil(batch_size / (1 - fraction)))


def _shares(owners: Indices, clients: int) -> Shares:
    """Return the division in which position i belongs to client ``owners[i]``."""
    everything = np.ones(len(owners), dtype=np.bool_)
    return _part(np.arange(len(owners)), owners, everything, clients)


def _part(indices: Indices, owners: Indices, taken: Flags, clients: int) -> Shares:
    """Return the division of those of the ascending ``indices`` that are ``taken``."""
    indices, owners = indices[taken], owners[taken]
    offsets = np.zeros(clients + 1, dtype=np.int64)
    np.cumsum(np.bincount(owners, minlength=clients), out=offsets[1:])
    return Shares(indices[np.argsort(owners, kind="stable")], offsets)


def _iid(labels: Indices, clients: int, spec: PartitionSpec, generator: np.random.Generator) -> Indices:
    """Deal the (shuffled) pictures in turn: shares differ by one picture at most."""
    return np.arange(len(labels)) % clients


def _dirichlet(labels: Indices, clients: int, spec: PartitionSpec, generator: np.random.Generator) -> Indices:
    """Divide each class in proportions from a symmetric Dirichlet (Yurochkin et al., ICML 2019)."""
    owners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        proportions = generator.dirichlet(np.full(clients, spec.alpha))
        cuts = (np.cumsum(proportions)[:-1] * len(members)).astype(np.int64)
        owners[members] = np.searchsorted(cuts, np.arange(len(members)), side="right")
    return owners


def _pathological(
    labels: Indices, clients: int, spec: PartitionSpec, generator: np.random.Generator
) -> Indices:
    """Give each client exactly so many classes, and each class in equal parts to the clients that have it.

    As Li et al. (ICDE 2022, arXiv 2102.02079, section IV-A1): client k has class k modulo the number of
    classes and random others. Where there are fewer clients than classes, the first classes of each are dealt
    in turn until every class is with somebody.
    """
    present, counts = np.unique(labels, return_counts=True)
    held = _classes_of_clients(len(present), clients, spec.classes_per_client, generator)
    if scarce := np.flatnonzero(held.sum(axis=0) > counts).tolist():
        label = scarce[0]
        raise DataError(
            f"the pathological partition gives class {present[label]} to {held[:, label].sum()} clients, and "
            f"has {counts[label]} pictures of it: take fewer clients or fewer partition.classes_per_client"
        )
    owners = np.empty(len(labels), dtype=np.int64)
    for label, count in enumerate(counts):
        takers = np.flatnonzero(held[:, label])
        parts = count // len(takers) + (np.arange(len(takers)) < count % len(takers))
        owners[labels == present[label]] = np.repeat(takers, parts)
    return owners


def _classes_of_clients(classes: int, clients: int, each: int, generator: np.random.Generator) -> Flags:
    """Return bool (clients, classes), ``each`` True in a row and at least one in a column."""
    if each > classes:
        raise DataError(
            f"partition.classes_per_client is {each}, and the training pictures are of {classes} classes: "
            f"take {classes} or fewer"
        )
    if clients * each < classes:
        raise DataError(
            f"{clients} clients with {each} classes each can't hold all {classes} classes: take more clients "
            f"or {math.ceil(classes / clients)} or more partition.classes_per_client"
        )
    # A row's smallest keys are its classes: first those dealt in turn, then random ones.
    keys = generator.random((clients, classes))
    dealt = np.arange(math.ceil(classes / clients) * clients)
    keys[dealt % clients, dealt % classes] = -1
    held = np.zeros((clients, classes), dtype=np.bool_)
    np.put_along_axis(held, np.argpartition(keys, each - 1, axis=1)[:, :each], True, axis=1)
    return held


def _shard(labels: Indices, clients: int, spec: PartitionSpec, generator: np.random.Generator) -> Indices:
    """Sort by class, cut into equal shards, give each client so many at random.

    As McMahan et al. (AISTATS 2017, section 3). Shards differ by one picture at most, so that all pictures
    are given out.
    """
    shards = clients * spec.shards_per_client
    if shards > len(labels):
        raise DataError(
            f"{len(labels)} training pictures can't be cut into {shards} shards, {spec.shards_per_client} "
            f"for each of {clients} clients: take fewer clients or fewer partition.shards_per_client"
        )
    owner_of_shard = generator.permutation(shards) // spec.shards_per_client
    owners = np.empty(len(labels), dtype=np.int64)
    owners[np.argsort(labels, kind="stable")] = owner_of_shard[np.arange(len(labels)) * shards // len(labels)]
    return owners


_SCHEMES: dict[str, Callable[[Indices, int, PartitionSpec, np.random.Generator], Indices]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "pathological": _pathological,
    "shard": _shard,
}

_REMEDIES = {
    "iid": "",
    "dirichlet": "a larger partition.alpha, ",
    "pathological": "more partition.classes_per_client, ",
    "shard": "",
}
