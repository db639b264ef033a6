"""A scenario's data: read, divided over the server and the clients, and described.

Not for how any of that is done: ``sources`` reads and ``partition`` divides.
"""

from __future__ import annotations

import numpy as np

from fedprune import seeds
from fedprune.data import partition
from fedprune.data.pictures import DataInfo, FederatedData, Indices, Pictures, Shares
from fedprune.data.sources import Request, Source, find
from fedprune.errors import DataError
from fedprune.scenario import DataSpec, Scenario


def load(scenario: Scenario) -> FederatedData:
    """Return the data of a scenario; the division depends on its seed and settings alone.

    The server's public part is taken from the training pictures first; the rest is divided over the clients
    by the scenario's scheme; then each client holds out its own test part.

    Raises
    ------
    DataError
        Where the data can't be read, or not divided so that every client can train on one full batch.
    PluginError
        Where there is no data set of that name.
    """
    spec, clients, seed = scenario.data, scenario.clients, scenario.seed
    source = _read(scenario)
    public, pool = _public_part(len(source.train), spec.server_fraction, seed)
    smallest = partition.smallest_share(clients.training.batch_size, spec.client_test_fraction)
    shares = partition.partition(source.train.labels[pool], clients.count, spec.partition, smallest, seed)
    shares = Shares(pool[shares.indices], shares.offsets)
    train, test = partition.hold_out(shares, spec.client_test_fraction, seed)
    return FederatedData(_info(spec, source), source.train, source.test, public, train, test)


def describe(scenario: Scenario) -> DataInfo:
    """Return what pictures a scenario's data set has, of which as few as a source allows are read.

    Raises
    ------
    DataError
        Where the data can't be read.
    PluginError
        Where there is no data set of that name.
    """
    few = scenario.data.model_copy(update={"train_examples": 1, "test_examples": 1})
    return _info(few, _read(scenario.model_copy(update={"data": few})))


def _read(scenario: Scenario) -> Source:
    spec = scenario.data
    path = None if spec.path is None else scenario.directory / spec.path
    request = Request(
        name=spec.name,
        path=path,
        seed=scenario.seed,
        train_examples=spec.train_examples,
        test_examples=spec.test_examples,
        image_column=spec.image_column,
        label_column=spec.label_column,
    )
    source = find(spec.name, path, scenario.directory)(request)
    for split, pictures in (("train", source.train), ("test", source.test)):
        if fault := _fault(pictures, len(source.class_names)):
            raise DataError(f"data set {spec.name!r}: {split} has {fault}")
    return source


def _fault(pictures: Pictures, classes: int) -> str | None:
    """Return what is wrong with what a source returned; it may be a user's own."""
    pixels, labels = pictures.pixels, pictures.labels
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        return f"{pixels.dtype} pixels of shape {pixels.shape}: expected uint8 (N, C, H, W)"
    if labels.dtype != np.int64 or labels.shape != (len(pixels),) or not len(labels):
        return f"{labels.dtype} labels of shape {labels.shape} for {len(pixels)} pictures: expected int64"
    if labels.min() < 0 or labels.max() >= classes:
        return f"labels from {labels.min()} to {labels.max()}: expected 0 to {classes - 1}"
    return None


def _public_part(examples: int, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Return the server's part, at least one picture where ``fraction`` is above 0, and the rest."""
    order = seeds.numpy_generator(seed, "server data").permutation(examples)
    public = max(1, round(examples * fraction)) if fraction > 0 else 0
    return np.sort(order[:public]), np.sort(order[public:])


def _info(spec: DataSpec, source: Source) -> DataInfo:
    channels, height, width = source.train.pixels.shape[1:]
    half = (0.5,) * channels
    return DataInfo(
        name=spec.name,
        input_shape=(channels, height, width),
        classes=len(source.class_names),
        class_names=source.class_names,
        mean=_per_channel("mean", spec.mean or source.mean or half, channels),
        std=_per_channel("std", spec.std or source.std or half, channels),
    )


def _per_channel(what: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) != channels:
        raise DataError(
            f"the {what} of pixels is given for {len(values)} channels, and the pictures have {channels}: "
            f"write data.{what} with one number a channel"
        )
    return tuple(values)
