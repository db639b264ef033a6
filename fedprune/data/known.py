"""What is known of the built-in data sets before anything is read.

A device cannot see the data set that a scenario names. What images and classes the model takes has to
follow from the scenario alone, and for built-in names it follows from here. Not for reading: see ``sources``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """Constants of a data set.

    Attributes
    ----------
    input_shape
        (C, H, W) of every image.
    class_names
        By class number. Where the set's own names can't name folders, or differ from copy to copy, these are
        the numbers as text.
    mean, std
        Per channel, of pixels / 255.
    hub, image_column, label_column
        Where the Hugging Face hub has it, and how its columns are called there; None: it is no table.
    """

    input_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    hub: str | None = None
    image_column: str | None = None
    label_column: str | None = None


def numbered(classes: int) -> tuple[str, ...]:
    """Return the names of classes that have none: "0", "1", ..."""
    return tuple(map(str, range(classes)))


KNOWN = {
    "digits": Known((1, 8, 8), numbered(10), (0.3053,), (0.3759,)),
    "cifar10": Known(
        (3, 32, 32),
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        "uoft-cs/cifar10",
        "img",
        "label",
    ),
    # Its copies do not agree on every name.
    "cifar100": Known(
        (3, 32, 32),
        numbered(100),
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        "uoft-cs/cifar100",
        "img",
        "fine_label",
    ),
    "mnist": Known((1, 28, 28), numbered(10), (0.1307,), (0.3081,), "ylecun/mnist", "image", "label"),
    # "T - shirt / top" can't be a folder.
    "fashion_mnist": Known(
        (1, 28, 28), numbered(10), (0.2860,), (0.3530,), "zalando-datasets/fashion_mnist", "image", "label"
    ),
}
