"""What every client shares on a device: messages in, local training, messages out.

The author of a client subclasses `Client` and writes ``fit``; the rest is internal.
"""

from fedprune.client.base import Client, ClientTask, FitResult

__all__ = ["Client", "ClientTask", "FitResult"]
