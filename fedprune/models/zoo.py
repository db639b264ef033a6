"""Models of timm, by their name there: "timm:mobilenetv2_100".

Not for their weights: those of a zoo are as any file's, for `fedprune.models.weights`; none is downloaded.
timm is imported when a model of it is named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fedprune.errors import PluginError, UserError
from fedprune.wording import did_you_mean, one_line

# Arguments of timm's create_model that get weights from somewhere, or that are the data's to say.
_TAKEN = {
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
        "weights are never downloaded, and model.weights names a file",
    ),
    **dict.fromkeys(("num_classes", "in_chans", "img_size"), "the data say it"),
    "features_only": "the model must return one tensor",
}


def timm_model(variant: str) -> Callable[..., nn.Module]:
    """Return the factory of a model of timm: ``factory(input_shape, outputs, **options)``.

    It takes images. Options are those of timm's ``create_model``, such as ``drop_rate``; a model for images
    of one size alone, as vision transformers are, is made for that of the data. Weights are drawn as timm
    does.

    Parameters
    ----------
    variant
        What timm calls it, with or without the tag of its pretrained weights, of which none are read.

    Raises
    ------
    PluginError
        Where timm cannot be imported, or has no such model.
    """
    try:
        import timm
    except Exception as error:  # Beside a torchvision of another build timm raises a RuntimeError.
        raise PluginError(
            f"model 'timm:{variant}' needs timm, which cannot be imported ({one_line(error)}): install timm, "
            "and the torchvision of this build of PyTorch (timm's docs and PyTorch's say how)"
        ) from error
    if not timm.is_model(variant):
        raise PluginError(
            f"timm {timm.__version__} has no model {variant!r}{did_you_mean(variant, timm.list_models())}"
        )

    def factory(input_shape: tuple[int, ...], outputs: int, **options: Any) -> nn.Module:
        if len(input_shape) != 3:
            raise UserError(
                f"timm:{variant} needs images, (channels, height, width), and an input here has the shape "
                f"{input_shape}: take a built-in model for such inputs"
            )
        for name in options:
            if name in _TAKEN:
                raise UserError(f"model 'timm:{variant}': {name} is no option: {_TAKEN[name]}")
        channels, *size = input_shape
        known = timm.get_pretrained_cfg(variant)
        if known is not None and known.fixed_input_size:
            options["img_size"] = tuple(size)
        model: nn.Module = timm.create_model(
            variant, pretrained=False, num_classes=outputs, in_chans=channels, **options
        )
        return model

    return factory
