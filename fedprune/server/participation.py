"""How a round's clients fared, by device class: who took part, who could not, and what it cost them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from flwr.app import MessageType

from fedprune.costs.ledger import MOST_CLASSES, ClassRecord, Tally, TaskRecord
from fedprune.protocol.faults import Fault
from fedprune.tasks import Metric, Score, combine


class Participation:
    """The participation of one round's clients.

    Parameters
    ----------
    members : Mapping[str, int]
        Number of clients by the name of their device. Where there are more than `MOST_CLASSES` names,
        the round's record has totals alone.
    metrics : Sequence[Metric]
        What the global model is judged by.
    """

    def __init__(self, members: Mapping[str, int], metrics: Sequence[Metric]) -> None:
        self._members = members
        self._metrics = metrics
        self._of_class: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self._scores: defaultdict[str, list[Score]] = defaultdict(list)
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

    def note_score(self, device: str, score: Score) -> None:
        """Note how well the global model does on what a client holds out."""
        self._scores[device].append(score)

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
        return ClassRecord(
            clients=self._members[device],
            asked=counts["asked"],
            ok=counts["ok"],
            late=counts["late"],
            surplus=counts["surplus"],
            failed=counts["failed"],
            excluded=counts["excluded"],
            offline=counts["offline"],
            scores=combine(self._scores[device]).values(self._metrics),
            bytes_down=tally.bytes_down,
            bytes_up=tally.bytes_up,
            flops=tally.flops,
            peak_memory_bytes=tally.peak_memory_bytes,
            device_seconds=tally.device_seconds,
            joules=tally.joules,
        )
