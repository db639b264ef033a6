"""A scenario's data: read, divided over the server and the clients, and described.

Not for how any of that is done: ``sources`` reads and ``partition`` divides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedprune import registry, seeds
from fedprune.data import augmentation, described, labels, partition
from fedprune.data.batches import signed
from fedprune.data.client_shift import ClientShift
from fedprune.data.dataset import (
    ClientData,
    DataInfo,
    Examples,
    FederatedData,
    Indices,
    LocalData,
    Rows,
    Shares,
)
from fedprune.data.decoding import AS_FOUND, Form
from fedprune.data.inputs import Pixels
from fedprune.data.known import KNOWN, numbered
from fedprune.data.source import Request, Source
from fedprune.data.sources import SOURCES, Tables, find, hugging_face, open_tables
from fedprune.data.standard import Standardised, pooled
from fedprune.errors import DataError, FedpruneError
from fedprune.scenario import DataSpec, Scenario
from fedprune.wording import one_line

_logger = logging.getLogger(__name__)


def load(scenario: Scenario, source: Source | None = None) -> FederatedData:
    """Return the data of a scenario; the division depends on its seed and settings alone.

    ``source`` is what `read` returned for it, where it has been read already.

    The server's public part is taken from the training images first; the rest is divided over the clients
    by the scenario's scheme; then each client holds out its own test part.

    Raises
    ------
    DataError
        Where the data can't be read, is not what the scenario says of it, or can't be divided as it asks.
    PluginError
        Where there is no data set of that name.
    """
    source = read(scenario) if source is None else source
    info = info_of(scenario, source)
    _check_declared(scenario.data, info)
    info = _with_counts(info, source.train.targets)
    _warn_of_one_class(info, _task_name(scenario, source))
    server, train, test = _divide(scenario, source.train.targets, source.clients)
    if scenario.data.inputs is not None:
        info = replace(info, inputs=described.info_of(scenario.data).inputs)  # As devices standardise.
    elif isinstance(info.inputs, Standardised):
        info = replace(info, inputs=pooled(info.inputs, source.train.inputs, train))
    check_changes(scenario, info, source.train.inputs)
    return FederatedData(info, source.train, source.test, server, train, test, shift_of(scenario))


def check_changes(scenario: Scenario, info: DataInfo, inputs: Rows) -> None:
    """Refuse augmentation and clients' shifts that a data set's inputs do not allow."""
    if changes := augmentation.augmentations(scenario.data.augment, scenario.directory):
        some = torch.from_numpy(signed(inputs[np.arange(min(2, len(inputs)))]))
        augmentation.check(changes, some, info.inputs.tensor)
    if (shift := shift_of(scenario)) is not None:
        shift.check(inputs)


def shift_of(scenario: Scenario) -> ClientShift | None:
    """Return what makes a scenario's clients differ, if it says so."""
    spec = scenario.data.client_shift
    return None if spec is None else ClientShift(spec, scenario.seed, scenario.directory)


def open_shares(scenario: Scenario) -> LocalData:
    """Return the data of a scenario for processes in which few of its clients are at work.

    Each client has the same images and labels in the same order as with `load`. Of tables (files, the
    hub), a client's images are decoded when it is asked for, and no others: not the other clients', not the
    server's, not the test split. Sources that return whole arrays are loaded whole.

    Raises
    ------
    DataError, PluginError
        As `load`.
    """
    tables = open_tables(_request(scenario), scenario.directory)
    if tables is None:
        return load(scenario)
    if _names_others(scenario.data, tables.class_names):
        tables = _tables_of_classes(scenario, tables)
    expected = declared(scenario.data)
    if expected is None:
        shape, bits = tables.shape()
    else:
        shape, bits = expected.image_shape, bits_of(expected)
    info = _info(scenario.data, shape, bits, tables)
    _check_declared(scenario.data, info)
    _, train, test = _divide(scenario, tables.train_labels, tables.clients)
    info = _with_counts(info, tables.train_labels)
    return _OpenShares(info, tables, train, test, shift_of(scenario))


@dataclass(frozen=True, eq=False)
class _OpenShares:
    """A division of images that are decoded client by client, once each."""

    info: DataInfo
    tables: Tables
    train: Shares
    test: Shares
    shift: ClientShift | None

    def client(self, number: int) -> ClientData:
        """Return the data of client ``number``, from 0."""
        return self._client(number)

    @cached_property
    def _client(self) -> Callable[[int], ClientData]:
        @cache
        def decode(number: int) -> ClientData:
            train, test = self.train.of(number), self.test.of(number)
            held = np.concatenate([train, test])
            images = self.tables.share(held, self.info.image_shape, bits_of(self.info))
            if self.shift is not None:
                images = Examples(self.shift.of(number, images.inputs), images.targets)
            places = np.arange(len(images))
            return ClientData(images, places[: len(train)], places[len(train) :])

        return decode


def declared(spec: DataSpec) -> DataInfo | None:
    """Return what inputs and classes a scenario's model takes, as far as it follows without reading any.

    From ``data.inputs`` or, of images, ``data.input_shape``, and ``data.classes``; for a built-in data set,
    from what is known of it. None where a part is missing.

    Raises
    ------
    DataError
        Where mean and standard deviation are given for another number of channels.
    """
    if spec.inputs is not None:
        return described.info_of(spec)
    known = KNOWN.get(spec.name)
    shape, names, mean, std = spec.input_shape, spec.classes, None, None
    if isinstance(names, int):
        names = numbered(names)
    if known is not None:
        shape, names, mean, std = (
            shape or known.input_shape,
            names or known.class_names,
            known.mean,
            known.std,
        )
    if shape is None or names is None:
        return None
    if spec.input_shape is None:
        shape = (spec.channels or shape[0], *(spec.resize or shape[1:]))
    return _of_images(spec, shape, spec.bits or 8, names, mean, std)


def describe(scenario: Scenario) -> DataInfo:
    """Return what images a scenario's data set has: as declared, else as few are read as a source allows.

    Raises
    ------
    DataError
        Where the data can't be read.
    PluginError
        Where there is no data set of that name.
    """
    if (info := declared(scenario.data)) is not None:
        return info
    few = scenario.data.model_copy(update={"train_examples": 1, "test_examples": 1})
    source = _found(scenario.model_copy(update={"data": few}))
    unknown = not source.class_names and _task_name(scenario, source) == "classification"
    if unknown or _names_others(scenario.data, source.class_names):
        return info_of(scenario, read(scenario))  # Few examples do not tell which classes there are.
    return info_of(scenario, _checked(scenario, source))


def _with_counts(info: DataInfo, targets: NDArray[Any]) -> DataInfo:
    """Return what is known of data with how many training examples there are of each class."""
    if not info.classes or targets.ndim != 1:
        return info
    return replace(info, label_counts=tuple(np.bincount(targets, minlength=info.classes).tolist()))


def _warn_of_one_class(info: DataInfo, task: str) -> None:
    """Say where there is nothing to tell apart."""
    found = [name for name, count in zip(info.class_names, info.label_counts, strict=False) if count]
    if task == "classification" and len(found) == 1:
        _logger.warning(
            "all training examples of data set %r are of class %r: there is nothing to tell apart",
            info.name,
            found[0],
        )


def info_of(scenario: Scenario, source: Source) -> DataInfo:
    """Return what is known of a scenario's data, which has been read."""
    inputs = source.train.inputs
    return _info(scenario.data, inputs.shape[1:], 8 * inputs.dtype.itemsize, source)


def _request(scenario: Scenario) -> Request:
    spec = scenario.data
    return Request(
        name=spec.name,
        path=None if spec.path is None else scenario.directory / spec.path,
        seed=scenario.seed,
        train_examples=spec.train_examples,
        test_examples=spec.test_examples,
        image_column=spec.image_column,
        label_column=spec.label_column,
        client_column=spec.partition.column,
        options=spec.options,
        form=form_of(spec),
        lazy=spec.lazy,
        numbers=_numbers_wanted(scenario),
    )


def _numbers_wanted(scenario: Scenario) -> bool:
    """Say whether the scenario's task predicts numbers; the data set's own task is for its source."""
    if scenario.task is None:
        return False
    kind = registry.load("task", scenario.task.name, scenario.directory)
    return getattr(kind, "answers", None) == "numbers"


def form_of(spec: DataSpec) -> Form:
    """Return what a scenario asks images to be made."""
    return Form(spec.resize, spec.fit, spec.channels, spec.bits)


def bits_of(info: DataInfo) -> int:
    """Return the bits of a value of images."""
    assert isinstance(info.inputs, Pixels)
    return info.inputs.depth.bit_length()


def read_key(scenario: Scenario) -> Hashable:
    """Return what `read` depends on: scenarios with equal keys have the same images, read once for all.

    The seed counts where images are chosen among more, and for a source of a user's own.
    """
    request = _request(scenario)
    spec = scenario.data
    whole = spec.train_examples is None and spec.test_examples is None
    built_in = spec.name in SOURCES or find(spec.name, request.path, scenario.directory) is hugging_face
    task = None if scenario.task is None else scenario.task.name  # By which labels are read.
    key = replace(request, seed=0) if whole and built_in else (request, scenario.directory)
    return key, task, spec.classes


def read(scenario: Scenario) -> Source:
    """Read a scenario's data set, undivided, of its classes alone; raises as `load`."""
    source = _checked(scenario, _found(scenario))
    return _of_classes(scenario, source) if _names_others(scenario.data, source.class_names) else source


def _names_others(spec: DataSpec, names: tuple[str, ...]) -> bool:
    """Say whether a scenario names other classes than those of its data set, or these in another order."""
    return _named(spec) not in ((), names)


def _named(spec: DataSpec) -> tuple[str, ...]:
    """Return the classes that a scenario names; () where it names none."""
    return spec.classes if isinstance(spec.classes, tuple) else ()


def _of_classes(scenario: Scenario, source: Source) -> Source:
    """Return the examples of the classes that a scenario names, and of these as many as it asks for."""
    if _chosen_from_all(scenario) != scenario:
        source = _checked(scenario, _found(_chosen_from_all(scenario)))
    train, train_labels = _kept(scenario, source.class_names, source.train.targets, "train")
    test, test_labels = _kept(scenario, source.class_names, source.test.targets, "test")
    return replace(
        source,
        train=source.train.at(train, train_labels),
        test=source.test.at(test, test_labels),
        class_names=_named(scenario.data),
        clients=None if source.clients is None else source.clients[train],
    )


def _tables_of_classes(scenario: Scenario, tables: Tables) -> Tables:
    """Return tables with the training images that `_of_classes` keeps, and the test images as they are."""
    opened = open_tables(_request(_chosen_from_all(scenario)), scenario.directory)
    assert opened is not None
    places, labels = _kept(scenario, opened.class_names, opened.train_labels, "train")
    return replace(
        opened,
        train=opened.train.select(places),
        train_labels=labels,
        class_names=_named(scenario.data),
        clients=None if opened.clients is None else opened.clients[places],
    )


def _chosen_from_all(scenario: Scenario) -> Scenario:
    """Return a scenario that takes all examples."""
    whole = scenario.data.model_copy(update={"train_examples": None, "test_examples": None})
    return scenario.model_copy(update={"data": whole})


def _kept(
    scenario: Scenario, names: tuple[str, ...], targets: NDArray[Any], split: Literal["train", "test"]
) -> tuple[Indices, Indices]:
    """Return which examples are of a scenario's classes, as many as it asks for, and their new numbers."""
    spec, where = scenario.data, f"data set {scenario.data.name!r}"
    if not names or targets.ndim != 1:
        raise DataError(f"data.classes names classes, and the targets of {where} are none: leave it out")
    numbers = labels.renumbered(_named(spec), names, where)[targets]
    of_classes = np.flatnonzero(numbers >= 0)
    if not len(of_classes):
        raise DataError(f"data.classes: {where} has no {split} examples of {', '.join(_named(spec))}")
    wanted = spec.train_examples if split == "train" else spec.test_examples
    places = partition.choose(of_classes, wanted, scenario.seed, split)
    return places, numbers[places]


def at_hand(scenario: Scenario) -> bool:
    """Say whether a scenario's data is read on this machine, and not fetched from the Hugging Face hub.

    Raises
    ------
    PluginError
        Where there is no data set of that name.
    """
    spec = scenario.data
    if spec.path is not None:
        return True
    known = KNOWN.get(spec.name)
    from_hub = find(spec.name, None, scenario.directory) is hugging_face
    return not (from_hub or (known is not None and known.hub) or spec.options.get("hub"))


def _found(scenario: Scenario) -> Source:
    """Return what a scenario's source returns, which may be of a user's own."""
    request = _request(scenario)
    name = f"data set {request.name!r}"
    make = find(request.name, request.path, scenario.directory)
    try:
        source = make(request)
    except FedpruneError:
        raise
    except Exception as error:  # A user's own may raise anything.
        if make in (hugging_face, *SOURCES.values()):
            raise
        raise DataError(f"{name} raised {one_line(error)}") from error
    if not isinstance(source, Source):
        raise DataError(f"{name} is a {type(source).__name__}: expected fedprune.data.Source")
    for split, examples in (("train", source.train), ("test", source.test)):
        if not isinstance(examples, Examples):
            raise DataError(
                f"{name}: {split} is a {type(examples).__name__}: expected fedprune.data.Examples"
            )
        for what, values in (("inputs", examples.inputs), ("targets", examples.targets)):
            if not isinstance(getattr(values, "dtype", None), np.dtype):
                raise DataError(
                    f"{name}: {split} has {what} as a {type(values).__name__}: expected a NumPy array"
                )
    return replace(source, class_names=tuple(map(str, source.class_names)))


def _task_name(scenario: Scenario, source: Source) -> str:
    return source.task if scenario.task is None else scenario.task.name


def _checked(scenario: Scenario, source: Source) -> Source:
    """Return what a source returned, with labels as class numbers where they are to be classified."""
    where = f"data set {scenario.data.name!r}"
    if _task_name(scenario, source) == "classification":
        splits = (source.train.targets, source.test.targets)
        (train, test), names = labels.with_classes(splits, source.class_names, where)
        source = replace(
            source,
            train=Examples(source.train.inputs, train),
            test=Examples(source.test.inputs, test),
            class_names=names,
        )
    for split, examples in (("train", source.train), ("test", source.test)):
        if fault := _fault(examples, source):
            raise DataError(f"{where}: {split} has {fault}")
    if source.train.inputs.dtype != source.test.inputs.dtype:
        kinds = " and ".join(str(examples.inputs.dtype) for examples in (source.train, source.test))
        raise DataError(f"{where}: train and test have inputs of two types, {kinds}: make them one")
    form = form_of(scenario.data)
    if source.inputs is not None and form != AS_FOUND:
        raise DataError(
            f"{where} has {source.inputs.kind}: data.resize, fit, channels and bits are for images, leave "
            "them out"
        )
    if source.inputs is not None or form == AS_FOUND or not isinstance(source.train.inputs, np.ndarray):
        return source
    return replace(
        source,
        train=Examples(form.arrays(source.train.inputs, where), source.train.targets),
        test=Examples(form.arrays(source.test.inputs, where), source.test.targets),
    )


def _divide(
    scenario: Scenario, targets: NDArray[Any], owners: NDArray[Any] | None
) -> tuple[Indices, Shares, Shares]:
    """Return the server's part of the training examples, and what each client trains and tests on."""
    spec, clients, seed = scenario.data, scenario.clients, scenario.seed
    public, pool = _public_part(len(targets), spec.server_fraction, seed)
    smallest = partition.smallest_share(clients.training.batch_size, spec.client_test_fraction)
    if spec.partition.scheme == "natural":
        if owners is None:
            raise DataError(
                f"data set {spec.name!r} does not say whose its examples are: name the column that does in "
                "data.partition.column, or let its source return `clients`"
            )
        everybody = np.unique(owners)  # Also whose every example is with the server.
        shares = partition.by_owner(owners[pool], everybody, clients.count, spec.partition, smallest, seed)
    else:
        classes = _classes(targets, spec)[pool]
        shares = partition.partition(classes, clients.count, spec.partition, smallest, seed)
    shares = Shares(pool[shares.indices], shares.offsets)
    return public, *partition.hold_out(shares, spec.client_test_fraction, seed)


def _classes(targets: NDArray[Any], spec: DataSpec) -> Indices:
    """Return the classes by which a scheme divides; it needs none to divide evenly."""
    if targets.ndim == 1 and targets.dtype == np.int64:
        return targets
    if spec.partition.scheme == "iid":
        return np.zeros(len(targets), dtype=np.int64)
    raise DataError(
        f"the {spec.partition.scheme} partition divides by class, and data set {spec.name!r} has targets "
        "that are none: take data.partition.scheme iid or natural"
    )


def _fault(examples: Examples, source: Source) -> str | None:
    """Return what is wrong with what a source returned; it may be a user's own."""
    inputs, targets, classes = examples.inputs, examples.targets, len(source.class_names)
    if source.inputs is None and (inputs.dtype not in (np.uint8, np.uint16) or len(inputs.shape) != 4):
        return f"{inputs.dtype} pixels of shape {inputs.shape}: expected uint8 or uint16 (N, C, H, W)"
    if source.clients is not None and np.shape(source.clients) != (len(source.train),):
        return f"clients of shape {np.shape(source.clients)}: expected ({len(source.train)},), one an example"
    if len(targets) != len(inputs) or not len(targets):
        return f"{len(targets)} targets for {len(inputs)} inputs: expected one for each, and some"
    if not classes or targets.ndim > 1:
        return None  # What else targets may be, the task says.
    if targets.dtype != np.int64:
        return f"{targets.dtype} labels of shape {targets.shape} for {len(inputs)} examples: expected int64"
    if targets.min() < 0 or targets.max() >= classes:
        return f"labels from {targets.min()} to {targets.max()}: expected 0 to {classes - 1}"
    return None


def _public_part(examples: int, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Return the server's part, at least one image where ``fraction`` is above 0, and the rest."""
    order = seeds.numpy_generator(seed, "server data").permutation(examples)
    public = max(1, round(examples * fraction)) if fraction > 0 else 0
    return np.sort(order[:public]), np.sort(order[public:])


def _info(spec: DataSpec, shape: tuple[int, ...], bits: int, source: Source | Tables) -> DataInfo:
    if source.inputs is not None:
        if spec.mean is not None:
            raise DataError(
                f"data.mean and data.std are for images, and data set {spec.name!r} has none: leave them out"
            )
        return DataInfo(spec.name, source.inputs, source.class_names, source.task)
    channels, height, width = shape
    shape = (channels, height, width)
    info = _of_images(spec, shape, bits, source.class_names, source.mean, source.std)
    return replace(info, task=source.task)


def _of_images(
    spec: DataSpec,
    shape: tuple[int, int, int],
    bits: int,
    class_names: tuple[str, ...],
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> DataInfo:
    half = (0.5,) * shape[0]
    if mean is not None and std is not None and spec.channels is not None:
        # Of grey images all channels are alike; of colours there is no one mean.
        mean, std = (values * shape[0] if len(values) == 1 else None for values in (mean, std))
    pixels = Pixels(
        shape,
        _per_channel("mean", spec.mean or mean or half, shape[0]),
        _per_channel("std", spec.std or std or half, shape[0]),
        2**bits - 1,
    )
    return DataInfo(spec.name, pixels, class_names)


def _check_declared(spec: DataSpec, info: DataInfo) -> None:
    """Refuse data that is not what a device with data of its own would take it to be."""
    if spec.input_shape not in (None, info.input_shape):
        raise _disagrees(spec, "input_shape", spec.input_shape, info.input_shape)
    if spec.classes not in (None, info.classes, info.class_names):
        found = info.class_names if isinstance(spec.classes, tuple) else info.classes
        raise _disagrees(spec, "classes", spec.classes, found)
    expected = declared(spec)
    if spec.inputs is not None and expected is not None:
        if not described.same_but_for_standardisation(expected.inputs, info.inputs):
            raise DataError(
                f"data.inputs is not what data set {spec.name!r} has: leave it out, and `fedprune deploy "
                "init` writes it"
            )
        return
    if expected is None or not isinstance(info.inputs, Pixels):
        return
    there = _described(info)
    for key, usual in _described(expected).items():
        if usual != there[key]:
            raise DataError(
                f"data set {spec.name!r} has {key} {_plain(there[key])}, and a device with data of its own "
                f"would take it to be {_plain(usual)}: write data.{key}: {_plain(there[key])}"
            )


def _described(info: DataInfo) -> dict[str, object]:
    """Return what a scenario may say of images, by its keys under ``data``."""
    assert isinstance(info.inputs, Pixels)
    return {
        "input_shape": info.input_shape,
        "classes": info.classes,
        "mean": info.inputs.mean,
        "std": info.inputs.std,
        "bits": bits_of(info),
    }


def _disagrees(spec: DataSpec, key: str, given: object, found: object) -> DataError:
    return DataError(
        f"data.{key} is {_plain(given)}, and of data set {spec.name!r} it is {_plain(found)}: correct it"
    )


def _plain(value: object) -> object:
    """Return a value as YAML has it."""
    return list(value) if isinstance(value, tuple) else value


def _per_channel(what: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) != channels:
        raise DataError(
            f"the {what} of pixels is given for {len(values)} channels, and the images have {channels}: "
            f"write data.{what} with one number a channel"
        )
    return tuple(values)
