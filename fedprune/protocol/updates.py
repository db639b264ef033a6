"""Compressed updates: what a client sends in place of its trained state, and what the server makes of it.

An update is the trained parameters less those that the client was sent, of kept weights alone; a compressor
(`fedprune.compression`) makes it small. What else is in a state, such as batch-norm statistics, travels
beside it as it is. The server adds what arrives to what it sent and has a trained state, so that nothing
after it need know of compression.

Error feedback
--------------
``ef`` (Seide et al., 2014; Karimireddy et al., 2019): the client adds to an update what was left out of its
last one. It alone keeps that, as long as it stays away; the server needs to know nothing.

``ef21`` (Richtárik et al., NeurIPS 2021): client and server both hold an estimate of the client's update. The
client sends, compressed, how its update differs from that, and both add it. The update that the aggregation
rule sees is the new estimate of each client of the round. In the paper the mean is over the estimates of all
clients, in each round; here one that is not sampled is left out, as in federated averaging, and its estimate
waits for it on both sides. The server says which of its estimates it holds, by the round it is of; a client
that does not hold the same one starts anew from 0, and says so. So a reply that got lost or came too late
does no harm.

Of a weight that was pruned since, nothing is kept; one that grew starts from 0.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedprune import registry
from fedprune.compression import Compressor, FloatType, Frame, Part, Source, Writer
from fedprune.errors import FedpruneError, WireError
from fedprune.scenario import Scenario
from fedprune.wire import StateCodec
from fedprune.wire.values import MASK, VALUES, from_array, to_array

#: In a message's config: the round of the client's estimate that the server holds; 0 where it holds none.
HELD = "update-round"


@dataclass
class Kept:
    """What a client keeps of its updates.

    Parameters
    ----------
    round : int
        Of its last one; 0 where there was none.
    residual : Tensor, optional
        What error feedback keeps, flat as the state's values are: what was left out, or the estimate.
    memory : dict[str, Tensor]
        What the compressor keeps.
    """

    round: int = 0
    residual: Tensor | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)


class Updates:
    """How the clients of a scenario send updates: a compressor, for states of one model.

    Parameters
    ----------
    compressor : Compressor
        What makes an update small.
    parameters : Container[str]
        Names of the model's parameters: of what else a state holds, the values travel.
    floats : "float32" | "float16" | "bfloat16"
        How numbers travel.
    """

    def __init__(
        self, compressor: Compressor, parameters: Container[str], floats: FloatType = "float32"
    ) -> None:
        self.compressor = compressor
        self._parameters = parameters
        self._floats = floats

    @classmethod
    def of(cls, scenario: Scenario, parameters: Container[str]) -> Updates | None:
        """Return how the clients of a scenario send updates; None where they send whole values."""
        spec, values = scenario.wire.updates, scenario.wire.values
        if spec is None or values == "int8":
            return None
        kind: type[Compressor] = registry.load("compressor", spec.name, scenario.directory)
        return cls(kind(kind.Options.model_validate(spec.options)), parameters, values)

    def encode(
        self, trained: Tensor, sent: Tensor, codec: StateCodec, *, seed: int, kept: Kept, held: int = 0
    ) -> ArrayRecord:
        """Return a client's update as a record with the array "values" of bytes.

        Parameters
        ----------
        trained, sent : Tensor
            The values after training and those that it began with, float32 of shape (codec.size,).
        codec : StateCodec
            How they are laid out.
        seed : int
            The same on both sides, of this client and round.
        kept : Kept
            What the client keeps, for the same codec; it is brought up to date but for its round.
        held : int
            The round of the estimate that the server holds.

        Raises
        ------
        WireError
            For a value that is not finite.
        """
        codec.check(trained)
        feedback, places = self.compressor.feedback, self._places(codec)
        goes_on = feedback == "ef21" and kept.round == held > 0
        carried = torch.zeros(int(places.sum()))
        if kept.residual is not None and (goes_on or feedback == "ef"):
            carried = kept.residual[places]
        update = trained[places] - sent[places]
        target = update + carried if feedback == "ef" else update - carried
        frame = self._frame(codec, seed)
        rest, body = Writer(self._floats), Writer(self._floats)
        rest.floats(trained[~places])
        self.compressor.write(target, frame, body, kept.memory)
        if feedback != "none":
            arrived = self.compressor.read(frame, Source(body.payload, self._floats))
            kept.residual = torch.zeros(codec.size)
            kept.residual[places] = target - arrived if feedback == "ef" else carried + arrived
        payload = bytes([goes_on]) + rest.payload + body.payload
        return ArrayRecord({VALUES: to_array(np.frombuffer(payload, dtype=np.uint8))})

    def decode(
        self,
        record: ArrayRecord,
        sent: Tensor,
        codec: StateCodec,
        *,
        seed: int,
        estimate: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the trained state that an update stands for, and the update: float32 of shape (codec.size,).

        The update is 0 where values travelled.

        Parameters
        ----------
        record : ArrayRecord
            The client's.
        sent : Tensor
            What it was sent, under its own masks.
        codec : StateCodec
            How both are laid out.
        seed : int
            The same on both sides.
        estimate : Tensor, optional
            The estimate of this client that the server holds, laid out likewise.

        Raises
        ------
        WireError
            For what is no update of this model under these masks, one that goes on from an estimate which
            is not held, or a value that is not finite.
        """
        found = set(record) - {MASK}
        if found != {VALUES}:
            raise WireError(f"the record has the arrays {sorted(found)}, expected {[VALUES]}")
        payload = from_array(VALUES, record[VALUES], "|u1", (-1,)).tobytes()
        if payload[:1] not in (b"\0", b"\1"):
            raise WireError(f"an update begins with {payload[:1]!r}, expected a byte of 0 or 1")
        goes_on = payload[0] == 1
        if goes_on and (estimate is None or self.compressor.feedback != "ef21"):
            raise WireError("the update goes on from an estimate that the server does not hold")
        places, source = self._places(codec), Source(payload[1:], self._floats)
        rest = source.floats(int((~places).sum()))
        arrived = self._read(self._frame(codec, seed), source)
        if goes_on and estimate is not None:
            arrived = estimate[places] + arrived
        update = torch.zeros(codec.size)
        update[places] = arrived
        values = sent + update
        values[~places] = rest
        codec.check(values)
        return values, update

    def _read(self, frame: Frame, source: Source) -> Tensor:
        """Return what arrived of an update, whatever a compressor makes of bytes from outside."""
        try:
            found = self.compressor.read(frame, source)
            source.end()
        except FedpruneError:
            raise
        except Exception as error:
            name = type(self.compressor).__name__
            raise WireError(f"{name} cannot read the update: {type(error).__name__}: {error}") from error
        if found.dtype != torch.float32 or found.shape != (frame.size,):
            raise WireError(
                f"the update has dtype {found.dtype} and shape {tuple(found.shape)}, expected torch.float32 "
                f"and ({frame.size},)"
            )
        return found

    def _places(self, codec: StateCodec) -> Tensor:
        """Return which of the flat values are of parameters: bool of shape (codec.size,)."""
        places = torch.zeros(codec.size, dtype=torch.bool)
        for name, part in codec.parts(places):
            part.fill_(name in self._parameters)
        return places

    def _frame(self, codec: StateCodec, seed: int) -> Frame:
        """Return what both sides know of an update under a codec."""
        shapes = codec.layout.shapes
        return Frame(
            tuple(
                Part(name, shapes[name], codec.masks.get(name), len(part))
                for name, part in codec.parts(torch.empty(codec.size))
                if name in self._parameters
            ),
            seed,
        )
