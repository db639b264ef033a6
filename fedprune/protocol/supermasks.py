"""What a server and its clients agree on to learn a supermask: the settings, frozen weights and codecs.

The settings are options of a strategy and travel, where they are not the defaults, in one entry of a
message's config. From them and the masks both sides build the same frozen weights and the same codecs.
What a supermask is, is in `fedprune.sparsity.supermasks`; how clients train one, in
`fedprune.clients.supermask`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
from flwr.app import ConfigRecord
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from fedprune.errors import WireError
from fedprune.protocol.messages import text, whole
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.sparsity.pruning import prunable
from fedprune.sparsity.supermasks import (
    MaskKind,
    StraightThrough,
    constant_magnitudes,
    initial_weights,
)
from fedprune.wire.layout import Layout
from fedprune.wire.supermasks import Grid, SupermaskCodec


class Learning(BaseModel):
    """How clients learn a supermask; options of a strategy."""

    straight_through: StraightThrough = Field(
        "identity",
        description="Which scores get their gradient straight through the threshold: all, or 'clipped': "
        "those within [-1, 1].",
    )
    score_scale: float = Field(
        0.01,
        gt=0,
        allow_inf_nan=False,
        description="Size of the scores that local training starts from; its ratio to the learning rate "
        "says how fast signs flip.",
    )
    score_lr: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Learning rate of scores in the first round, from where it goes as the others do; "
        "the optimizer's where not given.",
    )
    keep_scores: bool = Field(
        False, description="Whether a client keeps its scores, and takes over the signs that were flipped."
    )
    init: Literal["signed_constant", "kaiming_normal"] = Field(
        "signed_constant",
        description="Frozen weights: one magnitude a layer, larger where fewer are kept, or as drawn.",
    )
    train_dense: bool = Field(
        False, description="Whether batch norm, biases and the last layer are trained and sent, too."
    )
    vote_bits: int = Field(
        1, ge=1, le=16, description="Bits a weight of what the server sends: 1 for signs or a mask."
    )


class LearningOptions(Learning):
    """What every strategy has whose clients learn supermasks, besides `PruningStrategy.Options`."""

    keep: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Layers without a supermask, frozen as drawn: name patterns, 'first' and 'last'. "
        "With train_dense the last layer has none, and is trained.",
    )

    @model_validator(mode="before")
    @classmethod
    def _keep_what_is_trained(cls, given: Any) -> Any:
        """Leave the last layer out of the supermask where it is trained itself."""
        if isinstance(given, dict) and given.get("train_dense") is True:
            keep = given.get("keep", ())
            if isinstance(keep, list | tuple) and "last" not in keep:
                return {**given, "keep": [*keep, "last"]}
        return given

    def validation_errors(self, scenario: Scenario) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) for what a network with frozen weights can't be trained with."""
        if scenario.model.frozen or scenario.model.trainable is not None:
            yield "keep", "weights are frozen by supermasks: leave model.frozen and model.trainable out"
        if getattr(self, "pretrain_epochs", 0) > 0:
            yield "pretrain_epochs", "weights stay as the seed draws them: set 0"
        if scenario.model.weights is not None:
            yield "name", "weights stay as the seed draws them: leave model.weights out"
        if scenario.wire.values != "float32":
            yield "vote_bits", "weights travel as bits, and the rest as float32: set wire.values: float32"
        if scenario.clients.training.proximal_mu > 0:
            yield "score_scale", "scores have no proximal term: set clients.training.proximal_mu: 0"


def _initials(name: str) -> str:
    return "".join(word[0] for word in name.split("_"))


class _Sent(Learning):
    """The settings as they travel, under their initials: they are a part of every message."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=_initials,
        populate_by_name=True,
        loc_by_alias=False,
    )

    mask: MaskKind = "sign"


@dataclass(frozen=True)
class Supermasks:
    """How a federation learns supermasks.

    Parameters
    ----------
    mask : "sign" | "binary" | "bernoulli"
        What is learned of each kept weight.
    learning : Learning
        How.
    seed : int
        Of the frozen weights.
    """

    mask: MaskKind
    learning: Learning
    seed: int

    def config(self) -> dict[str, str | int]:
        """Return the settings as config values."""
        own = {key: getattr(self.learning, key) for key in Learning.model_fields}
        sent = _Sent(mask=self.mask, **own)
        told = sent.model_dump_json(exclude_defaults=True, by_alias=True)
        return {"supermask": told, "weights-seed": self.seed}

    @classmethod
    def of(cls, config: ConfigRecord) -> Supermasks:
        """Read the settings from a message's config.

        Raises
        ------
        WireError
            Where there are none, or they are not right.
        """
        try:
            sent = _Sent.model_validate_json(text(config, "supermask"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "supermask"
            raise WireError(f"'supermask': {where}: {first['msg']}") from error
        return cls(sent.mask, sent, whole(config, "weights-seed"))


@dataclass(frozen=True, eq=False)
class FrozenNetwork:
    """A network's frozen weights under masks, and how what is learned of it travels.

    Parameters
    ----------
    module : nn.Module
        The network; only its structure counts.
    initial : Mapping[str, Tensor]
        The state of the network as it was built: what has no weights drawn for it stays as it is there.
    masks : Masks
        Which weights a supermask is learned for.
    settings : Supermasks
        How.
    """

    module: nn.Module
    initial: Mapping[str, Tensor]
    masks: Masks
    settings: Supermasks

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """The state before anything is learned: weights as drawn, with their signs; 0 where pruned."""
        return apply_masks(self._drawn, self.masks)

    @cached_property
    def factors(self) -> dict[str, Tensor]:
        """What a number multiplies, by masked weight, dense: the weight as drawn, for signs its magnitude."""
        drawn = {name: self._drawn[name] for name in self.masks}
        return {name: weight.abs() for name, weight in drawn.items()} if self._signs else drawn

    @cached_property
    def trained(self) -> frozenset[str]:
        """Names of the parameters without a mask that are trained and sent."""
        if not self.settings.learning.train_dense:
            return frozenset()
        *weights, _ = prunable(self.module, ())
        return frozenset(self._parameters - set(self.masks) - set(weights))

    @cached_property
    def uplink(self) -> SupermaskCodec:
        """How a client's reply travels: a bit a weight."""
        return self._codec(1)

    @cached_property
    def downlink(self) -> SupermaskCodec:
        """How the global state travels: ``vote_bits`` bits a weight."""
        bits = self.settings.learning.vote_bits
        return self.uplink if bits == 1 else self._codec(bits)

    @property
    def _signs(self) -> bool:
        return self.settings.mask == "sign"

    @property
    def _parameters(self) -> set[str]:
        return {name for name, _ in self.module.named_parameters()}

    @cached_property
    def _drawn(self) -> dict[str, Tensor]:
        weights = drawn_weights(self.module, self.settings.seed)
        if self.settings.learning.init == "signed_constant":
            weights = constant_magnitudes(weights, self.masks)
        return {**self.initial, **weights}

    def _codec(self, bits: int) -> SupermaskCodec:
        layout = Layout.of(self.module)
        buffers = layout.shapes.keys() - self._parameters
        grid = Grid(-1.0 if self._signs else 0.0, bits)
        return SupermaskCodec(
            layout, self.masks, {**self._drawn, **self.factors}, self.trained | buffers, grid
        )


def drawn_weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Return the prunable weights of a network as the seed draws them."""
    shapes = {name: module.get_parameter(name).shape for name in prunable(module, ())}
    return dict(_drawn(tuple(shapes.items()), seed))


@lru_cache(maxsize=1)
def _drawn(shapes: tuple[tuple[str, torch.Size], ...], seed: int) -> dict[str, Tensor]:
    """A model's draws are taken several times: for the masks, and then for each set of them."""
    return initial_weights(dict(shapes), seed)
