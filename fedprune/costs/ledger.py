"""The ledger: what every message and every round cost, as plain records.

A strategy writes one ``TaskRecord`` for each message that it sent to a client and one
``RoundRecord`` for each round. What becomes of them (files, a progress bar, a table) is for
whoever listens; the fields are those of ``clients.jsonl`` and ``rounds.jsonl``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypedDict


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """One message to one client and its reply: a line of ``clients.jsonl``.

    ``client`` is None, and ``device`` "unknown", for a node that was refused before it said who it is.

    ``status`` is "ok", "failed", or "surplus" for a good reply that was not needed; ``fault`` is the kind
    of what failed, see `fedprune.errors.Fault`, and ``reason`` says it in one line. Bytes are serialized
    message content; ``device_seconds`` is virtual, ``wall_seconds`` is measured. ``joules`` is None where the
    device's energy is unknown. ``measured_seconds`` and ``measured_memory_bytes`` are what a real device
    took to compute, and the most memory that its process held, the interpreter and libraries included; None
    in a simulation. A task that the server did not wait for counts as far as it had come.
    """

    round: int
    type: str
    client: int | None
    device: str
    examples: int
    bytes_down: int
    bytes_up: int
    mask_bytes_down: int
    mask_bytes_up: int
    flops: int
    peak_memory_bytes: int
    device_seconds: float
    joules: float | None
    wall_seconds: float
    measured_seconds: float | None = None
    measured_memory_bytes: int | None = None
    status: str
    fault: str | None
    reason: str | None


#: Classes of devices that a round is broken down by; a trace may give every client its own.
MOST_CLASSES = 20


class ClassRecord(TypedDict):
    """One round of the clients that have one kind of device.

    ``clients`` are all of them; those ``asked`` to train in this round gave a reply that counted (``ok``),
    came after the deadline (``late``), were not needed (``surplus``) or ``failed`` otherwise; ``excluded``
    were those without the memory, ``offline`` those that were not there. ``accuracy`` is the global
    model's on what they hold out, None where it was not measured. The costs are those of all their tasks.
    """

    clients: int
    asked: int
    ok: int
    late: int
    surplus: int
    failed: int
    excluded: int
    offline: int
    accuracy: float | None
    bytes_down: int
    bytes_up: int
    flops: int
    peak_memory_bytes: int
    device_seconds: float
    joules: float | None


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One round: a line of ``rounds.jsonl``.

    ``accuracy`` and ``loss`` are those of the global model on the server's test data, None in
    a round without evaluation. ``train_loss`` is the clients' mean, weighted by examples.
    ``client_accuracy`` is the global model's on what the round's clients hold out;
    ``personal_accuracy`` is that of the model of each of them after its local training, on what it
    holds out itself. Both are weighted by examples, and None where nothing is held out; the former
    also where it is not asked for.
    ``device_seconds`` is the round's virtual time: that of its slowest client.
    ``layer_densities`` is the kept share per pruned tensor. ``faults`` counts the failed tasks by kind.
    ``joules`` is None where that of any task is unknown. ``clients_surplus`` counts good replies that
    were not needed, ``clients_excluded`` the clients without the memory, ``clients_offline`` those that
    were not there. ``classes`` has the same for each class of device, see `ClassRecord`; it is empty
    where there are more than `MOST_CLASSES`.
    """

    round: int
    accuracy: float | None
    loss: float | None
    train_loss: float | None
    client_accuracy: float | None
    personal_accuracy: float | None
    density: float
    layer_densities: dict[str, float]
    bytes_down: int
    bytes_up: int
    flops: int
    peak_memory_bytes: int
    device_seconds: float
    joules: float | None
    wall_seconds: float
    clients_ok: int
    clients_failed: int
    clients_surplus: int
    clients_excluded: int
    clients_offline: int
    faults: dict[str, int]
    classes: dict[str, ClassRecord]


class Listener(Protocol):
    """Who hears of tasks and rounds as they end."""

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
