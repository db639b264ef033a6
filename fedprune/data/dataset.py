"""What data is in fedprune: labelled images, and who of a federation holds which of them.

Not for reading (``sources``), splitting (``partition``) or feeding a model (``batches``). Everything here is
plain NumPy arrays in frozen dataclasses, so that it can be shared between processes without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """Labelled images: ``pixels`` uint8 (N, C, H, W) and ``labels`` int64 (N,)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataInfo:
    """What a model and a batch need to know of a data set.

    ``input_shape`` is (C, H, W) of an image; ``mean`` and ``std`` are per channel, of pixels / 255.
    """

    name: str
    input_shape: tuple[int, int, int]
    classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


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
    """What one client holds: its ``train`` and ``test`` indices into ``images``, which all share."""

    images: Images
    train: Indices
    test: Indices


class LocalData(Protocol):
    """What clients at work in one process need of data: what images there are, and each client's own.

    `FederatedData` in a simulation; on a device, data that holds or decodes no other client's images.
    """

    @property
    def info(self) -> DataInfo:
        """What a model and a batch need to know of the images."""

    def client(self, number: int) -> ClientData:
        """Return the data of client ``number``, from 0; ``IndexError`` where it is not held here."""


@dataclass(frozen=True)
class FederatedData:
    """A data set and its division.

    ``server``, ``client_train`` and ``client_test`` hold indices into ``train``, no index twice.
    ``test`` is the server's, to evaluate the global model on.
    """

    info: DataInfo
    train: Images
    test: Images
    server: Indices
    client_train: Shares
    client_test: Shares

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.client_train)

    def client(self, number: int) -> ClientData:
        """Return the data of client ``number``, from 0, without a copy."""
        return ClientData(self.train, self.client_train.of(number), self.client_test.of(number))
