"""The global model: its values and masks on the server, and how they travel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache

from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedprune import seeds
from fedprune.protocol.frozen import FrozenValues
from fedprune.protocol.supermasks import FrozenNetwork, Supermasks, drawn_weights
from fedprune.scenario import Scenario
from fedprune.sparsity.frozen import frozen_names
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.wire import Codec, Layout, StateCodec, get_state, set_state


class GlobalModel:
    """The global values and masks, and the codec under which they travel.

    Parameters
    ----------
    module : nn.Module
        The model with its initial weights, on the CPU.
    scenario : Scenario
        How values travel (``wire.values``), and the seed.
    supermasks : Callable[[], Supermasks | None]
        How clients learn signs or masks of frozen weights, where they do; the same over a run.
    held : Layout, optional
        What of the state a client holds; all, where not given.

    Attributes
    ----------
    layout : Layout
        Names and shapes of the state.
    travelling : Layout
        Of what of it travels in every round: what a client holds and is not frozen.
    initial : dict[str, Tensor]
        The state at first.
    state : dict[str, Tensor]
        The current one: every parameter and buffer by name.
    masks : Masks
        The global masks; empty where nothing is pruned.
    codec : Codec
        How the state travels under the global masks.
    """

    def __init__(
        self,
        module: nn.Module,
        scenario: Scenario,
        supermasks: Callable[[], Supermasks | None],
        held: Layout | None = None,
    ) -> None:
        self.module = module
        self.layout = Layout.of(module)
        held, names = held or self.layout, frozen_names(module)
        self.travelling = held.without(names)
        self._once = held.only(names)
        self.initial = get_state(module)
        self.state: dict[str, Tensor] = self.initial
        self.masks = Masks()
        self._values = scenario.wire.values
        self._seed = scenario.seed
        self._supermasks = supermasks
        self.codec: Codec = StateCodec(self.travelling, self.masks, self._values)

    def set_masks(self, masks: Masks) -> None:
        """Make ``masks`` the global ones; weights they prune become exactly 0.

        Raises
        ------
        TypeError, ValueError
            For what is no ``Masks``, or does not fit the model.
        """
        if not isinstance(masks, Masks):
            raise TypeError(f"set_masks takes a fedprune.sparsity.masks.Masks, not {type(masks).__name__}")
        for name, mask in masks.items():
            if mask.shape != self.layout.shapes.get(name):
                known = self.layout.shapes.get(name)
                expected = f"expected {tuple(known)}" if known is not None else "the model has no such weight"
                raise ValueError(f"mask of {name!r} has shape {tuple(mask.shape)}: {expected}")
        self.masks = masks
        self.apply_masks()
        self.codec = self._new_codec(masks)

    def apply_masks(self) -> None:
        """Set every pruned weight to exactly 0."""
        self.state = apply_masks(self.state, self.masks)

    def load_into_module(self) -> None:
        """Copy the state into ``module``."""
        set_state(self.module, self.state)

    def restore(self, state: dict[str, Tensor], masks: Masks) -> None:
        """Restore a state and masks from a checkpoint.

        Raises
        ------
        ValueError
            For a state that is not this model's.
        """
        self.layout.check(state)
        self.state, self.masks = state, masks
        self.__dict__.pop("frozen_values", None)
        self.codec = self._new_codec(masks)

    # Frozen parts ------------------------------------------------------------------------

    @cached_property
    def frozen_values(self) -> FrozenValues:
        """What of a client's model is frozen, as it travels; it stays the same over a run."""
        return FrozenValues.of(self._once, self.state)

    @property
    def frozen_state(self) -> dict[str, Tensor]:
        """The same by name."""
        return self._once.select(self.state)

    # Weights that supermasks freeze ----------------------------------------------------------------------

    def draw(self) -> None:
        """Put the weights that the seed of the supermasks draws into the state and the module."""
        settings = self._supermasks()
        assert settings is not None
        self.state = {**self.state, **drawn_weights(self.module, settings.seed)}
        self.load_into_module()

    def freeze(self, masks: Masks) -> None:
        """Make ``masks`` the global ones and the frozen weights under them, as drawn, the state."""
        self.set_masks(masks)
        self.state = self.frozen(masks).state

    @cached_property
    def frozen(self) -> Callable[[Masks], FrozenNetwork]:
        """The frozen weights under masks, where clients learn supermasks."""

        @lru_cache(maxsize=4)
        def make(masks: Masks) -> FrozenNetwork:
            settings = self._supermasks()
            assert settings is not None
            return FrozenNetwork(self.module, self.initial, masks, settings)

        return make

    # How it travels ----------------------------------------------------------------------

    def encode(self, server_round: int, codec: Codec | None = None) -> ArrayRecord:
        """Return the state as it travels, under the global masks or those of another codec."""
        seed = seeds.derive(self._seed, "wire", server_round)
        codec = codec or self.codec
        return codec.encode(codec.flatten(self.travelling_state), seed=seed)

    @property
    def travelling_state(self) -> dict[str, Tensor]:
        """What of the state travels in every round."""
        return self.travelling.select(self.state)

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Put what travelled in the place of what was there."""
        self.state = {**self.state, **state}

    def decode(self, arrays: ArrayRecord) -> Mapping[str, Tensor]:
        """Return what travelled under the global masks."""
        return self.codec.unflatten(self.codec.decode(arrays))

    def codec_of(self, masks: Masks) -> Codec:
        """Return how the state travels under masks; the global ones have theirs ready."""
        return self.codec if masks == self.masks else self._new_codec(masks)

    def reply_codec(self, masks: Masks) -> Codec:
        """Return how a client's trained state travels under masks."""
        return self.codec_of(masks) if self._supermasks() is None else self.frozen(masks).uplink

    def _new_codec(self, masks: Masks) -> Codec:
        if self._supermasks() is None or not masks:
            return StateCodec(self.travelling, masks, self._values)
        return self.frozen(masks).downlink
