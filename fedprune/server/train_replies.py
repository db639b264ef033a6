"""Replies to training messages: read and checked, and summed up over a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message, MetricRecord

from fedprune.protocol.client_masks import MaskRequest, read_own_masks
from fedprune.protocol.messages import arrays_of, metrics_of, real, whole
from fedprune.protocol.reports import GrowthRequest, Report, read_growth
from fedprune.protocol.scores import PERSONAL, read_score
from fedprune.server.aggregation import TrainReply
from fedprune.server.global_model import GlobalModel
from fedprune.server.updates import ClientUpdates
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Metric, Score, combine


def read_train_reply(
    reply: Message,
    number: int,
    sent: Masks,
    model: GlobalModel,
    *,
    growth: GrowthRequest | None,
    move: MaskRequest | None,
    judged_by: Sequence[Metric],
    report: Any,
    updates: ClientUpdates | None = None,
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
    judged_by : Sequence[Metric]
        By what models are judged.
    report : Callable[[], Any]
        Reads what else the strategy asked for.
    updates : ClientUpdates, optional
        Reads the client's update, where it has sent one in place of its trained state.

    Raises
    ------
    WireError
        For a reply that does not say all of it as it should.
    """
    metrics, arrays = metrics_of(reply.content), arrays_of(reply.content)
    candidates: Report = {}
    if growth is not None:
        candidates = read_growth(reply.content.array_records.get("growth"), growth, sent)
    codec, update = model.reply_codec(read_own_masks(arrays, model.layout, sent, move) or sent), None
    if updates is None:
        values = codec.decode(arrays)
    else:
        server_round = int(reply.metadata.group_id)
        values, update = updates.read(arrays, number, server_round, sent=sent, codec=codec)
    return TrainReply(
        client=number,
        weight=whole(metrics, "num-examples", least=1),
        loss=real(metrics, "loss"),
        values=values,
        codec=codec,
        growth=candidates,
        message=reply,
        report=report(),
        personal=read_score(metrics, judged_by, PERSONAL),
        update=update,
    )


@dataclass
class TrainMetrics:
    """The mean training loss of a round's clients, and how well their trained models do.

    ``train-loss`` is weighted by examples; ``personal-accuracy``, or what else models are judged by, is that
    of all held-out examples together.
    """

    weight: int = 0
    loss: float = 0.0
    personal: list[Score] = field(default_factory=list)

    def add(self, reply: TrainReply) -> None:
        """Add a client."""
        self.weight += reply.weight
        self.loss += reply.weight * reply.loss
        if reply.personal is not None:
            self.personal.append(reply.personal)

    def record(self, judged_by: Sequence[Metric]) -> MetricRecord | None:
        """Return the means; None where no client was added."""
        if self.weight == 0:
            return None
        metrics = MetricRecord({"train-loss": self.loss / self.weight})
        for name, value in combine(self.personal).values(judged_by).items():
            if value is not None:
                metrics[f"personal-{name}"] = value
        return metrics
