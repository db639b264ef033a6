"""Faults on purpose: a client app that fails as the scenario's ``faults`` say, to try how a run bears it.

`FaultyClientApp` stands around a scenario's client app in the workers of a simulation, so what goes wrong
really does: bytes are flipped, the process sleeps or is killed. Which task has which fault is a function of
the scenario, the round and the client. Only messages of type ``train`` have any: not the questions before
round 1, nor evaluation.
"""

from __future__ import annotations

import math
import os
import signal
import time

import numpy as np
from flwr.app import Array, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fedprune import seeds
from fedprune.protocol.faults import CODES, Fault
from fedprune.protocol.messages import config_of, whole
from fedprune.scenario import FaultName, Scenario
from fedprune.wire import add_checksum
from fedprune.wire.values import MASK, VALUES, to_array

#: What results count each injected fault as.
COUNTED_AS: dict[FaultName, Fault] = {
    "exception": Fault.RAISED,
    "hang": Fault.NO_REPLY,
    "late": Fault.LATE,
    "corrupt": Fault.UNREADABLE,
    "not_finite": Fault.NOT_FINITE,
    "wrong_shape": Fault.WRONG_SHAPE,
    "huge": Fault.TOO_LARGE,
    "kill_worker": Fault.WORKER_DIED,
}


def injected(scenario: Scenario, server_round: int, client: int) -> FaultName | None:
    """Return the fault that a client's training task of a round has; None: none."""
    for each in scenario.faults.at:
        if (each.round, each.client) == (server_round, client):
            return each.fault
    chance = seeds.numpy_generator(scenario.seed, "fault", server_round, client).random()
    for fault, share in scenario.faults.shares.items():
        if chance < share:
            return fault
        chance -= share
    return None


class FaultyClientApp(ClientApp):
    """Flower's ``ClientApp`` around another one, which it makes fail.

    Parameters
    ----------
    app : ClientApp
        What answers the messages.
    scenario : Scenario
        Says which task has which fault.
    largest_reply : int
        Bytes of the largest reply that is taken.
    """

    def __init__(self, app: ClientApp, scenario: Scenario, largest_reply: int) -> None:
        super().__init__()
        self._app, self._scenario, self._largest = app, scenario, largest_reply

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message, or fail.

        A fault of the reply leaves the client as a good one would: it has trained, and keeps what it
        keeps. An error reply of its own stays as it is, unless it is late.
        """
        if message.metadata.message_type != MessageType.TRAIN:
            return self._app(message, context)
        server_round = whole(config_of(message.content), "round")
        client = int(context.node_config["partition-id"])
        fault = injected(self._scenario, server_round, client)
        match fault:
            case "exception":
                raise RuntimeError("the client's code failed (injected)")
            case "hang":
                while True:
                    time.sleep(3600)
            case "kill_worker":
                os.kill(os.getpid(), signal.SIGKILL)
        reply = self._app(message, context)
        if fault == "late":
            return Message(Error(CODES[Fault.LATE], "the reply came too late (injected)"), reply_to=message)
        if fault is None or reply.has_error():
            return reply
        arrays = reply.content.array_records["arrays"]
        match fault:
            case "corrupt":
                generator = seeds.numpy_generator(self._scenario.seed, "corrupt", server_round, client)
                arrays[VALUES] = damaged(arrays[VALUES], generator)
                return reply
            case "not_finite":
                put_not_finite(reply.content)
            case "wrong_shape":
                values = arrays[VALUES].numpy()
                arrays[VALUES] = to_array(np.stack([values, values]))
            case "huge":
                arrays[VALUES] = to_array(np.zeros(self._largest + 1, dtype=np.uint8))
        add_checksum(reply.content)  # This is what the client sent; nothing happened to it on the way.
        return reply


def damaged(array: Array, generator: np.random.Generator) -> Array:
    """Return an array whose bytes end early or, as likely, with one bit flipped; finite values stay so."""
    data, place = bytearray(array.data), int(generator.integers(len(array.data)))
    if generator.random() < 0.5:
        del data[place:]
    else:
        data[place] ^= 1  # Of a float's last byte this is the exponent's second bit, or one behind it.
    return Array(array.dtype, array.shape, array.stype, bytes(data))


def put_not_finite(content: RecordDict) -> None:
    """Make the loss of a reply, and values at the end of its arrays, not finite."""
    metrics, arrays = content.metric_records["metrics"], content.array_records["arrays"]
    metrics["loss"] = math.nan
    last = [name for name in arrays if name != MASK][-1]  # Of int8 values, their scales.
    array = arrays[last]
    # All ones are not a number in every format of floats that travels.
    data = array.data[:-4] + b"\xff" * 4
    arrays[last] = Array(array.dtype, array.shape, array.stype, data)
