"""Who holds which image: the division over clients, and the parts held out for testing.

Not for images: everything here is labels and indices. The schemes are those of ``flwr-datasets``, index by
index, which tests hold. It is not used itself: its import takes more processor time than the rest of a run's
start, once in every process, since it brings ``datasets``, pandas, seaborn and matplotlib. A division that
leaves a client less than a batch is drawn again, and in the end taken as it is, unless the scenario refuses
that.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedprune import seeds
from fedprune.data.dataset import Indices, Shares
from fedprune.errors import DataError
from fedprune.scenario import PartitionSpec

# A division in which some client would get less than a batch is drawn again, so many times in all.
DRAWS = 100

# Those in which every draw gives clients equally much.
_FIXED_SIZES = {"iid", "shard"}

# Part of a data set without a test split that is taken for testing, the same part whatever the seed.
TEST_PART = 1 / 6

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
            f"data.{split}_examples is {wanted}: there are no more than {len(candidates)} {split} examples"
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
    """Divide the positions of ``labels`` over the clients, each of which gets ``smallest`` if it can be.

    Divisions that give less to a client are drawn again. Where no draw does, the first is taken that gives
    every client ``spec.min_examples`` at the least, by default the first of all, and a warning says how many
    clients have less than ``smallest``.

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
        What gives a client one full batch, at least 1.
    seed
        The scenario's seed; the result depends on it and on the other arguments alone.

    Raises
    ------
    DataError
        Where the scheme can't be applied to these labels, or no draw gave every client ``spec.min_examples``.
    """
    if clients * spec.min_examples > len(labels):
        raise DataError(
            f"{len(labels)} training examples can't give {clients} clients {spec.min_examples} each, as "
            "partition.min_examples asks: take fewer clients or more examples"
        )
    # Partitioners take images of a class in the order in which they come; that order must mean nothing.
    order = seeds.numpy_generator(seed, "partition").permutation(len(labels))
    wanted = max(smallest, spec.min_examples)
    redrawing_helps = spec.scheme not in _FIXED_SIZES and clients * wanted <= len(labels)
    taken: Shares | None = None
    refused = []
    for draw in range(DRAWS):
        shares = _draw(labels[order], order, clients, spec, seeds.derive(seed, "partition", draw))
        least = shares.sizes.min()
        if least >= wanted:
            taken = shares
            break
        if least < spec.min_examples:
            refused.append(shares.sizes)
        elif taken is None:
            taken = shares
        if taken is not None and not redrawing_helps:
            break
    if taken is None:
        raise _too_small(min(refused, key=lambda sizes: np.sum(sizes < spec.min_examples)), spec)
    _warn(taken, len(labels), smallest, spec.scheme)
    return taken


def by_owner(
    owners: NDArray[Any],
    everybody: NDArray[Any],
    clients: int,
    spec: PartitionSpec,
    smallest: int,
    seed: int,
) -> Shares:
    """Divide positions by whose they are: client k has those of the k-th owner, in ascending order.

    Where there are more owners than clients, so many are drawn, and the examples of the others are left out;
    a warning says how many.

    Parameters
    ----------
    owners
        (N,), text or numbers.
    everybody
        All owners that there are, (M,), each once and ascending; one may own none of the positions.
    clients
        Number of clients.
    spec
        What the fewest examples of a client are.
    smallest
        What gives a client one full batch; a warning says how many have less.
    seed
        The scenario's seed.

    Raises
    ------
    DataError
        Where there are fewer owners than clients, or one has too few examples.
    """
    there = len(everybody)
    if there < clients:
        raise DataError(
            f"the training examples are of {there} clients, and clients.count is {clients}: "
            f"write {there}, or less"
        )
    drawn = seeds.numpy_generator(seed, "natural partition").choice(there, clients, replace=False)
    client_of = np.full(there, -1)
    client_of[np.sort(drawn)] = np.arange(clients)
    mine = client_of[np.searchsorted(everybody, owners)]
    order = np.argsort(mine, kind="stable")
    shares = _shares(order[np.sum(mine < 0) :], np.bincount(mine[mine >= 0], minlength=clients))
    if shares.sizes.min() < spec.min_examples:
        raise _too_small(shares.sizes, spec)
    _warn(shares, len(owners), smallest, spec.scheme)
    return shares


def _warn(shares: Shares, examples: int, smallest: int, scheme: str) -> None:
    """Log what a division leaves out, and which clients it leaves with little."""
    if left_out := examples - len(shares.indices):
        _logger.warning("the %s partition leaves out %d of %d examples", scheme, left_out, examples)
    if few := int(np.sum(shares.sizes < smallest)):
        _logger.warning(
            "the %s partition gives %d of %d clients fewer than %d examples, one batch and its held-out "
            "part: they train on what they have (%d have none)",
            scheme,
            few,
            len(shares),
            smallest,
            int(np.sum(shares.sizes == 0)),
        )


def _draw(labels: Indices, numbers: Indices, clients: int, spec: PartitionSpec, seed: int) -> Shares:
    """Return the division of the images ``numbers``, which have these ``labels``, for one seed."""
    generator = np.random.default_rng(seed)
    match spec.scheme:
        case "iid":
            parts: list[Indices] | None = np.array_split(np.arange(len(labels)), clients)
        case "dirichlet":
            parts = _dirichlet(labels, clients, spec.alpha, generator)
        case "pathological":
            parts = _pathological(labels, clients, spec.classes_per_client, generator)
        case "shard":
            parts = _shards(labels, clients, spec.shards_per_client, generator)
        case "natural":
            raise AssertionError("a natural division is not by labels: see by_owner")
    if parts is None:
        settings = spec.model_dump(exclude={"scheme", "min_examples"})
        raise DataError(
            f"the {spec.scheme} partition can't divide {len(labels)} training examples of "
            f"{len(np.unique(labels))} classes over {clients} clients with "
            f"{', '.join(f'{key} {value}' for key, value in settings.items())}: take "
            f"{' or '.join(f'a smaller partition.{key}' for key in settings)} or fewer clients"
        )
    return _shares(
        np.concatenate([np.sort(numbers[part]) for part in parts]), np.array([len(part) for part in parts])
    )


def _dirichlet(labels: Indices, clients: int, alpha: float, generator: np.random.Generator) -> list[Indices]:
    """Divide each class by shares drawn from a Dirichlet distribution (Hsu et al., arXiv 1909.06335)."""
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        shares = generator.dirichlet(np.full(clients, alpha))
        cuts = (np.cumsum(shares) * len(of_class)).astype(np.int64)[:-1]
        for part, piece in zip(parts, np.split(of_class, cuts), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def _pathological(
    labels: Indices, clients: int, each: int, generator: np.random.Generator
) -> list[Indices] | None:
    """Give each client ``each`` classes, in equal parts; None where there are too few classes or images.

    The first class of a client is the next in turn, so that all are given out; the others are drawn.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if each > len(classes):
        return None
    owners: list[list[int]] = [[] for _ in classes]
    for client in range(clients):
        has = [client % len(classes)]
        while len(has) < each:
            drawn = int(generator.choice(len(classes)))
            if drawn not in has:
                has.append(drawn)
        for position in has:
            owners[position].append(client)
    if any(len(having) > size for having, size in zip(owners, sizes, strict=True)):
        return None
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for label, having in zip(classes, owners, strict=True):
        if having:
            pieces = np.array_split(np.flatnonzero(labels == label), len(having))
            for client, piece in zip(having, pieces, strict=True):
                parts[client].append(piece)
    return [np.concatenate(part) for part in parts]


def _shards(labels: Indices, clients: int, each: int, generator: np.random.Generator) -> list[Indices] | None:
    """Give each client ``each`` of the equal shards of the images in order of their labels.

    None where there are more shards than images (McMahan et al., AISTATS 2017, with two shards).
    """
    size = len(labels) // (clients * each)
    if size == 0:
        return None
    order = np.argsort(labels, kind="stable")
    # There may be more of this size than are given out; which are left over is drawn, too.
    drawn = generator.permutation(len(labels) // size)[: clients * each].reshape(clients, each)
    return [np.concatenate([order[shard * size : (shard + 1) * size] for shard in own]) for own in drawn]


def _too_small(sizes: Indices, spec: PartitionSpec) -> DataError:
    poorest, fewest = int(sizes.argmin()), spec.min_examples
    draws = "" if spec.scheme == "natural" else f", in the best of {DRAWS} draws"
    return DataError(
        f"the {spec.scheme} partition leaves client {poorest} with {sizes[poorest]} examples, and "
        f"partition.min_examples asks for {fewest} ({np.sum(sizes < fewest)} of {len(sizes)} clients "
        f"have too few{draws}): take {_REMEDIES[spec.scheme]}fewer clients or a "
        "smaller partition.min_examples"
    )


def hold_out(shares: Shares, fraction: float, seed: int) -> tuple[Shares, Shares]:
    """Return each client's share in two: what it trains on, and a random ``fraction`` that it tests on.

    A client holds out its fraction, rounded down, but at least one example where ``fraction`` is above 0. One
    that has a single example trains on it and holds out none.
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
    return np.minimum(np.maximum((sizes * fraction).astype(np.int64), 1), np.maximum(sizes - 1, 0))


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
    "natural": "",
}
