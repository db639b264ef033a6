"""SFPrompt (Cao et al., 2024): Communication-Efficient Split Federated Fine-Tuning.

A pre-trained transformer is fine-tuned whose clients cannot hold it: they have its head and tail, the server
its body. Head and body are frozen; prompt tokens before the patches and the tail are trained. A round of a
client has three phases. It trains prompt and tail with the shortcut that leaves the body out, without any
traffic. It leaves out the examples of which the shortcut is surest: those with the smallest norm of the
difference between probabilities and label (EL2N). With the others it trains prompt and tail through the
server's body. Prompts and tails are averaged by examples.

Differences from the paper
--------------------------
- The paper does not say how long its prompts are, which share of the examples is left out, and between which
  blocks the model is cut, for all of its experiments. Here these are options: ``model.prompts``, ``prune``,
  and ``body`` and ``tail``. The defaults leave the embedding on the client, and the last block with norm and
  classifier.
- Whatever stands before the body is frozen but for the prompts, whatever behind it is trained.

References
----------
- L. Cao, Y. Zhu, W. Gong: SFPrompt: Communication-Efficient Split Federated Fine-Tuning for Large Pre-Trained
  Models over Resource-Limited Devices. 2024, arXiv 2407.17533.
- M. Paul, S. Ganguli, G. K. Dziugaite: Deep Learning on a Data Diet: Finding Important Examples Early in
  Training. NeurIPS 2021, arXiv 2107.07075: EL2N.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedprune.protocol.split import SelfUpdateOptions
from fedprune.scenario import Scenario
from fedprune.server.split import SplitStrategy


class SFPrompt(SplitStrategy):
    """SFPrompt (Cao et al. 2024): split fine-tuning of a transformer: prompts and tail are trained."""

    client = "sfprompt"
    trains_body = False

    class Options(SelfUpdateOptions, SplitStrategy.Options):
        """Where the model is cut, and what a client does before split training."""

    options: Options

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Any) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) for a task whose examples have no EL2N score."""
        yield from super().validation_errors(scenario, options)
        task = scenario.task.name if scenario.task is not None else "classification"
        if options.prune > 0 and task != "classification":
            yield "prune", f"EL2N is of classes, and the task is {task}: set prune: 0"
