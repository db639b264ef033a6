"""Flower's ``ClientApp``: finds the client of a message; whatever goes wrong becomes an error reply."""

from __future__ import annotations

import math
from collections.abc import Callable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedprune.client.node_config import client_number
from fedprune.client.site import Site
from fedprune.errors import (
    DivergedError,
    NotFiniteError,
    TaskRefusedError,
)
from fedprune.protocol.faults import CODES
from fedprune.wire import (
    add_checksum,
)


class FederatedClientApp(ClientApp):
    """Flower's ``ClientApp`` for a scenario: finds the client that a message is for.

    Parameters
    ----------
    find_site : Callable[[Context], Site]
        Returns the site of a context; called for every message, so it should remember.
    peak_memory : Callable[[], float], optional
        Returns the most memory in bytes that a device has needed so far, where a device is what it runs on.
    """

    def __init__(
        self, find_site: Callable[[Context], Site], peak_memory: Callable[[], float] | None = None
    ) -> None:
        super().__init__()
        self._find_site = find_site
        self._peak_memory = peak_memory

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; whatever goes wrong becomes an error reply with its reason."""
        try:
            site = self._find_site(context)
            client = site.client_class(site, client_number(context.node_config))
            content = client.handle(message, context.state)
            self._measure(content)
            _check_finite(content)
            add_checksum(content)
        except (TaskRefusedError, NotFiniteError) as error:  # The latter of what it trained.
            return Message(Error(CODES[error.fault], str(error)), reply_to=message)
        except (Exception, SystemExit) as error:
            first = (str(error).strip().splitlines() or [""])[0]
            reason = f"{type(error).__name__}: {first}" if first else type(error).__name__
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
        return Message(content, reply_to=message)

    def _measure(self, content: RecordDict) -> None:
        """Add the memory that a device's process has needed; 0, which takes as many bytes, for no device."""
        if (metrics := content.metric_records.get("metrics")) is not None:
            metrics["peak-rss"] = 0.0 if self._peak_memory is None else self._peak_memory()


def _check_finite(content: RecordDict) -> None:
    """Training can diverge; say so on the device rather than send it."""
    for record in content.metric_records.values():
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise DivergedError(f"{name} is {value}: training diverged")
