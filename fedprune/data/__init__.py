"""Data for a federation: images from somewhere, divided over a server and clients, and served in batches.

What the rest of fedprune uses is here; a user's source needs ``Request``, ``Source`` and
``Examples``.
"""

from fedprune.data.augmentation import AUGMENTATIONS, augmentations
from fedprune.data.batches import batches, parts
from fedprune.data.dataset import ClientData, DataInfo, Examples, FederatedData, LocalData, Rows, Shares
from fedprune.data.federated import at_hand, declared, describe, info_of, load, open_shares, read, read_key
from fedprune.data.own import load_own
from fedprune.data.source import Request, Source, SourceOptions
from fedprune.data.sources import SOURCES

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "ClientData",
    "DataInfo",
    "Examples",
    "FederatedData",
    "LocalData",
    "Request",
    "Rows",
    "Shares",
    "Source",
    "SourceOptions",
    "at_hand",
    "augmentations",
    "batches",
    "declared",
    "describe",
    "info_of",
    "load",
    "load_own",
    "open_shares",
    "parts",
    "read",
    "read_key",
]
