"""EfficientNet-Lite0: inverted residuals as in MobileNetV2, of the numbers that a search found.

Not for EfficientNet itself, whose squeeze-and-excitation and swish accelerators of devices do badly.
"""

from __future__ import annotations

from torch import nn

from fedprune.models.layers import Norm, require_side
from fedprune.models.mobilenet import Stage, inverted_residuals

# Tan and Le (ICML 2019, table 1): EfficientNet-B0, of which Lite0 has the stages.
_LITE0 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 40, 2, 2, kernel=5),
    Stage(6, 80, 3, 2),
    Stage(6, 112, 3, 1, kernel=5),
    Stage(6, 192, 4, 2, kernel=5),
    Stage(6, 320, 1, 1),
)


def efficientnet_lite0(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    stem_stride: int = 2,
    norm: Norm = "batch",
) -> nn.Sequential:
    """EfficientNet-Lite0: inverted residuals with kernels of 3 and 5; 3.4 million weights and the head.

    EfficientNet-B0 of Tan and Le (ICML 2019, table 1) as Google changed it for phones (EfficientNet-Lite,
    2020): with ReLU6, and without squeeze-and-excitation. Without the dropout before the head and without
    stochastic depth; convolutions are padded alike on all sides, where TensorFlow pads those of stride 2 at
    two.

    Parameters
    ----------
    input_shape
        (C, H, W), any; 224x224 there.
    outputs
        Number of values for each image, such as one for each class.
    width
        Scales the channels; the last convolution, with 1,280, becomes wider and not narrower. Lite1 to Lite4
        are not widths of this model: they are deeper.
    stem_stride
        Of the first convolution: 1 for images of about 32 pixels.
    norm
        What follows convolutions: batch, group or layer norm, or none, and then they have a bias each.
    """
    require_side("efficientnet_lite0", input_shape, 1)
    return inverted_residuals(
        _LITE0, input_shape[0], outputs, width=width, stem_stride=stem_stride, norm=norm
    )
