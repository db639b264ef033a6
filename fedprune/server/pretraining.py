"""Pretraining on the server's public data, before masks are chosen.

Runs that begin alike, as those of one seed in a study do, have the same model after it. Where a folder is
given, it keeps that model under a digest of all that it follows from, and the next run reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from fedprune import seeds
from fedprune.data import augmentations, batches
from fedprune.errors import RunError
from fedprune.server.federation import Federation
from fedprune.sparsity.masks import Masks
from fedprune.training.loop import train
from fedprune.wire import get_state, set_state

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def pretrain(federation: Federation, epochs: int, masks: Masks) -> dict[str, Tensor]:
    """Train ``federation.module`` on the public data as a client trains; return its state.

    Raises
    ------
    RunError
        When the loss or a weight is no longer finite.
    """
    if federation.pretrained is None:
        return _train(federation, epochs, masks)
    kept = federation.pretrained / f"{_digest(federation, epochs, masks)}.safetensors"
    with _alone(kept):
        state = _read(kept)
        if state is None:
            state = _train(federation, epochs, masks)
            unfinished = kept.with_suffix(".unfinished")
            unfinished.write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}))
            unfinished.replace(kept)
    set_state(federation.module, state)
    return state


def _train(federation: Federation, epochs: int, masks: Masks) -> dict[str, Tensor]:
    spec = federation.scenario.clients.training
    generator = seeds.torch_generator(federation.scenario.seed, "pretrain")
    augment = augmentations(federation.scenario.data.augment, federation.scenario.directory)

    def public() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(epochs):
            yield from batches(
                federation.examples,
                federation.public,
                federation.task,
                spec.batch_size,
                generator=generator,
                augment=augment,
            )

    trained = train(
        federation.module, public(), federation.task, spec.optimizer, lr=spec.optimizer.lr, masks=masks
    )
    state = get_state(federation.module)
    if not (isfinite(trained.loss) and all(tensor.isfinite().all() for tensor in state.values())):
        raise RunError(f"pretraining diverged (loss {trained.loss:g}): lower clients.training.optimizer.lr")
    return state


def _digest(federation: Federation, epochs: int, masks: Masks) -> str:
    """Return a digest of all that a model after pretraining follows from."""
    scenario, images, public = federation.scenario, federation.examples, federation.public
    settings = {
        "model": scenario.model.model_dump(mode="json"),
        "modules": repr(federation.module),
        "optimizer": scenario.clients.training.optimizer.model_dump(mode="json"),
        "batch_size": scenario.clients.training.batch_size,
        "epochs": epochs,
        "seed": scenario.seed,
        "augment": scenario.data.model_dump(mode="json", include={"augment"})["augment"],
        "inputs": repr(federation.info.inputs),
        "task": scenario.model_dump(mode="json").get("task", federation.info.task),
        "torch": torch.__version__,
        "instructions": scenario.engine.instructions,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    digest.update(images.inputs[public].tobytes())
    digest.update(images.targets[public].tobytes())
    _add(digest, get_state(federation.module))
    _add(digest, masks)
    return digest.hexdigest()


def _add(digest: hashlib.blake2b, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return a kept state; None where there is none, or what there is was broken off."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let no other process compute what a path is to hold; it waits, and reads it then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
