"""Data for a federation: pictures from somewhere, divided over a server and clients, and served in batches.

What the rest of fedprune uses is here; a source of a user's own needs ``Request``, ``Source`` and
``Pictures``.
"""

from fedprune.data.batches import AUGMENTATIONS, batches, parts
from fedprune.data.federated import declared, describe, load, open_shares
from fedprune.data.own import load_own
from fedprune.data.pictures import ClientData, DataInfo, FederatedData, LocalData, Pictures, Shares
from fedprune.data.sources import SOURCES, Request, Source

__all__ = [
    "AUGMENTATIONS",
    "SOURCES",
    "ClientData",
    "DataInfo",
    "FederatedData",
    "LocalData",
    "Pictures",
    "Request",
    "Shares",
    "Source",
    "batches",
    "declared",
    "describe",
    "load",
    "load_own",
    "open_shares",
    "parts",
]
