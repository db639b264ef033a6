"""The built-in models, and the one way to build a model, built-in or a user's own, from a scenario's words.

Not for pruning: a model knows nothing of masks. What a method may rely on is order: the modules of a built-in
model are listed in the order in which they run, so the first and the last layer with weights are those of the
network, and the top-level children (``stem``, ``layer1``, ..., ``head``) are its stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from fedprune import registry, seeds
from fedprune.errors import PluginError
from fedprune.models.cnn import cnn, lenet5
from fedprune.models.mlp import mlp
from fedprune.models.options import checked
from fedprune.models.resnet import resnet18
from fedprune.models.vgg import vgg11

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "vgg11": vgg11,
    "cnn": cnn,
    "lenet5": lenet5,
    "mlp": mlp,
}


def build(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    *,
    seed: int,
    options: Mapping[str, object] = MappingProxyType({}),
    directory: Path | None = None,
) -> nn.Module:
    """Return a new model on the CPU, in training mode, whose initial weights depend on ``seed`` alone.

    PyTorch's global generator of the CPU is seeded while the model is built and is afterwards as it was
    before. A model of a user's own that draws from another source is as random as that source.

    Parameters
    ----------
    name
        A key of ``MODELS``, a model of an installed plug-in, ``"package.module:Name"`` or ``"file.py:Name"``:
        a class or a function that is called as ``factory(input_shape, classes, **options)``.
    input_shape
        (C, H, W) of one picture.
    classes
        Number of logits.
    options
        Further arguments of the factory, such as ``width``.
    directory
        Folder that a relative ``"file.py:Name"`` starts from.

    Raises
    ------
    PluginError
        Where there is no such model, or what it names does not return a ``torch.nn.Module``.
    UserError
        Where an option does not exist, lacks or has a wrong type, or the model can't take such pictures.
    """
    factory = registry.load("model", name, directory)
    arguments = checked(factory, options, name)
    # Not torch.manual_seed: it would seed the generators of every GPU as well, which nothing here restores.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeds.derive(seed, "model"))
        model = factory(input_shape, classes, **arguments)
    if not isinstance(model, nn.Module):
        raise PluginError(f"model {name!r} returned a {type(model).__name__}, not a torch.nn.Module")
    return model.train()
