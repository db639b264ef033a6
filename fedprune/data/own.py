"""A device's own data: what its owner names, read for the one client that the device is.

Images: a folder, a ``.parquet`` or ``.npz`` file, or a function of the owner's. Sounds, recordings, rows of
tables and texts, where the scenario describes them (``data.inputs``). Not for the data set that the scenario
names: see ``federated``. A device has a process for each message, so this is read once a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fedprune import registry, seeds
from fedprune.data import image_files, npz, partition
from fedprune.data.audio import FileOptions, Waveforms, own_sounds
from fedprune.data.dataset import ClientData, DataInfo, Examples, Shares
from fedprune.data.expected import Expected
from fedprune.data.federated import declared
from fedprune.data.inputs import Pixels
from fedprune.data.series import SeriesOptions, Windows, own_windows
from fedprune.data.source import SourceOptions
from fedprune.data.tabular import Columns, own_rows
from fedprune.data.text import Characters, TextOptions, own_texts
from fedprune.errors import DataError
from fedprune.scenario import Scenario

_Options = TypeVar("_Options", bound=SourceOptions)

_EXPECTED = (
    "expected a folder with a folder of .png or .jpg files for each class, a .parquet or .npz file, or a "
    "function, 'module:load' or 'file.py:load'"
)


@dataclass(frozen=True)
class OwnData:
    """The data of one client, and of no other: ``data`` is that of client ``number``."""

    info: DataInfo
    number: int
    data: ClientData

    def client(self, number: int) -> ClientData:
        """Return the data, if it is that client's that is asked for."""
        if number != self.number:
            raise IndexError(f"client {number}: this device is client {self.number}")
        return self.data


def load_own(where: str, scenario: Scenario, number: int) -> OwnData:
    """Return the data of the device that is client ``number``, checked against the scenario.

    What the client tests on, where the scenario's clients do (``data.client_test_fraction`` above 0), is the
    test part that the data brings, else that fraction of it, drawn by the scenario's seed and the number.
    Without test images in use, the training images of an uncompressed ``.npz`` file are not read here.

    Parameters
    ----------
    where
        A path, relative to the working directory, or a function "module:load" or "file.py:load": called with
        the `DataInfo` of what the model takes, it returns `Examples` or a pair (pixels, labels), arrays of
        uint8 (N, C, H, W) and of whole numbers (N,).

    Raises
    ------
    DataError
        Where it can't be read, does not fit the scenario, or is too little.
    PluginError
        Where there is no such function.
    """
    info = declared(scenario.data)
    try:
        if info is None or isinstance(info.inputs, Pixels):
            expected = Expected.of(scenario)
            info = expected.info
            train, test = _read(where, expected)
        else:
            train, test = _read_described(where, scenario, info)
    except OSError as error:
        raise DataError(
            f"{where} can't be read ({error}): it must be there, and readable for the user of the SuperNode"
        ) from error
    seed, fraction = seeds.derive(scenario.seed, "own data", number), scenario.data.client_test_fraction
    return OwnData(info, number, _with_test(train, test if fraction else None, fraction, seed))


def _read_described(where: str, scenario: Scenario, info: DataInfo) -> tuple[Examples, Examples | None]:
    """Return what is no images, for training and, where there is some apart, for testing."""
    path, inputs, names = Path(where).expanduser().absolute(), info.inputs, info.class_names
    given, label = scenario.data.options, scenario.data.options.get("label") or scenario.data.label_column
    if not path.exists():
        raise DataError(f"{path} does not exist: a device's own {inputs.kind} are files")
    if isinstance(inputs, Waveforms):
        made = own_sounds(path, inputs, names, _taken(FileOptions, given))
    elif isinstance(inputs, Windows):
        made = own_windows(path, inputs, names, _taken(SeriesOptions, given), label or "label")
    elif isinstance(inputs, Columns):
        made = own_rows(path, inputs, names, given.get("target", "target"))
    else:
        assert isinstance(inputs, Characters)
        made = own_texts(
            path, inputs, names, _taken(TextOptions, {**given, "label": label if names else None})
        )
    least = max(scenario.data.partition.min_examples, 1)
    if not made or len(made[0]) < least:
        raise DataError(
            f"{path} has {len(made[0]) if made else 0} examples, and a client needs {least}: add some"
        )
    return made[0], made[1] if len(made) > 1 and len(made[1]) else None


def _taken(kind: type[_Options], given: Mapping[str, Any]) -> _Options:
    """Return those of a data set's options that its kind of data has; a generator's own have others, too."""
    return kind.model_validate({key: value for key, value in given.items() if key in kind.model_fields})


def _read(where: str, expected: Expected) -> tuple[Examples, Examples | None]:
    path = Path(where).expanduser().absolute()
    if path.is_dir():
        return image_files.read_folder(path, expected)
    if path.suffix == ".npz" and path.exists():
        return npz.read(path, expected)
    if path.suffix == ".parquet" and path.exists():
        return image_files.read_parquet(path, expected)
    if not path.exists() and where.rpartition(":")[2].isidentifier() and ":" in where:
        return _call(registry.load("data", where), where, expected), None
    raise DataError(f"{path} {'is of no known format' if path.exists() else 'does not exist'}: {_EXPECTED}")


def _call(function: Callable[[DataInfo], Any], where: str, expected: Expected) -> Examples:
    """Return what a function of the owner's makes."""
    try:
        made = function(expected.info)
        if isinstance(made, Examples):
            made = (made.inputs, made.targets)
        arrays = [np.asarray(array) for array in made] if isinstance(made, tuple) else []
    except Exception as error:  # it is the owner's, and may raise anything
        raise DataError(f"{where} raised {type(error).__name__}: {error}") from error
    if len(arrays) != 2:
        raise DataError(f"{where} returned {type(made).__name__}: expected Examples or (pixels, labels)")
    pixels, labels = arrays
    pixels = expected.pixels(pixels, where)
    expected.check_count(len(pixels), where)
    return Examples(pixels, expected.labels(labels, len(pixels), where))


def _with_test(train: Examples, test: Examples | None, fraction: float, seed: int) -> ClientData:
    """Return the images with what the client trains and tests on."""
    examples = len(train)
    if test is None:
        shares = Shares(np.arange(examples), np.array([0, examples]))
        kept, held_out = partition.hold_out(shares, fraction, seed)
        return ClientData(train, kept.indices, held_out.indices)
    together = Examples(
        np.concatenate([train.inputs, test.inputs]), np.concatenate([train.targets, test.targets])
    )
    places = np.arange(len(together))
    return ClientData(together, places[:examples], places[examples:])
