"""What data is in fedprune: examples with targets, and who of a federation holds which of them.

Not for reading (``sources``), splitting (``partition``) or feeding a model (``batches``). Everything here is
plain NumPy arrays in frozen dataclasses, so that it can be shared between processes without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedprune.data.inputs import Inputs
from fedprune.errors import DataError

Indices = NDArray[np.int64]


class Rows(Protocol):
    """Stored inputs, row by row: an array, or what makes its rows when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a value."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, chosen: Any, /) -> Any:
        """Return the rows at ``chosen``, int64 (n,), as an array."""


@dataclass(frozen=True)
class ChosenRows:
    """Some rows of others, read when they are asked for.

    Attributes
    ----------
    rows
        The others.
    places
        int64 (n,): which of them.
    """

    rows: Rows
    places: Indices

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...)."""
        return (len(self.places), *self.rows.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a value."""
        return self.rows.dtype

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, chosen: Indices) -> NDArray[Any]:
        """Return the rows at ``chosen``, of these."""
        made: NDArray[Any] = self.rows[self.places[chosen]]
        return made


@dataclass(frozen=True)
class Examples:
    """Examples, as they are stored: row n of ``inputs`` belongs to row n of ``targets``.

    Attributes
    ----------
    inputs
        (N, ...): pixels, uint8 (N, C, H, W); measured values, float32; tokens, integers (N, L); or what else
        the data set's `fedprune.data.inputs.Inputs` make a model's input of. An array, but of a data set that
        is read lazily or has shifted clients: then `Rows`.
    targets
        (N, ...): class numbers, int64 (N,), or what else the task learns, see `fedprune.tasks.Task`.
    """

    inputs: Any
    targets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.targets)

    def at(self, places: Indices, targets: NDArray[Any]) -> Examples:
        """Return the examples at ``places``, with other targets; what is read lazily stays so."""
        rows = self.inputs
        return Examples(rows[places] if isinstance(rows, np.ndarray) else ChosenRows(rows, places), targets)


@dataclass(frozen=True)
class DataInfo:
    """What a model and a batch need to know of a data set.

    Attributes
    ----------
    name
        The data set's, as in the scenario.
    inputs
        How what is stored becomes a model's input.
    class_names
        By class number; () where targets are no classes.
    task
        The task that the data set is usually for, by its name.
    label_counts
        How many training examples there are of each class; () where not known, as on a device.
    """

    name: str
    inputs: Inputs
    class_names: tuple[str, ...] = ()
    task: str = "classification"
    label_counts: tuple[int, ...] = field(default=(), compare=False)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input of a model, such as (C, H, W)."""
        return self.inputs.shape

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of images.

        Raises
        ------
        DataError
            Where inputs are something else.
        """
        if len(self.input_shape) != 3:
            raise DataError(f"data set {self.name!r} has inputs of shape {self.input_shape}, and no images")
        channels, height, width = self.input_shape
        return channels, height, width

    @property
    def classes(self) -> int:
        """Number of classes; 0 where targets are no classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class Shares:
    """A division of indices over clients: client ``k`` has ``indices[offsets[k] : offsets[k + 1]]``.

    ``indices`` is int64 (total,), ascending within each client; ``offsets`` is int64 (clients + 1,).
    """

    indices: Indices
    offsets: Indices

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, client: int) -> Indices:
        """Return the indices of one client, a view; ``IndexError`` where there is no such client."""
        if not 0 <= client < len(self):
            raise IndexError(f"client {client}: there are clients 0 to {len(self) - 1}")
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    @property
    def sizes(self) -> Indices:
        """Number of examples of each client, int64 (clients,)."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class ClientData:
    """What one client holds: its ``train`` and ``test`` indices into ``examples``, which all share."""

    examples: Examples
    train: Indices
    test: Indices


class LocalData(Protocol):
    """What clients at work in one process need of data: what examples there are, and each client's own.

    `FederatedData` in a simulation; on a device, data that holds or decodes no other client's examples.
    """

    @property
    def info(self) -> DataInfo:
        """What a model and a batch need to know of the examples."""

    def client(self, number: int) -> ClientData:
        """Return the data of client ``number``, from 0; ``IndexError`` where it is not held here."""


class Shift(Protocol):
    """What makes clients' inputs differ, see `fedprune.data.client_shift.ClientShift`."""

    def of(self, number: int, inputs: Rows) -> Rows:
        """Return inputs as client ``number`` stores them."""


@dataclass(frozen=True)
class FederatedData:
    """A data set and its division.

    ``server``, ``client_train`` and ``client_test`` hold indices into ``train``, no index twice.
    ``test`` is the server's, to evaluate the global model on. ``shift`` makes clients' inputs differ.
    """

    info: DataInfo
    train: Examples
    test: Examples
    server: Indices
    client_train: Shares
    client_test: Shares
    shift: Shift | None = None

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.client_train)

    def client(self, number: int) -> ClientData:
        """Return the data of client ``number``, from 0, without a copy."""
        train, test = self.client_train.of(number), self.client_test.of(number)
        if self.shift is None:
            return ClientData(self.train, train, test)
        shifted = Examples(self.shift.of(number, self.train.inputs), self.train.targets)
        return ClientData(shifted, train, test)
