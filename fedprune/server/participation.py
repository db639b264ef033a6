"""How a round's clients fared, by device class: who took part, who could not, and what it cost them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from flwr.app import MessageType

from fedprune.costs.ledger import MOST_CLASSES, ClassRecord, Tally, TaskRecord
from fedprune.protocol.faults import Fault


class Participation:
    """The participation of one round's clients.

    Parameters
    ----------
    members : Mapping[str, int]
        Number of clients by the name of their device. Where there are more than `MOST_CLASSES` names,
        the round's record has totals alone.
    """

    def __init__(self, members: Mapping[str, int]) -> None:
        self._members = members
        self._of_class: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self._right: defaultdict[str, float] = defaultdict(float)
        self.total = Counter[str]()

    def note(self, device: str, what: str, count: int = 1) -> None:
        """Count clients of a class: "offline", "excluded"."""
        self.total[what] += count
        self._of_class[device][what] += count

    def note_task(self, task: TaskRecord) -> None:
        """Count a task that has ended."""
        self._tallies[task.device].add_task(task)
        if task.type == MessageType.TRAIN:
            self.note(task.device, "asked")
            self.note(task.device, "late" if task.fault == Fault.LATE else task.status)

    def note_score(self, device: str, examples: int, accuracy: float) -> None:
        """Count the global model's accuracy on what a client holds out."""
        self._of_class[device]["examples"] += examples
        self._right[device] += examples * accuracy

    def end_phase(self) -> None:
        """Let the current phase's time pass, in every class."""
        for tally in self._tallies.values():
            tally.end_phase()

    def records(self) -> dict[str, ClassRecord]:
        """Return the record of each class, in the order of their names; {} where there are too many."""
        if len(self._members) > MOST_CLASSES:
            return {}
        return {device: self._record(device) for device in sorted(self._members)}

    def _record(self, device: str) -> ClassRecord:
        counts, tally = self._of_class[device], self._tallies[device]
        examples = counts["examples"]
        return ClassRecord(
            clients=self._members[device],
            asked=counts["asked"],
            ok=counts["ok"],
            late=counts["late"],
            surplus=counts["surplus"],
            failed=counts["failed"],
            excluded=counts["excluded"],
            offline=counts["offline"],
            accuracy=self._right[device] / examples if examples else None,
            bytes_down=tally.bytes_down,
            bytes_up=tally.bytes_up,
            flops=tally.flops,
            peak_memory_bytes=tally.peak_memory_bytes,
            device_seconds=tally.device_seconds,
            joules=tally.joules,
        )
