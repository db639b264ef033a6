"""The built-in models: their sizes against published and hand-counted numbers, their shapes, their order."""

import pytest
import torch
from built_in import PICTURES
from torch import nn

from fedprune.costs.flops import ModelCost
from fedprune.errors import UserError
from fedprune.models import MODELS, build
from fedprune.models.layers import scaled
from fedprune.models.shufflenet import ShuffleUnit
from fedprune.sparsity.masks import Masks

CIFAR, MNIST, DIGITS = (3, 32, 32), (1, 28, 28), (1, 8, 8)
SMALLEST_SIDE = {
    "resnet18": 8,
    "vgg11": 8,
    "cnn": 4,
    "lenet5": 12,
    "mlp": 1,
    "resnet8": 4,
    "mobilenet_v1": 1,
    "mobilenet_v2": 1,
    "efficientnet_lite0": 1,
    "shufflenet_v2": 1,
    "ds_cnn": 2,
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "input_shape", "outputs", "count"),
    [
        ("resnet18", CIFAR, 10, 11_173_962),
        # 9,231,114 with the 2,752 biases that batch norm makes redundant.
        ("vgg11", CIFAR, 10, 9_231_114 - 2_752),
        ("lenet5", MNIST, 10, 61_706),
        ("mlp", MNIST, 10, 199_210),  # the 2NN of McMahan et al. (2017)
        ("mobilenet_v2", (3, 224, 224), 1000, 3_504_872),  # torchvision's
        ("efficientnet_lite0", (3, 224, 224), 1000, 4_652_008),  # timm's
        # Those of MLPerf Tiny as Keras counts them, with running statistics and redundant biases, which are
        # left out here: 240 and 2,736 and 576 and 1,032 channels with batch norm, and biases of as many. Of
        # ResNet-8's shortcuts, with 96 channels, there only the biases count, and here only the norm.
        ("resnet8", CIFAR, 10, 78_666 - 2 * 240 - 240 - 96 + 2 * 96),
        ("mobilenet_v1", (3, 96, 96), 2, 221_794 - 3 * 2_736),
        ("ds_cnn", (1, 49, 10), 12, 24_908 - 3 * 576),
        ("autoencoder", (640,), 640, 269_992 - 3 * 1_032),
        ("cnn", DIGITS, 10, 9 * 32 + 64 + 9 * 32 * 64 + 128 + (4 * 64 + 1) * 128 + 129 * 10),
    ],
)
def test_parameter_count_is_the_known_one(
    name: str, input_shape: tuple[int, ...], outputs: int, count: int
) -> None:
    assert parameters(MODELS[name](input_shape, outputs)) == count


@pytest.mark.parametrize(
    # Parameters: torchvision's. Multiply-accumulates of an image: the paper's, in millions (table 8).
    ("width", "count", "millions"),
    [(0.5, 1_366_792, 41), (1.0, 2_278_604, 146), (1.5, 3_503_624, 299), (2.0, 7_393_996, 591)],
)
def test_shufflenet_has_the_published_size_at_each_width_of_the_paper(
    width: float, count: int, millions: int
) -> None:
    with torch.device("meta"):
        model = MODELS["shufflenet_v2"]((3, 224, 224), 1000, width=width)
    assert parameters(model) == count
    products = ModelCost.of(model, (3, 224, 224)).matmul_flops(Masks(), 1).forward
    assert products / 2e6 == pytest.approx(millions, rel=0.02)


def test_a_shuffle_unit_passes_half_of_the_channels_at_even_places() -> None:
    x = torch.randn(2, 6, 4, 5)
    unit = ShuffleUnit(6).eval()
    with torch.no_grad():
        y = unit(x)
        assert torch.equal(y[:, 0::2], x[:, :3])
        assert torch.equal(y[:, 1::2], unit.right(x[:, 3:]))


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize(
    ("input_shape", "classes", "width"),
    [(CIFAR, 10, 0.25), (MNIST, 47, 0.1), ((3, 48, 33), 2, 0.1), ((2, 12, 17), 100, 0.01)],
)
def test_logits_and_gradients(
    name: str, input_shape: tuple[int, int, int], classes: int, width: float
) -> None:
    model = MODELS[name](input_shape, classes, width=width)
    logits = model(torch.rand(3, *input_shape))
    assert logits.shape == (3, classes)
    logits.logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", PICTURES)
def test_smallest_images_work_and_smaller_ones_are_refused(name: str) -> None:
    side = SMALLEST_SIDE[name]
    model = MODELS[name]((1, side, side + 1), 3, width=0.1)
    assert model(torch.rand(2, 1, side, side + 1)).shape == (2, 3)
    if side > 1:
        with pytest.raises(UserError, match=f"at least {side}x{side} pixels"):
            MODELS[name]((1, side + 1, side - 1), 3)


@pytest.mark.parametrize("name", PICTURES)
def test_modules_are_listed_in_the_order_in_which_they_run(name: str) -> None:
    model = MODELS[name](CIFAR, 10, width=0.1)
    leaves = [module for module in model.modules() if not list(module.children())]
    run: list[nn.Module] = []
    for leaf in leaves:
        leaf.register_forward_hook(lambda module, _inputs, _output: run.append(module))
    model(torch.rand(2, *CIFAR))
    assert [id(module) for module in run] == [id(module) for module in leaves]


# ShuffleNetV2's widths are a table, and its first convolution is the same at each.
@pytest.mark.parametrize("name", [name for name in PICTURES if name != "shufflenet_v2"])
def test_width_scales_hidden_layers_and_keeps_input_and_output(name: str) -> None:
    def weights(width: float) -> list[torch.Size]:
        model = MODELS[name](CIFAR, 10, width=width)
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        # A depthwise convolution has one input a filter, whatever the width.
        return [m.weight.shape for m in layers if getattr(m, "groups", 1) == 1]

    full, double = weights(1.0), weights(2.0)
    assert double[-1] == (10, 2 * full[-1][1])
    assert double[0][0] == 2 * full[0][0]
    assert double[0][1:] == full[0][1:]
    assert all(d[:2] == (2 * f[0], 2 * f[1]) for d, f in zip(double[1:-1], full[1:-1], strict=True))


def test_channels_are_rounded_to_the_nearest_and_never_vanish() -> None:
    assert [scaled(64, width) for width in (1.0, 0.25, 0.0001)] == [64, 16, 1]
    assert [scaled(6, 0.25), scaled(6, 0.3)] == [2, 2]


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_width_is_refused(width: float) -> None:
    with pytest.raises(UserError, match="width"):
        MODELS["cnn"](DIGITS, 10, width=width)


def test_mlp_has_the_hidden_layers_asked_for() -> None:
    model = MODELS["mlp"](DIGITS, 10, hidden=[7, 5, 3])
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)]
    assert shapes == [(7, 64), (5, 7), (3, 5), (10, 3)]
    assert parameters(MODELS["mlp"](DIGITS, 10, hidden=[])) == 64 * 10 + 10
    with pytest.raises(UserError, match="at least 1 unit"):
        MODELS["mlp"](DIGITS, 10, hidden=[7, 0])


@pytest.mark.parametrize("name", PICTURES)
def test_initial_weights_are_he_normal_and_batch_norm_is_affine(name: str) -> None:
    torch.manual_seed(0)
    for module in MODELS[name](CIFAR, 10).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            spread = module.weight.std().item() * (fan_in / 2) ** 0.5
            assert spread == pytest.approx(1, abs=5 / (2 * module.weight.numel()) ** 0.5)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert module.affine


def test_images_of_eight_pixels_train_in_all_that_take_them() -> None:
    """Batch norm in training mode sees one pixel a channel in the last stages there."""
    for name in ("resnet18", "vgg11", "cnn", "mlp"):
        model = MODELS[name](DIGITS, 10, width=0.1).train()
        assert model(torch.rand(2, *DIGITS)).isfinite().all()


@pytest.mark.parametrize("name", ["cnn", "resnet18", "vgg11"])
def test_without_batch_norm_convolutions_have_biases_and_the_same_weights(name: str) -> None:
    plain = build(name, (3, 16, 16), 10, seed=1, options={"width": 0.125})
    bare = build(name, (3, 16, 16), 10, seed=1, options={"width": 0.125, "batch_norm": False})
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in bare.modules())
    assert all(not layer.bias.any() for layer in bare.modules() if isinstance(layer, nn.Conv2d))
    weights, before = bare.state_dict(), plain.state_dict()
    assert not any("norm" in key for key in weights)
    shared = weights.keys() & before.keys()
    assert all(torch.equal(weights[key], before[key]) for key in shared)
    assert {key for key in before if "norm" not in key} == shared
    bare(torch.randn(2, 3, 16, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in bare.parameters())
