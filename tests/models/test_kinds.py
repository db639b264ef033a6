"""Models for sequences, sounds, tables and segmentation: what they return, and what they look at."""

from __future__ import annotations

import pytest
import torch
from built_in import CASES, Case
from torch import nn
from torch.nn import functional

from fedprune.errors import UserError
from fedprune.models import MODELS, build, check
from fedprune.models.layers import initialise, with_norm


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_takes_its_inputs_and_all_its_weights_learn(case: Case) -> None:
    model, examples = case.build(), case.examples(3)
    check(model, examples[:2], (2, *case.shape), case.name)
    outputs = model(examples)
    assert outputs.shape == (3, *case.shape)
    outputs.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_layers_are_listed_in_the_order_in_which_they_run(case: Case) -> None:
    model = case.build()
    leaves = [module for module in model.modules() if not list(module.children())]
    run: list[nn.Module] = []
    for leaf in leaves:
        leaf.register_forward_hook(lambda module, _inputs, _output: run.append(module))
    model(case.examples(2))
    assert [id(module) for module in run] == [id(module) for module in leaves]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_example_is_judged_by_itself_in_evaluation(case: Case) -> None:
    model, examples = case.build().eval(), case.examples(4)
    together = model(examples)
    for number in range(4):
        torch.testing.assert_close(model(examples[number : number + 1])[0], together[number])


@pytest.mark.parametrize("name", ["gru of tokens", "lstm of tokens", "transformer of tokens"])
def test_padding_behind_a_sequence_changes_nothing(name: str) -> None:
    model = CASES[name].build(seed=1).eval()
    words = torch.tensor([[3, 9, 4]])
    padded = torch.cat([words, torch.zeros(1, 2, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(model(padded), model(words))


def test_padding_before_a_sequence_is_not_attended_to() -> None:
    model = CASES["transformer of tokens"].build(seed=1).eval()
    words, zeros = torch.tensor([[3, 9, 4]]), torch.zeros(1, 2, dtype=torch.int64)
    with torch.no_grad():
        expected = model(words)
        model.positions.weight.copy_(model.positions.weight.roll(2, dims=0))
    torch.testing.assert_close(model(torch.cat([zeros, words], dim=1)), expected)


@pytest.mark.parametrize("name", ["gru of tokens", "lstm of tokens", "transformer of tokens"])
def test_a_sequence_of_padding_alone_gives_finite_outputs_and_gradients(name: str) -> None:
    model = CASES[name].build()
    outputs = model(torch.zeros(2, 7, dtype=torch.int64))
    assert outputs.isfinite().all()
    outputs.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("name", ["gru of each token", "causal transformer"])
def test_what_predicts_the_next_token_has_not_seen_it(name: str) -> None:
    case = CASES[name]
    model = case.build().eval()
    first, second = case.examples(2)
    mixed = torch.cat([first[:4], second[4:]])
    assert not torch.equal(mixed, first)
    found, expected = model(mixed[None])[0], model(first[None])[0]
    torch.testing.assert_close(found[:4], expected[:4])
    assert not torch.allclose(found[4:], expected[4:])


def test_attention_is_that_of_pytorch() -> None:
    block = CASES["transformer"].build().blocks[0].attention
    x = torch.randn(2, 5, 16)
    hidden = torch.rand(2, 1, 5) < 0.3
    hidden[..., 0] = False  # What sees nothing at all has no mean.
    query, key, value = (
        layer(x).view(2, 5, 4, 4).transpose(1, 2) for layer in (block.query, block.key, block.value)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=~hidden[:, None])
    torch.testing.assert_close(block(x, hidden), block.out(mixed.transpose(1, 2).reshape(2, 5, 16)))


def test_a_transformer_tells_the_order_and_a_mean_of_its_inputs_could_not() -> None:
    model = CASES["transformer of tokens"].build().eval()
    assert not torch.allclose(model(torch.tensor([[3, 9, 4]])), model(torch.tensor([[9, 3, 4]])))


@pytest.mark.parametrize(("channels", "groups"), [(64, 4), (48, 3), (40, 2), (16, 1), (5, 1), (34, 2)])
def test_group_norm_has_sixteen_channels_a_group_or_the_fewest_more_that_divide(
    channels: int, groups: int
) -> None:
    model = with_norm(nn.Sequential(nn.Conv2d(1, channels, 1, bias=False), nn.BatchNorm2d(channels)), "group")
    assert isinstance(model[1], nn.GroupNorm)
    assert model[1].num_groups == groups
    assert model[0].bias is None


def test_layer_norm_is_over_all_channels_and_positions() -> None:
    model = with_norm(nn.Sequential(nn.BatchNorm2d(6)), "layer")
    x = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(model(x), functional.layer_norm(x, x.shape[1:]))


@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet8", "cnn", "vgg11", "mobilenet_v2", "unet", "autoencoder"]
)
def test_the_norm_is_an_option_and_leaves_the_weights_as_they_are(name: str, norm: str) -> None:
    options = {"width": 0.125, "norm": norm}
    plain, other = (build(name, (3, 16, 16), 4, seed=1, options=each) for each in ({"width": 0.125}, options))
    found, before = other.state_dict(), plain.state_dict()
    for key, value in before.items():
        if "norm" not in key:
            assert torch.equal(found[key], value)
    kinds = {type(module).__name__ for module in other.modules() if "Norm" in type(module).__name__}
    batch = {"BatchNorm1d"} if name == "autoencoder" else {"BatchNorm2d"}
    assert kinds == {"batch": batch, "none": set()}.get(norm, {"GroupNorm"})


@pytest.mark.parametrize("name", ["resnet18", "cnn", "vgg11"])
def test_batch_norm_false_is_norm_none_and_contradicts_another(name: str) -> None:
    bare, none = (
        build(name, (1, 8, 8), 4, seed=1, options={"width": 0.1, **each}).state_dict()
        for each in ({"batch_norm": False}, {"norm": "none"})
    )
    assert bare.keys() == none.keys()
    assert all(torch.equal(bare[key], none[key]) for key in bare)
    with pytest.raises(UserError, match="contradict"):
        build(name, (1, 8, 8), 4, seed=1, options={"batch_norm": False, "norm": "group"})


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("ds_cnn", (9, 128), {}, r"needs images, .* shape \(9, 128\).*cnn1d"),
        ("resnet8", (64,), {}, r"needs images, .* shape \(64,\).*mlp"),
        ("cnn1d", (3, 32, 32), {}, r"needs sequences, .* shape \(3, 32, 32\).*cnn"),
        ("gru", (3, 32, 32), {}, r"needs sequences"),
        ("lstm", (7,), {}, r"needs sequences, .* shape \(7,\)"),
        ("transformer", (3, 8), {"vocabulary": 9}, r"takes tokens of shape \(length,\)"),
        ("transformer", (3, 8), {"size": 10, "heads": 4}, "multiple of heads"),
        ("unet", (1, 20, 16), {}, "20x16: resize them to multiples of 8 pixels"),
    ],
)
def test_what_a_model_does_not_take_is_refused_with_what_would_be_right(
    name: str, shape: tuple[int, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        MODELS[name](shape, 4, **options)


def test_a_model_without_an_embedding_says_which_models_take_tokens() -> None:
    with pytest.raises(UserError, match=r"'mlp' does not take inputs of shape .*gru, lstm and transformer"):
        check(MODELS["mlp"]((7,), 4), torch.zeros(2, 7, dtype=torch.int64), (2, 4), "mlp")


def test_a_transposed_convolution_keeps_the_size_of_what_passes() -> None:
    """The variance of its outputs is twice that of its inputs, as for a ReLU, whatever kernel and stride."""
    torch.manual_seed(0)
    for kernel, stride in ((2, 2), (4, 2), (3, 1)):
        layer = initialise(nn.ConvTranspose2d(64, 32, kernel, stride=stride))
        y = layer(torch.randn(4, 64, 32, 32))[:, :, 8:-8, 8:-8]
        assert y.var().item() == pytest.approx(2, rel=0.1)
