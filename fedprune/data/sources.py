"""Where data comes from: the sources by name, and images out of the Hugging Face hub and local files.

A source is a function of a `Request` to a `Source`; a user's own is found like a built-in one. Not for
dividing data over clients. What only the extra ``fedprune[sim]`` installs is imported inside functions: a
device has none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedprune import registry
from fedprune.data import tables
from fedprune.data.audio import FileOptions, audio
from fedprune.data.dataset import Examples, Indices, Rows
from fedprune.data.decoding import Form
from fedprune.data.inputs import Inputs
from fedprune.data.known import KNOWN, Known
from fedprune.data.masks import MaskOptions, masks
from fedprune.data.partition import choose, split_without_test
from fedprune.data.series import SeriesOptions, series, uci_har
from fedprune.data.source import Request, Source, SourceOptions
from fedprune.data.synthetic import (
    ActivityOptions,
    KeywordOptions,
    MachineOptions,
    PeopleOptions,
    SceneOptions,
    synthetic_activity,
    synthetic_keywords,
    synthetic_machine_sounds,
    synthetic_people,
    synthetic_scenes,
)
from fedprune.data.tabular import TabularOptions, breast_cancer, diabetes, tabular
from fedprune.data.text import TextOptions, TokenOptions, docstrings, text


def digits(request: Request) -> Source:
    """Handwritten digits of scikit-learn: 1,497 + 300 grey images of 8x8, 10 digits; needs no download."""
    found = util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise tables.missing_extra("digits", "scikit-learn")
    # Its file alone: to import scikit-learn takes two seconds.
    table = _table_of_digits(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz")
    pixels = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    labels = table[:, -1].astype(np.int64)
    train, test = split_without_test(len(labels))
    train = choose(train, request.train_examples, request.seed, "train")
    test = choose(test, request.test_examples, request.seed, "test")
    return Source(
        train=Examples(pixels[train], labels[train]),
        test=Examples(pixels[test], labels[test]),
        class_names=tuple(map(str, range(10))),
        mean=KNOWN["digits"].mean,
        std=KNOWN["digits"].std,
    )


@cache
def _table_of_digits(path: Path) -> np.ndarray:
    """Return 64 brightnesses from 0 to 16 and a label a row; a process reads them once, for all its runs."""
    table = np.loadtxt(path, delimiter=",")
    table.setflags(write=False)
    return table


def cifar10(request: Request) -> Source:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32x32, 10 classes."""
    return _open(request, KNOWN["cifar10"]).decoded()


def cifar100(request: Request) -> Source:
    """CIFAR-100 (Krizhevsky 2009), fine labels: 50,000 + 10,000 colour images of 32x32, 100 classes."""
    return _open(request, KNOWN["cifar100"]).decoded()


def mnist(request: Request) -> Source:
    """MNIST (LeCun et al. 1998): 60,000 + 10,000 grey images of 28x28, 10 handwritten digits."""
    return _open(request, KNOWN["mnist"]).decoded()


def fashion_mnist(request: Request) -> Source:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of 28x28, 10 kinds of clothes."""
    return _open(request, KNOWN["fashion_mnist"]).decoded()


#: Sources of images with a label each, of which a device may have data of its own.
IMAGES: dict[str, Callable[[Request], Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "synthetic_people": synthetic_people,
}

SOURCES: dict[str, Callable[[Request], Source]] = IMAGES | {
    "audio": audio,
    "breast_cancer": breast_cancer,
    "diabetes": diabetes,
    "docstrings": docstrings,
    "masks": masks,
    "series": series,
    "synthetic_activity": synthetic_activity,
    "synthetic_keywords": synthetic_keywords,
    "synthetic_machine_sounds": synthetic_machine_sounds,
    "synthetic_scenes": synthetic_scenes,
    "tabular": tabular,
    "text": text,
    "uci_har": uci_har,
}


#: What may stand under ``data.options``, by source; others have no options.
OPTIONS: dict[str, type[SourceOptions]] = {
    "audio": FileOptions,
    "docstrings": TokenOptions,
    "masks": MaskOptions,
    "series": SeriesOptions,
    "synthetic_activity": ActivityOptions,
    "synthetic_keywords": KeywordOptions,
    "synthetic_machine_sounds": MachineOptions,
    "synthetic_people": PeopleOptions,
    "synthetic_scenes": SceneOptions,
    "tabular": TabularOptions,
    "text": TextOptions,
}


def hugging_face(request: Request) -> Source:
    """Any other data set of labelled images: from the Hugging Face hub by name, or from ``path``."""
    return _open(request, None).decoded()


def find(name: str, path: Path | None = None, directory: Path | None = None) -> Callable[[Request], Source]:
    """Return the source that a name stands for.

    A built-in one, a plug-in's, ``"package.module:Name"`` or ``"file.py:Name"`` (relative to ``directory``).
    Any other name is one of the hub if it has the form ``"owner/name"``, and a mere label if ``path`` says
    where the data lies.

    Raises
    ------
    PluginError
        For every other name.
    """
    unknown = ":" not in name and name not in registry.names("data")
    if unknown and (path is not None or "/" in name):
        return hugging_face
    source: Callable[[Request], Source] = registry.load("data", name, directory)
    return source


@dataclass(frozen=True)
class Tables:
    """The training and test images of a source, found and chosen but not decoded.

    Attributes
    ----------
    train, test
        ``datasets.Dataset``.
    image_column, label_column
        Names of the columns.
    train_labels
        int64, by image; float32 (N,) or (N, D) where they are numbers and no classes.
    class_names, mean, std
        As in `Source`.
    form
        What images are made.
    clients
        Whose each training image is; None where nothing says so.
    lazy
        Whether images are decoded only when they are asked for, each time.
    """

    inputs: ClassVar[Inputs | None] = None
    task: ClassVar[str] = "classification"

    train: Any
    test: Any
    image_column: str
    label_column: str
    train_labels: NDArray[Any]
    class_names: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    form: Form
    clients: NDArray[Any] | None
    lazy: bool

    def decoded(self) -> Source:
        """Decode every image, or leave it to be decoded when it is asked for."""
        train: Rows
        test: Rows
        if self.lazy:
            train, test = (self.rows(split, *self.shape()) for split in (self.train, self.test))
        else:
            train, test = tables.all_pixels((self.train, self.test), self.image_column, self.form)
        return Source(
            Examples(train, self.train_labels),
            Examples(test, _labels(self.test, self.label_column, self.class_names)),
            self.class_names,
            self.mean,
            self.std,
            clients=self.clients,
        )

    def share(self, indices: Indices, shape: tuple[int, int, int], bits: int) -> Examples:
        """Decode the training images at ``indices`` alone, in that order, to images of ``shape`` and bits."""
        chosen = self.train.select(indices)
        pixels: Rows = (
            self.rows(chosen, shape, bits)
            if self.lazy
            else tables.pixels(chosen, self.image_column, shape, bits, self.form)
        )
        return Examples(pixels, self.train_labels[indices])

    def rows(self, split: Any, shape: tuple[int, int, int], bits: int) -> tables.LazyImages:
        """Return the images of a split, which are decoded when they are asked for."""
        return tables.LazyImages(split, self.image_column, shape, bits, self.form)

    def shape(self) -> tuple[tuple[int, int, int], int]:
        """Return (C, H, W) and bits of the decoded images; as few are decoded as tell it."""
        return tables.shape((self.train, self.test), self.image_column, self.form)


def open_tables(request: Request, directory: Path | None = None) -> Tables | None:
    """Return what a name stands for undecoded, or None where that source gives whole arrays alone.

    Raises
    ------
    DataError
        Where it can't be read.
    PluginError
        Where there is no data set of that name.
    """
    if find(request.name, request.path, directory) is hugging_face:
        return _open(request, None)
    known = KNOWN.get(request.name)
    return None if known is None or known.hub is None else _open(request, known)


def _open(request: Request, known: Known | None) -> Tables:
    """Open ``request.path``, or a data set of the hub: the known one, else the one of the request's name."""
    hub = usual_image = usual_label = mean = std = None
    if known is not None:
        hub, usual_image, usual_label = known.hub, known.image_column, known.label_column
        mean, std = known.mean, known.std
    train, test = tables.read(request.name, hub or request.name, request.path)
    image = tables.image_column(train, request.image_column, usual_image)
    label = tables.label_column(train, request.label_column, usual_label)
    names = () if request.numbers else tables.class_names(train, test, label)
    train = train.select(choose(np.arange(len(train)), request.train_examples, request.seed, "train"))
    test = test.select(choose(np.arange(len(test)), request.test_examples, request.seed, "test"))
    numbers = _labels(train, label, names)
    clients = None if request.client_column is None else tables.owners(train, request.client_column)
    return Tables(train, test, image, label, numbers, names, mean, std, request.form, clients, request.lazy)


def _labels(table: Any, column: str, names: tuple[str, ...]) -> NDArray[Any]:
    """Return class numbers; without classes the numbers that a column holds."""
    return tables.class_numbers(table, column, names) if names else tables.numbers(table, column)
