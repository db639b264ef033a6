"""The client of SFPrompt: self-update without the body, data pruning, then split training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedprune.client.base import ClientTask
from fedprune.client.split import Prepared, SplitClient
from fedprune.data import batches
from fedprune.errors import UserError
from fedprune.models.cut import ClientPart
from fedprune.protocol.split import SelfUpdateOptions
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Task
from fedprune.training.loop import train

#: What of the head is trained: parameters of this name, in whatever layer.
PROMPT = "prompts"


class SFPrompt(SplitClient):
    """Trains prompt and tail; head and body are frozen."""

    trains_body = False
    options_class = SelfUpdateOptions
    options: SelfUpdateOptions

    @classmethod
    def local_model(cls, scenario: Scenario, task: Task, module: torch.nn.Module) -> ClientPart:
        """Return head and tail; refuse a model whose tail does not take what its head makes."""
        found = super().local_model(scenario, task, module)
        if not found.has_shortcut:
            before, after = (tuple(shape) for shape in found.body_shapes)
            raise UserError(
                f"strategy sfprompt: the head makes {before} of an example and the tail takes {after}: "
                "without the body they do not fit together (take a transformer such as vit_tiny)"
            )
        return found

    @classmethod
    def frozen_names(cls, options: Mapping[str, Any], part: ClientPart) -> list[str]:
        """Freeze the head but for its prompts."""
        return [name for name in part.head_names() if name.rpartition(".")[2] != PROMPT]

    def prepare(self, task: ClientTask) -> Prepared:
        """Update prompt and tail without the body (phase 1); leave out the examples of least EL2N score."""
        options, data = self.options, self.data
        epochs, share = options.local_epochs, options.prune
        seen = flops = 0
        if epochs:
            done = train(
                self.part,
                self.epochs("shortcut", task.round, epochs),
                self.site.task,
                self.scenario.clients.training.optimizer,
                lr=self.learning_rate(task.round),
                masks=Masks(),
            )
            seen = done.examples_seen
        examples = data.train
        left_out = int(share * len(examples))
        if left_out:
            scores = self.scores(examples)
            flops = self.site.cost.forward_flops(Masks(), len(examples))
            # Of equal scores the first stay; the order is that of the client's examples.
            kept = np.argsort(-scores, kind="stable")[: len(examples) - left_out]
            examples = examples[np.sort(kept)]
        return Prepared(examples, before=seen, flops=flops)

    def scores(self, examples: np.ndarray) -> np.ndarray:
        """Return the EL2N score of each example under the shortcut, float32."""
        size, found = self.scenario.clients.training.batch_size, []
        self.part.eval()
        with torch.no_grad():
            for x, y in batches(self.data.examples, examples, self.site.task, size):
                found.append(el2n(self.part(x.to(self.site.device)), y.to(self.site.device)).cpu())
        return torch.cat(found).numpy()


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the norm of the difference between probabilities and label of each example, (B,).

    Paul et al. (NeurIPS 2021), definition 2.2.

    Parameters
    ----------
    logits : Tensor
        (B, K).
    labels : Tensor
        int64 (B,).
    """
    difference = logits.softmax(dim=1)
    difference[torch.arange(len(labels)), labels] -= 1
    return difference.norm(dim=1)
