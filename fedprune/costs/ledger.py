"""The ledger: what every message and every round cost, as plain records.

A strategy writes one ``TaskRecord`` for each message that it sent to a client and one
``RoundRecord`` for each round. Listeners turn them into files, a progress bar or a table; the
fields are those of ``clients.jsonl`` and ``rounds.jsonl``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

#: The value of each of a task's metrics, by name; None where it is not known.
Scores = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """One message to one client and its reply: a line of ``clients.jsonl``.

    A task that the server did not wait for counts as far as it had come.

    Attributes
    ----------
    round
        The round, from 1; 0 for what came before training.
    type
        The message's type: ``train``, ``evaluate``, or ``query.`` and what was asked.
    client
        The client's number, from 0; null for a node that was refused before it gave one.
    device
        The name of its device's profile; "unknown" for such a node.
    examples
        Examples that the client trained or was tested on, as its reply says; 0 without a reply.
    scores
        The task's metrics, by name, on what the client holds out: of an ``evaluate`` task those of the model
        it was sent, of a ``train`` task those of its own model after training; null for others, and where
        nothing is held out. In the file each is a column of its name, such as ``accuracy``.
    bytes_down, bytes_up
        Bytes of the message and of the reply, as serialized.
    mask_bytes_down, mask_bytes_up
        Of these, the bytes of masks.
    flops
        Floating-point operations, by the cost model.
    peak_memory_bytes
        Peak memory, by the cost model.
    device_seconds
        Virtual time: transfer and computing at the rates of the device's profile.
    joules
        Energy; null where the device's energy is unknown.
    wall_seconds
        Seconds on the server's clock from the message to its reply.
    server_flops
        What the server computed for the client while it trained (split training), by the cost model.
    smashed_bytes_down, smashed_bytes_up
        Of the bytes to and from the client, those of activations and gradients that went to and fro.
    smashed_error
        What rounding took from what the client sent of these, relative, in the Euclidean norm; null where
        nothing went to and fro.
    measured_seconds
        Seconds that a real device computed; null in a simulation.
    measured_memory_bytes
        The most memory that a real device's process held, interpreter and libraries included; null in a
        simulation.
    status
        ``ok``, ``failed``, or ``surplus`` for a good reply that was not needed.
    fault
        The kind of fault of a failed task, see `fedprune.protocol.faults.Fault`; null for others.
    reason
        The fault in one line; null for others.
    """

    round: int
    type: str
    client: int | None
    device: str
    examples: int
    scores: Scores
    bytes_down: int
    bytes_up: int
    mask_bytes_down: int
    mask_bytes_up: int
    flops: int
    peak_memory_bytes: int
    device_seconds: float
    joules: float | None
    wall_seconds: float
    server_flops: int = 0
    smashed_bytes_down: int = 0
    smashed_bytes_up: int = 0
    smashed_error: float | None = None
    measured_seconds: float | None = None
    measured_memory_bytes: int | None = None
    status: str
    fault: str | None
    reason: str | None

    def columns(self) -> dict[str, Any]:
        """Return the record as a line of ``clients.jsonl`` has it."""
        return _with_columns(self, {"scores": ""})


#: Classes of devices that a round is broken down by; a trace may give every client its own.
MOST_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class ClassRecord:
    """One round of the clients that have one kind of device: a value of ``classes`` in ``rounds.jsonl``.

    Attributes
    ----------
    clients
        All clients of the class.
    asked
        Clients that were asked to train in this round.
    ok
        Of those asked, clients whose reply counted.
    late
        Of those asked, clients whose reply came after the deadline.
    surplus
        Of those asked, clients whose reply was not needed.
    failed
        Of those asked, clients that failed otherwise.
    excluded
        Clients without the memory, or the examples, to train.
    offline
        Clients that were not there.
    scores
        The global model's metrics, by name, on what the class's clients hold out; null where not measured. In
        the file each is a column of its name.
    bytes_down, bytes_up
        Bytes to and from the class's clients, of all their tasks.
    flops
        Floating-point operations of all their tasks.
    peak_memory_bytes
        The largest peak memory of their tasks.
    device_seconds
        Virtual time of the slowest of them.
    joules
        Energy of all their tasks; null where that of any is unknown.
    """

    clients: int
    asked: int
    ok: int
    late: int
    surplus: int
    failed: int
    excluded: int
    offline: int
    scores: Scores
    bytes_down: int
    bytes_up: int
    flops: int
    peak_memory_bytes: int
    device_seconds: float
    joules: float | None

    def columns(self) -> dict[str, Any]:
        """Return the record as ``rounds.jsonl`` has it."""
        return _with_columns(self, {"scores": ""})


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One round: a line of ``rounds.jsonl``.

    Attributes
    ----------
    round
        The round, from 1; 0 is what came before training.
    scores
        The global model's metrics, by name, on the server's test data; null in a round without evaluation. In
        the file each is a column of its name, such as ``accuracy``.
    loss
        Its mean loss there; null in a round without evaluation.
    train_loss
        The clients' mean training loss, weighted by examples.
    client_scores
        The global model's metrics on what the round's clients hold out, of all these examples together; null
        where they were not asked for or nothing is held out. Columns such as ``client_accuracy``.
    personal_scores
        Those of each client's own model after its local training, on what the client holds out, of all these
        examples together; null where nothing is held out. Columns such as ``personal_accuracy``.
    density
        Kept share of the prunable weights, in (0, 1].
    layer_densities
        The same for each pruned tensor, by its name.
    bytes_down, bytes_up
        Bytes of all messages to clients and of all replies, as serialized.
    flops
        Floating-point operations of all clients, by the cost model.
    peak_memory_bytes
        The largest peak memory of a client, by the cost model.
    device_seconds
        The round's virtual time: that of its slowest client in each exchange, or the deadline.
    joules
        Energy of all clients; null where that of any task is unknown.
    wall_seconds
        Seconds on the clock.
    server_flops
        What the server computed for clients while they trained (split training), by the cost model.
    smashed_bytes_down, smashed_bytes_up
        Of the bytes to and from clients, those of activations and gradients that went to and fro.
    clients_ok
        Tasks whose reply counted.
    clients_failed
        Tasks that failed.
    clients_surplus
        Good replies that were not needed.
    clients_excluded
        Clients without the memory, or the examples, to train.
    clients_offline
        Clients that were not there.
    faults
        Failed tasks by kind of fault, see `fedprune.protocol.faults.Fault`.
    classes
        The same by class of device, see `ClassRecord`; empty where there are more than `MOST_CLASSES`.
    """

    round: int
    scores: Scores
    loss: float | None
    train_loss: float | None
    client_scores: Scores
    personal_scores: Scores
    density: float
    layer_densities: dict[str, float]
    bytes_down: int
    bytes_up: int
    flops: int
    peak_memory_bytes: int
    device_seconds: float
    joules: float | None
    wall_seconds: float
    server_flops: int = 0
    smashed_bytes_down: int = 0
    smashed_bytes_up: int = 0
    clients_ok: int
    clients_failed: int
    clients_surplus: int
    clients_excluded: int
    clients_offline: int
    faults: dict[str, int]
    classes: dict[str, ClassRecord]

    def columns(self) -> dict[str, Any]:
        """Return the record as a line of ``rounds.jsonl`` has it."""
        prefixes = {"scores": "", "client_scores": "client_", "personal_scores": "personal_"}
        found = _with_columns(self, prefixes)
        return found | {"classes": {name: of.columns() for name, of in self.classes.items()}}


def _with_columns(record: Any, prefixes: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a record in their order, scores as a column each with a prefix to their names."""
    columns: dict[str, Any] = {}
    for field, value in vars(record).items():
        if field in prefixes:
            columns |= {f"{prefixes[field]}{name}": score for name, score in value.items()}
        else:
            columns[field] = value
    return columns


class Listener(Protocol):
    """Is told of every task and round as it ends."""

    def on_task(self, task: TaskRecord) -> None:
        """Hear of one ended task."""

    def on_round(self, round: RoundRecord) -> None:
        """Hear of one ended round; round 0 is what came before training."""


class Tally:
    """A running total of tasks: sums of bytes, FLOPs and energy, the largest peak, virtual time.

    The energy is None as soon as that of one task is unknown.

    Tasks of one phase (the answers to messages that were sent together) run side by side, so a
    phase lasts as long as its slowest task; phases follow one another.
    """

    def __init__(self) -> None:
        self.bytes_down = 0
        self.bytes_up = 0
        self.flops = 0
        self.peak_memory_bytes = 0
        self.device_seconds = 0.0
        self.joules: float | None = 0.0
        self.server_flops = self.smashed_bytes_down = self.smashed_bytes_up = 0
        self._phase_seconds = 0.0

    @classmethod
    def of(cls, totals: Mapping[str, float]) -> Tally:
        """Return the tally with these totals, as ``totals`` gives them, between two phases."""
        tally = cls()
        for name in tally.totals():
            setattr(tally, name, totals[name])
        return tally

    def add(
        self,
        *,
        bytes_down: int,
        bytes_up: int,
        flops: int,
        peak_memory_bytes: int,
        device_seconds: float,
        joules: float | None = None,
    ) -> None:
        """Add one task of the current phase."""
        self.bytes_down += bytes_down
        self.bytes_up += bytes_up
        self.flops += flops
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory_bytes)
        self.joules = None if self.joules is None or joules is None else self.joules + joules
        self._phase_seconds = max(self._phase_seconds, device_seconds)

    def add_task(self, task: TaskRecord) -> None:
        """Add a task of the current phase, as the ledger has it."""
        self.add(
            bytes_down=task.bytes_down,
            bytes_up=task.bytes_up,
            flops=task.flops,
            peak_memory_bytes=task.peak_memory_bytes,
            device_seconds=task.device_seconds,
            joules=task.joules,
        )
        self.server_flops += task.server_flops
        self.smashed_bytes_down += task.smashed_bytes_down
        self.smashed_bytes_up += task.smashed_bytes_up

    def end_phase(self) -> None:
        """Let the current phase's time pass."""
        self.device_seconds += self._phase_seconds
        self._phase_seconds = 0.0

    def totals(self) -> dict[str, float]:
        """Return the totals by the names that the results use."""
        return {
            "bytes_down": self.bytes_down,
            "bytes_up": self.bytes_up,
            "flops": self.flops,
            "peak_memory_bytes": self.peak_memory_bytes,
            "device_seconds": self.device_seconds,
        }
