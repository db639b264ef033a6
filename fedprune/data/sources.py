"""Where pictures come from: scikit-learn's digits, the Hugging Face hub, local files.

A source is a function of a ``Request`` to a ``Source``; a user's own is found like a built-in one. Not for
dividing data over clients. What only the extra ``fedprune[sim]`` installs is imported inside functions: a
device has none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedprune import registry
from fedprune.data import tables
from fedprune.data.partition import choose, split_without_test
from fedprune.data.pictures import Pictures


@dataclass(frozen=True)
class Request:
    """What a scenario asks a source for.

    Attributes
    ----------
    name
        The data set's name, as in the scenario.
    path
        A local file or folder, absolute, to read in place of the hub.
    seed
        The scenario's seed, for choosing among the pictures.
    train_examples, test_examples
        How many to choose; None for all. A source reads no more pictures than it must.
    image_column, label_column
        Names of the columns, where the scenario gives them.
    """

    name: str
    path: Path | None = None
    seed: int = 0
    train_examples: int | None = None
    test_examples: int | None = None
    image_column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True)
class Source:
    """What a source returns: all labels are below ``len(class_names)``.

    ``mean`` and ``std`` are per channel, of pixels / 255, or None where they are not known.
    """

    train: Pictures
    test: Pictures
    class_names: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def digits(request: Request) -> Source:
    """Handwritten digits of scikit-learn: 1,497 + 300 grey pictures of 8x8, 10 digits; needs no download."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise tables.missing_extra("digits", "scikit-learn") from error
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    train, test = split_without_test(len(labels))
    train = choose(train, request.train_examples, request.seed, "train")
    test = choose(test, request.test_examples, request.seed, "test")
    return Source(
        train=Pictures(pixels[train], labels[train]),
        test=Pictures(pixels[test], labels[test]),
        class_names=tuple(map(str, bunch.target_names)),
        mean=(0.3053,),
        std=(0.3759,),
    )


def cifar10(request: Request) -> Source:
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour pictures of 32x32, 10 classes."""
    return _tables(
        request, "uoft-cs/cifar10", "img", "label", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    )


def cifar100(request: Request) -> Source:
    """CIFAR-100 (Krizhevsky 2009), fine labels: 50,000 + 10,000 colour pictures of 32x32, 100 classes."""
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return _tables(request, "uoft-cs/cifar100", "img", "fine_label", mean, std)


def mnist(request: Request) -> Source:
    """MNIST (LeCun et al. 1998): 60,000 + 10,000 grey pictures of 28x28, 10 handwritten digits."""
    return _tables(request, "ylecun/mnist", "image", "label", (0.1307,), (0.3081,))


def fashion_mnist(request: Request) -> Source:
    """Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey pictures of 28x28, 10 kinds of clothes."""
    return _tables(request, "zalando-datasets/fashion_mnist", "image", "label", (0.2860,), (0.3530,))


SOURCES: dict[str, Callable[[Request], Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
}


def hugging_face(request: Request) -> Source:
    """Any other data set of labelled pictures: from the Hugging Face hub by name, or from ``path``."""
    return _tables(request, request.name, None, None, None, None)


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


def _tables(
    request: Request,
    hub_name: str,
    image_column: str | None,
    label_column: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Source:
    """Return what is asked for from ``request.path``, or from the hub under ``hub_name``."""
    train, test = tables.read(request.name, hub_name, request.path)
    image = tables.image_column(train, request.image_column, image_column)
    label = tables.label_column(train, request.label_column, label_column)
    names = tables.class_names(train, label)
    train = train.select(choose(np.arange(len(train)), request.train_examples, request.seed, "train"))
    test = test.select(choose(np.arange(len(test)), request.test_examples, request.seed, "test"))
    train_pixels, test_pixels = tables.same_shape(tables.pixels(train, image), tables.pixels(test, image))
    return Source(
        train=Pictures(train_pixels, tables.labels(train, label, names)),
        test=Pictures(test_pixels, tables.labels(test, label, names)),
        class_names=names,
        mean=mean,
        std=std,
    )
