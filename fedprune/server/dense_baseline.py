"""The dense baseline: what the same tasks would have cost under dense FedAvg.

It is computed from the cost model and from the size of a dense message, without a dense run.
"""

from __future__ import annotations

from functools import cached_property

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from torch import zeros

from fedprune.costs.clock import done_by, task_seconds
from fedprune.costs.devices import DeviceProfile
from fedprune.costs.flops import ModelCost
from fedprune.costs.ledger import Tally, TaskRecord
from fedprune.costs.memory import forward_memory, optimizer_slots, step_memory
from fedprune.protocol.faults import Fault
from fedprune.protocol.messages import whole
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.wire import CODEC, Layout, StateCodec, content_bytes


class DenseBaseline:
    """The ledger of a dense FedAvg run in which the same clients do the same work.

    Parameters
    ----------
    scenario : Scenario
        What is run.
    layout : Layout
        The model's state on the wire.
    cost : ModelCost
        The model's cost model.
    """

    def __init__(self, scenario: Scenario, layout: Layout, cost: ModelCost) -> None:
        self.tally = Tally()
        #: Its totals up to the last round that ended.
        self.totals = self.tally.totals()
        self._scenario = scenario
        self._cost = cost
        self._codec = StateCodec(layout, Masks(), scenario.wire.values)

    def end_round(self) -> None:
        """Note the totals as a round ends."""
        self.totals = self.tally.totals()

    def restore(self, tally: Tally) -> None:
        """Go on from the tally of a checkpoint."""
        self.tally = tally
        self.end_round()

    def add(
        self, task: TaskRecord, profile: DeviceProfile, examples: int, reply: Message, end: float | None
    ) -> None:
        """Add what a task would have cost; FedAvg asks nothing but who a client is.

        Parameters
        ----------
        task : TaskRecord
            The task.
        profile : DeviceProfile
            The client's device.
        examples : int
            Those that the client holds.
        reply : Message
            Its reply. A task that failed costs what was sent, and what was replied.
        end : float, optional
            When, in seconds of the phase, the server stopped to wait for it: so far it counts.
        """
        down, up, flops, peak = task.bytes_down, task.bytes_up, task.flops, task.peak_memory_bytes
        if task.type in (MessageType.TRAIN, MessageType.EVALUATE):
            trains = task.type == MessageType.TRAIN
            config = ConfigRecord({"round": task.round, "mask-version": "", "codec": CODEC})
            down = content_bytes(RecordDict({"arrays": self._arrays, "config": config}))
            if reply.has_content() and (task.fault is None or task.fault == Fault.LATE):
                metrics = reply.content.metric_records["metrics"]
                flops, peak = self._training(examples, metrics) if trains else self._evaluation(metrics)
                replied = MetricRecord({**metrics, "flops": flops, "peak-memory-bytes": peak})
                content = RecordDict({"metrics": replied})
                if trains:
                    content["arrays"] = self._arrays
                up = content_bytes(content)
        elif task.type != "query.facts":
            return
        seconds = task_seconds(profile, down, flops, up)
        if end is not None:
            down, flops, up = done_by(profile, down, flops, up, end)
            # Who is silent keeps the server waiting; another task may have been through before the end.
            seconds = task.device_seconds if reply.has_error() else min(seconds, end)
        self.tally.add(
            bytes_down=down,
            bytes_up=up,
            flops=flops,
            peak_memory_bytes=peak,
            device_seconds=seconds,
        )

    def _training(self, examples: int, metrics: MetricRecord) -> tuple[int, int]:
        spec = self._scenario.clients.training
        slots = optimizer_slots(spec.optimizer.name, spec.optimizer.momentum) + int(spec.proximal_mu > 0)
        memory = step_memory(self._cost, Masks(), min(spec.batch_size, examples), slots=slots)
        return self._cost.training_flops(Masks(), whole(metrics, "examples-seen")), memory.total

    def _evaluation(self, metrics: MetricRecord) -> tuple[int, int]:
        examples = whole(metrics, "num-examples")
        batch = min(self._scenario.evaluation.batch_size, max(examples, 1))
        memory = forward_memory(self._cost, Masks(), batch)
        return self._cost.forward_flops(Masks(), examples), memory.total

    @cached_property
    def _arrays(self) -> ArrayRecord:
        """A dense state as it travels; only its size counts."""
        return self._codec.encode(zeros(self._codec.size))
