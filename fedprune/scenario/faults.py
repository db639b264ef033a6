"""The section ``faults``: faults that a simulation injects."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fedprune.scenario.base import Spec
from fedprune.scenario.validation import refuse

FaultName = Literal[
    "exception", "hang", "late", "corrupt", "not_finite", "wrong_shape", "huge", "kill_worker"
]
Share = Annotated[float, Field(ge=0, le=1)]


class FaultAt(Spec):
    """A fault that one client has in one round."""

    round: int = Field(ge=1, description="The round.")
    client: int = Field(ge=0, description="The client's number, from 0.")
    fault: FaultName = Field(description="What goes wrong, by the names of the shares.")


class FaultsSpec(Spec):
    """Faults that a simulation injects into training tasks; none where not given.

    A task, a client's part in a round, has one fault at most. It is drawn by the scenario's seed, the
    round and the client alone.
    """

    exception: Share = Field(
        default=0.0, description="Share of tasks in which the client's code raises an error."
    )
    hang: Share = Field(
        default=0.0,
        description="Share of tasks that never end; engine.task_timeout must say how long to wait for them.",
    )
    late: Share = Field(
        default=0.0, description="Share of tasks whose reply comes after the server has stopped waiting."
    )
    corrupt: Share = Field(
        default=0.0, description="Share of tasks whose reply arrives cut short or with a flipped bit."
    )
    not_finite: Share = Field(
        default=0.0, description="Share of tasks whose reply holds numbers that are not finite."
    )
    wrong_shape: Share = Field(
        default=0.0,
        description="Share of tasks whose reply has more values than the model, in another shape.",
    )
    huge: Share = Field(default=0.0, description="Share of tasks whose reply is larger than any good one.")
    kill_worker: Share = Field(
        default=0.0,
        description="Share of tasks during which the worker process is killed, each time it is run.",
    )
    at: tuple[FaultAt, ...] = Field(
        default=(),
        strict=False,
        description="Faults of certain clients in certain rounds, in the place of a draw.",
    )

    @property
    def shares(self) -> dict[FaultName, float]:
        """The share of each fault, in the order in which a draw goes through them."""
        return {name: getattr(self, name) for name in get_args(FaultName)}

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self.at) or any(self.shares.values())

    def may_have(self, fault: FaultName) -> bool:
        """Return whether a task may have this fault."""
        return self.shares[fault] > 0 or any(each.fault == fault for each in self.at)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        total = sum(self.shares.values())
        if total > 1 + 1e-9:
            largest = max(self.shares, key=lambda name: self.shares[name])
            raise refuse(largest, f"the shares of all faults sum to {total:.6g}: they must sum to at most 1")
        places = [(each.round, each.client) for each in self.at]
        for number, place in enumerate(places):
            if place in places[:number]:
                raise refuse(
                    f"at.{number}",
                    f"client {place[1]} has a fault in round {place[0]} already: give it one at most",
                )
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value}
