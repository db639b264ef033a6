"""The section ``clients.training``: local training, its optimizer and learning-rate schedule."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from fedprune.scenario.base import ChoiceSpec, Fraction, Spec
from fedprune.scenario.validation import refuse


class OptimizerSpec(ChoiceSpec):
    """The optimizer of a client's training steps."""

    chooser = "name"
    keys_of: ClassVar = {"sgd": ("momentum", "nesterov"), "adam": ("betas", "eps")}

    name: Literal["sgd", "adam"] = Field(default="sgd", description="The optimizer: sgd or adam.")
    lr: float = Field(default=0.05, gt=0, description="Learning rate of the first round.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty on the weights.")
    nesterov: bool = Field(default=False, description="Whether the momentum of sgd is Nesterov's.")
    betas: tuple[Fraction, Fraction] = Field(
        default=(0.9, 0.999),
        strict=False,
        description="Decay of adam's averages of the gradient and of its square.",
    )
    eps: float = Field(default=1e-8, gt=0, description="Number that adam adds to the denominator.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise refuse("nesterov", "needs a momentum above 0: add 'momentum: 0.9'")
        return self


class ScheduleSpec(ChoiceSpec):
    """How the learning rate falls over the rounds."""

    chooser = "name"
    keys_of: ClassVar = {
        "constant": (),
        "cosine": ("end_factor",),
        "cubic": ("end_factor",),
        "linear": ("end_factor",),
    }

    name: Literal["constant", "cosine", "cubic", "linear"] = Field(
        default="constant", description="The shape in which the learning rate falls over the rounds."
    )
    end_factor: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Where the learning rate falls to by the end, as a share of the first round's.",
    )


class TrainingSpec(Spec):
    """What a client does with its data in a round."""

    epochs: int = Field(default=1, ge=1, description="Passes over a client's data in a round.")
    batch_size: int = Field(default=32, ge=1, description="Images in a training step.")
    optimizer: OptimizerSpec = Field(
        default=OptimizerSpec(), description="The optimizer of a client's training steps."
    )
    schedule: ScheduleSpec = Field(
        default=ScheduleSpec(), description="How the learning rate falls over the rounds."
    )
    proximal_mu: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the FedProx term that pulls a client towards the global model.",
    )
    execution: Literal["auto", "dense", "sparse"] = Field(
        default="auto",
        description="How pruned layers are computed: dense under a mask, sparse on their kept weights alone, "
        "or auto: sparse where that is faster by a layer's shape, its density, the batch and the CPU.",
    )
