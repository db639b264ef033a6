"""The server's side of compressed updates: a reply becomes a trained state before anything looks at it.

With EF21 the server keeps an estimate for each client that has taken part, as long as the state without its
pruned weights: count on that for many clients. What the estimates are for is in `fedprune.protocol.updates`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedprune import seeds
from fedprune.protocol.supermasks import LearningOptions
from fedprune.protocol.updates import HELD, Updates
from fedprune.scenario import Scenario
from fedprune.server.global_model import GlobalModel
from fedprune.sparsity.masks import Masks
from fedprune.wire import Codec, StateCodec, decode_masks, encode_masks

if TYPE_CHECKING:
    from fedprune.server.aggregation import TrainReply
    from fedprune.server.strategy import PruningStrategy


@dataclass(frozen=True, eq=False)
class _Estimate:
    """What the server holds of a client's update: of which round, under which masks, flat."""

    round: int
    codec: StateCodec
    values: Tensor


class ClientUpdates:
    """Reads the updates of a scenario's clients.

    Parameters
    ----------
    updates : Updates
        How they travel.
    model : GlobalModel
        What is sent to clients.
    seed : int
        The scenario's.
    """

    def __init__(self, updates: Updates, model: GlobalModel, seed: int) -> None:
        self.compressor = updates.compressor
        self._updates = updates
        self._model = model
        self._seed = seed
        self._estimates: dict[int, _Estimate] = {}
        self._sent = lru_cache(maxsize=2)(self._sent_under)

    @classmethod
    def of(cls, scenario: Scenario, model: GlobalModel) -> ClientUpdates | None:
        """Return what reads the updates of a scenario's clients; None where they send whole values."""
        updates = Updates.of(scenario, {name for name, _ in model.module.named_parameters()})
        return None if updates is None else cls(updates, model, scenario.seed)

    def addressed(self, content: RecordDict, number: int) -> RecordDict:
        """Return a training message's content for one client: with the round of its estimate, if it has one.

        The arrays are those of the content given: clients share them.
        """
        if self.compressor.feedback != "ef21":
            return content
        own, held = RecordDict(dict(content)), self._estimates.get(number)
        own["config"] = ConfigRecord({**content.config_records["config"], HELD: held.round if held else 0})
        return own

    def read(
        self, arrays: ArrayRecord, number: int, server_round: int, *, sent: Masks, codec: Codec
    ) -> tuple[Tensor, Tensor]:
        """Return a client's trained state and its update, flat under its own masks.

        Parameters
        ----------
        arrays : ArrayRecord
            What it replied.
        number, server_round : int
            The client and the round.
        sent : Masks
            The masks under which it was sent values.
        codec : Codec
            How its state is laid out: under these masks, or those that it has made of them.

        Raises
        ------
        WireError
            For what is no update of this model.
        """
        assert isinstance(codec, StateCodec)
        values, before = self._sent(server_round, sent)
        if codec.masks != sent:
            values = codec.taken_over(values, before)
        held = self._estimates.get(number)
        estimate = None
        if held is not None:
            same = held.codec.masks == codec.masks
            estimate = held.values if same else codec.taken_over(held.values, held.codec)
        seed = seeds.derive(self._seed, "update", server_round, number)
        return self._updates.decode(arrays, values, codec, seed=seed, estimate=estimate)

    def note(self, server_round: int, reply: TrainReply) -> None:
        """Note a reply that the server takes: it now holds this estimate of the client's update."""
        if self.compressor.feedback == "ef21" and reply.update is not None:
            codec = reply.codec
            assert isinstance(codec, StateCodec)
            self._estimates[reply.client] = _Estimate(server_round, codec, reply.update)

    def state_dict(self) -> dict[str, Any]:
        """Return the estimates, for a checkpoint."""
        return {
            str(number): {
                "round": held.round,
                "masks": encode_masks(held.codec.masks),
                "values": held.values,
            }
            for number, held in self._estimates.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        shapes, codecs = self._model.layout.shapes, lru_cache(maxsize=8)(self._codec)
        self._estimates = {
            int(number): _Estimate(each["round"], codecs(decode_masks(each["masks"], shapes)), each["values"])
            for number, each in state.items()
        }

    def _sent_under(self, server_round: int, masks: Masks) -> tuple[Tensor, StateCodec]:
        """Return the values that clients with some masks were sent in a round, as they have them."""
        codec = self._codec(masks)
        return codec.decode(self._model.encode(server_round, codec)), codec

    def _codec(self, masks: Masks) -> StateCodec:
        codec = self._model.codec_of(masks)
        assert isinstance(codec, StateCodec)
        return codec


def update_errors(
    scenario: Scenario, strategy: type[PruningStrategy], options: Any
) -> Iterator[tuple[str, str]]:
    """Yield (option, what is wrong) where a strategy has no updates to compress, or no values to keep."""
    if scenario.wire.history and isinstance(options, LearningOptions):
        yield "name", "clients are sent bits, not values that change a little: leave wire.history out"
    if scenario.wire.updates is None:
        return
    whole = "leave wire.updates out"
    if isinstance(options, LearningOptions):
        yield "name", f"clients send bits of frozen weights, not updates of weights: {whole}"
    elif strategy.no_updates:
        yield "name", f"{strategy.no_updates}: {whole}"
