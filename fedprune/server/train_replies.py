"""Replies to training messages: read and checked, and summed up over a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flwr.app import Message, MetricRecord

from fedprune.protocol.client_masks import MaskRequest, read_own_masks
from fedprune.protocol.messages import arrays_of, metrics_of, real, share, whole
from fedprune.protocol.reports import GrowthRequest, Report, read_growth
from fedprune.server.aggregation import TrainReply
from fedprune.server.global_model import GlobalModel
from fedprune.sparsity.masks import Masks


def read_train_reply(
    reply: Message,
    number: int,
    sent: Masks,
    model: GlobalModel,
    *,
    growth: GrowthRequest | None,
    move: MaskRequest | None,
    report: Any,
) -> TrainReply:
    """Return what a reply to a training message says.

    Parameters
    ----------
    reply : Message
        The reply.
    number : int
        The client's number.
    sent : Masks
        The masks under which it was sent values.
    model : GlobalModel
        Which knows how its trained state travels.
    growth : GrowthRequest, optional
        The candidates for growth that it was asked for.
    move : MaskRequest, optional
        How it could move its masks.
    report : Callable[[], Any]
        Reads what else the strategy asked for.

    Raises
    ------
    WireError
        For a reply that does not say all of it as it should.
    """
    metrics, arrays = metrics_of(reply.content), arrays_of(reply.content)
    candidates: Report = {}
    if growth is not None:
        candidates = read_growth(reply.content.array_records.get("growth"), growth, sent)
    codec = model.reply_codec(read_own_masks(arrays, model.layout, sent, move) or sent)
    held_out, accuracy = _read_held_out(metrics)
    return TrainReply(
        client=number,
        weight=whole(metrics, "num-examples", least=1),
        loss=real(metrics, "loss"),
        values=codec.decode(arrays),
        codec=codec,
        growth=candidates,
        message=reply,
        report=report(),
        held_out=held_out,
        held_out_accuracy=accuracy,
    )


def _read_held_out(metrics: MetricRecord) -> tuple[int, float]:
    """Return how many examples a client scored its trained model on, and its accuracy; (0, 0.0) for none."""
    if "test-examples" not in metrics and "test-accuracy" not in metrics:
        return 0, 0.0
    return whole(metrics, "test-examples", least=1), share(metrics, "test-accuracy")


@dataclass
class TrainMetrics:
    """The mean training loss of a round's clients, and the accuracy of their trained models.

    ``train-loss`` is weighted by examples, ``personal-accuracy`` by held-out examples.
    """

    weight: int = 0
    loss: float = 0.0
    held_out: int = 0
    correct: float = 0.0

    def add(self, reply: TrainReply) -> None:
        """Add a client."""
        self.weight += reply.weight
        self.loss += reply.weight * reply.loss
        self.held_out += reply.held_out
        self.correct += reply.held_out * reply.held_out_accuracy

    def record(self) -> MetricRecord | None:
        """Return the means; None where no client was added."""
        if self.weight == 0:
            return None
        metrics = MetricRecord({"train-loss": self.loss / self.weight})
        if self.held_out:
            metrics["personal-accuracy"] = self.correct / self.held_out
        return metrics
