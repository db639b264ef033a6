"""The section ``engine``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fedprune.scenario.base import Spec


def _number_or_auto(value: object) -> object:
    """Refuse what is neither a whole number nor "auto" in one sentence instead of one for each."""
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{value!r} is not a number of workers: write a whole number from 1 on, or auto")
    return value


class EngineSpec(Spec):
    """What the simulation runs on; results do not depend on it."""

    workers: Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)] = Field(
        default="auto", description="Number of worker processes; auto: one for each core or GPU."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where training runs: cpu, cuda, or auto: cuda where there is one."
    )
    instructions: Literal["portable", "native"] = Field(
        default="portable",
        description="What x86-64 processors compute with: portable: the same bits on all that have AVX2; "
        "native: the widest that each has, which is faster and gives other last bits on other processors.",
    )
    ray_address: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="Address of a running Ray cluster; null: one is started on this machine."
    )
    niceness: int = Field(
        default=0,
        ge=0,
        le=19,
        description="Niceness of the worker processes, from 0, like any other process, to 19, which leaves "
        "the cores to others; where ray_address joins a cluster, that cluster's own counts.",
    )
    timeout: float = Field(
        default=3600.0, gt=0, description="Longest time in seconds to wait for the replies to all messages."
    )
    task_timeout: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Longest time in seconds that one task may run on a worker, which is then replaced; "
        "null: as long as timeout.",
    )
    checkpoint_every: int = Field(
        default=1,
        ge=0,
        description="Rounds from one checkpoint to the next, from which `fedprune resume` goes on; 0: never.",
    )
