"""The supermask client: it learns signs, or a {0, 1} mask, of weights that stay as they were drawn.

One training algorithm for HideNseek (arXiv 2206.04385), FedMask (Li et al., SenSys 2021) and FedPM (Isik
et al., ICLR 2023): they differ in what a score stands for and in what the server makes of the replies.
The frozen weights come from a seed; a reply holds one bit for each kept weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fedprune.client.base import Client, ClientTask, FitResult
from fedprune.costs.memory import Overhead
from fedprune.errors import WireError
from fedprune.protocol.client_masks import OneShotRequest
from fedprune.protocol.messages import payload
from fedprune.protocol.supermasks import Learning, Supermasks
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.supermasks import MaskKind, Supermask, frozen_but, threshold
from fedprune.training.loop import train
from fedprune.wire import Codec, SupermaskCodec, get_state


class SupermaskClient(Client):
    """Learns signs or a {0, 1} mask of frozen weights, by scores with a straight-through gradient."""

    @classmethod
    def overhead(cls, proximal_mu: float, options: Mapping[str, Any]) -> Overhead:
        """Return what a step needs besides: `slots` for the frozen weights; there is no proximal term."""
        return Overhead(slots=slots(options.get("init", Learning.model_fields["init"].default)))

    @classmethod
    def overhead_of(cls, scenario: Scenario, config: ConfigRecord, masks: Masks) -> Overhead:
        """Return what a step needs besides."""
        return Overhead(slots=slots(Supermasks.of(config).learning.init))

    def codec_of(self, config: ConfigRecord, masks: Masks) -> Codec:
        """Return how the global state travels: a few bits a weight."""
        return self.site.frozen(masks, Supermasks.of(config)).downlink

    def reply_codec(self, config: ConfigRecord, masks: Masks) -> SupermaskCodec:
        """Return how the reply travels: a bit a weight."""
        return self.site.frozen(masks, Supermasks.of(config)).uplink

    def train(self, content: RecordDict, state: RecordDict) -> RecordDict:
        """Train; keep the scores for the next time where that is asked for."""
        self.kept = state.config_records.get("scores")
        reply = super().train(content, state)
        if self.kept is not None:
            state["scores"] = self.kept
        return reply

    def fit(self, task: ClientTask) -> FitResult:
        """Train the scores for ``clients.training.epochs`` epochs, on the weights as they were drawn.

        What that needs on a device besides the optimizer's state is in `slots`.
        """
        settings = Supermasks.of(task.config)
        frozen = self.site.frozen(task.masks, settings)
        module, learning, training = task.model.module, settings.learning, self.scenario.clients.training
        with frozen_but(module, frozen.trained):
            supermask = Supermask(
                module,
                task.masks,
                {name: factor[task.masks[name]] for name, factor in frozen.factors.items()},
                self.first_scores(task, settings),
                kind=settings.mask,
                straight_through=learning.straight_through,
            )
            rate = self.learning_rate(task.round)
            factor = (learning.score_lr or training.optimizer.lr) / training.optimizer.lr
            trained = train(
                supermask,
                self.epochs("batches", task.round),
                self.site.task,
                training.optimizer,
                lr=rate,
                masks=Masks(),
                prepare=partial(set_score_rate, supermask, rate * factor),
                micro_batch=self.batch,
            )
        masks = task.masks
        if one_shot := OneShotRequest.of(task.config):
            masks = one_shot.masks(supermask.scores, task.masks)
        if learning.keep_scores:
            left = [s[masks[name][task.masks[name]]] for name, s in supermask.scores.items()]
            flat = torch.cat(left).numpy()
            self.kept = ConfigRecord({"version": masks.version, "values": flat.tobytes()})
        learned = {name: weight.cpu() for name, weight in supermask.weights().items()}
        values = self.reply_codec(task.config, masks).flatten({**get_state(module), **learned})
        size = min(training.batch_size, self.batch)
        steps = training.epochs * -(-trained.examples_seen // (training.epochs * size))
        return FitResult(
            values=values,
            masks=masks,
            loss=trained.loss,
            examples_seen=trained.examples_seen,
            flops=2 * steps * sum(task.masks.kept.values()),  # A product forward, and one backward.
            trained_under=task.masks,
        )

    def first_scores(self, task: ClientTask, settings: Supermasks) -> dict[str, Tensor]:
        """Return the scores to start from, by name, of shape (kept,): those of the numbers sent.

        Kept scores stay, and where they stand for something else than what was sent they change sign.
        """
        assert isinstance(task.codec, SupermaskCodec)
        numbers = task.codec.numbers(task.values)
        bits = settings.learning.vote_bits
        sent = {
            name: scores_of(numbers[name], settings.mask, settings.learning.score_scale, bits)
            for name in task.masks
        }
        if self.kept is None or self.kept.get("version") != task.masks.version:
            return sent
        flat = torch.frombuffer(bytearray(payload(self.kept, "values")), dtype=torch.float32)
        if len(flat) != sum(task.masks.kept.values()):
            raise WireError(f"client {self.number} kept {len(flat)} scores for another number of weights")
        parts = flat.split([len(scores) for scores in sent.values()])
        return {
            name: taken_over(own, start, settings.mask)
            for (name, start), own in zip(sent.items(), parts, strict=True)
        }


def slots(init: str) -> int:
    """Return how many values a weight training needs besides those that a forward pass uses.

    The scores are one; weights as drawn, which do not share one magnitude a layer, are another.
    """
    return 1 + int(init == "kaiming_normal")


def taken_over(own: Tensor, sent: Tensor, kind: MaskKind) -> Tensor:
    """Return a client's own scores, those negated that stand for something else than the scores sent."""
    same = threshold(own, kind) == threshold(sent, kind)
    return torch.where(same, own, torch.where(own == 0, sent, -own))


def set_score_rate(supermask: Supermask, rate: float, optimizer: torch.optim.Optimizer) -> None:
    """Give the scores a learning rate of their own; all parameters are in the optimizer's one group."""
    (group,) = optimizer.param_groups
    scores = list(supermask.score_parameters)
    of_scores = {id(parameter) for parameter in scores}
    others = [parameter for parameter in group["params"] if id(parameter) not in of_scores]
    group["params"] = scores
    if others:
        optimizer.add_param_group({"params": others, "lr": group["lr"]})
    group["lr"] = rate


def scores_of(numbers: Tensor, kind: MaskKind, scale: float, bits: int) -> Tensor:
    """Return scores that stand for numbers, of their shape.

    Those of signs in [-1, 1] are ``scale`` times the number, those of masks in [0, 1] lie as far from 0,
    and those of chances in [0, 1] are their logits, half a step of the grid away from certainty.
    """
    if kind == "bernoulli":
        return numbers.logit(eps=0.5 / 2**bits)
    return scale * (numbers if kind == "sign" else 2 * numbers - 1)
