"""The built-in models, and the one way to build a model, built-in or a user's own, from a scenario's words.

Not for pruning: a model knows nothing of masks. What a method may rely on is order: the modules of a built-in
model are listed in the order in which they run, so the first and the last layer with weights are those of the
network, and the top-level children (``stem``, ``layer1``, ..., ``head``) are its stages.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fedprune import registry, seeds
from fedprune.errors import FedpruneError, PluginError, UserError
from fedprune.models.autoencoder import autoencoder
from fedprune.models.cnn import cnn, lenet5
from fedprune.models.cnn1d import cnn1d
from fedprune.models.efficientnet import efficientnet_lite0
from fedprune.models.mlp import mlp
from fedprune.models.mobilenet import ds_cnn, mobilenet_v1, mobilenet_v2
from fedprune.models.options import checked, wanted
from fedprune.models.recurrent import gru, lstm
from fedprune.models.resnet import resnet8, resnet18
from fedprune.models.shufflenet import shufflenet_v2
from fedprune.models.transformer import transformer
from fedprune.models.unet import unet
from fedprune.models.vgg import vgg11
from fedprune.models.vit import vit, vit_base, vit_small, vit_tiny
from fedprune.models.zoo import timm_model

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "vgg11": vgg11,
    "cnn": cnn,
    "lenet5": lenet5,
    "mlp": mlp,
    "resnet8": resnet8,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "efficientnet_lite0": efficientnet_lite0,
    "shufflenet_v2": shufflenet_v2,
    "ds_cnn": ds_cnn,
    "cnn1d": cnn1d,
    "gru": gru,
    "lstm": lstm,
    "transformer": transformer,
    "vit": vit,
    "vit_tiny": vit_tiny,
    "vit_small": vit_small,
    "vit_base": vit_base,
    "autoencoder": autoencoder,
    "unet": unet,
}

ZOOS: dict[str, Callable[[str], Callable[..., nn.Module]]] = {"timm": timm_model}
"""What a model "ZOO:name" is made by."""


def build(
    name: str,
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    seed: int,
    options: Mapping[str, object] = MappingProxyType({}),
    known: Mapping[str, object] = MappingProxyType({}),
    directory: Path | None = None,
) -> nn.Module:
    """Return a new model on the CPU, in training mode, whose initial weights depend on ``seed`` alone.

    PyTorch's global generator of the CPU is seeded while the model is built and is afterwards as it was
    before. A user's model that draws from another source is as random as that source.

    Parameters
    ----------
    name
        A key of ``MODELS``, a model of an installed plug-in, ``"timm:name"``, ``"package.module:Name"`` or
        ``"file.py:Name"``: a class or a function that is called as ``factory(input_shape, outputs,
        **options)``.
    input_shape
        Of one input, such as (C, H, W).
    outputs
        Number of values that the model returns for an input, such as one for each class.
    options
        Further arguments of the factory, such as ``width``.
    known
        What the data say besides, such as ``vocabulary``: given to a factory that has such an argument, where
        ``options`` do not.
    directory
        Folder that a relative ``"file.py:Name"`` starts from.

    Raises
    ------
    PluginError
        Where there is no such model, or what it names does not return a ``torch.nn.Module``.
    UserError
        Where an option does not exist, lacks or has a wrong type, or the model can't take such images.
    """
    factory = registry.load("model", name, directory)
    arguments = checked(factory, {**wanted(factory, known), **options}, name)
    # Not torch.manual_seed: it would seed the generators of every GPU as well, which nothing here restores.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seeds.derive(seed, "model"))
        try:
            model = factory(input_shape, outputs, **arguments)
        except FedpruneError:
            raise
        except Exception as error:  # Whatever a user's own factory raises; too large a width.
            raise UserError(f"model {name!r} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise PluginError(f"model {name!r} returned a {type(model).__name__}, not a torch.nn.Module")
    return model.train()


def check(module: nn.Module, example: Tensor, expected: tuple[int, ...], name: str) -> None:
    """Refuse a model that cannot be trained on such inputs.

    Parameters
    ----------
    module
        The model.
    example
        Two inputs, (2, ...).
    expected
        The shape of what it must return for them, (2, ...).
    name
        The model's, for messages.

    Raises
    ------
    UserError
        If it has no parameters, or others than 16- and 32-bit floats, or returns something else, in
        evaluation or in training.
    """
    parameters = list(module.named_parameters())
    if not parameters:
        raise UserError(f"model {name!r} has no parameters to train")
    for key, parameter in parameters:
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UserError(f"model {name!r}: {key!r} has no shape yet: lazy layers are not supported")
        if parameter.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise UserError(f"model {name!r}: {key!r} is {parameter.dtype}, expected torch.float32")
    # A copy, since training mode changes the statistics of batch norm; that mode may return other things.
    trained = copy.deepcopy(module).train()
    mode = module.training
    try:
        for each in (module.eval(), trained):
            _check_output(each, example, expected, name)
    finally:
        module.train(mode)


def _check_output(module: nn.Module, example: Tensor, expected: tuple[int, ...], name: str) -> None:
    kind = "images" if example.dim() == 4 else "inputs"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = module(example)
    except Exception as error:  # Whatever a user's own model raises.
        hint = "" if example.is_floating_point() else " (tokens: gru, lstm and transformer embed them)"
        raise UserError(
            f"model {name!r} does not take {kind} of shape {tuple(example.shape[1:])}{hint}: "
            f"{type(error).__name__}: {error}"
        ) from error
    when = " in training mode" if module.training else ""
    wanted = ", ".join(["B", *map(str, expected[1:])])
    if not isinstance(output, Tensor):
        raise UserError(
            f"model {name!r} returns {_what(output)}{when}; its forward must return one tensor of shape "
            f"({wanted}) alone"
        )
    found = tuple(output.shape)
    if found != expected:
        raise UserError(f"model {name!r} makes {found} of 2 {kind}{when}, expected {expected}")


def _what(output: object) -> str:
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {kind} with {', '.join(map(repr, output))}"
    if isinstance(output, tuple | list):
        return f"a {kind} of {len(output)}"
    return f"a {kind}"
