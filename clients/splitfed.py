"""The client of SplitFed: all of its head and tail is trained with the server's body, on all its examples."""

from __future__ import annotations

from fedprune.client.split import SplitClient


class SplitFed(SplitClient):
    """A client of split training, as it stands."""
