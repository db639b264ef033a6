"""Models that begin with values from a file: what they then compute, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from built_in import CASES
from networks import Tied
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.nn import functional

from fedprune.errors import UserError
from fedprune.models import build
from fedprune.models.vit_names import resampled
from fedprune.models.weights import begin_with, read_tensors

OPTIONS: dict[str, Any] = {"patch": 4, "size": 16, "layers": 3, "heads": 2}


def vit(side: int = 16, classes: int = 5, **options: Any) -> nn.Module:
    return build("vit", (3, side, side), classes, seed=0, options={**OPTIONS, **options}).eval()


def timm_checkpoint(side: int = 16, classes: int = 5, layers: int = 3) -> dict[str, Tensor]:
    """Return random tensors under the names and in the shapes of timm's ``VisionTransformer``."""
    shapes = {
        "cls_token": (1, 1, 16),
        "pos_embed": (1, 1 + (side // 4) ** 2, 16),
        "patch_embed.proj.weight": (16, 3, 4, 4),
        "patch_embed.proj.bias": (16,),
        "norm.weight": (16,),
        "norm.bias": (16,),
        "head.weight": (classes, 16),
        "head.bias": (classes,),
    }
    for block in (f"blocks.{number}" for number in range(layers)):
        for name, rows, columns in (
            ("attn.qkv", 48, 16),
            ("attn.proj", 16, 16),
            ("mlp.fc1", 64, 16),
            ("mlp.fc2", 16, 64),
        ):
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.weight": (16,), f"{block}.{name}.bias": (16,)}
    draws = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def timm_forward(tensors: dict[str, Tensor], x: Tensor, layers: int = 3, heads: int = 2) -> Tensor:
    """Compute what timm's ``VisionTransformer`` does with such tensors, by PyTorch's own functions."""

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (16,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-6)

    embedded = functional.conv2d(
        x, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], stride=4
    )
    x = torch.cat([tensors["cls_token"].expand(len(x), -1, -1), embedded.flatten(2).mT], dim=1)
    x = x + tensors["pos_embed"]
    for block in (f"blocks.{number}" for number in range(layers)):
        batch, length, size = x.shape
        fused = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        q, k, v = fused.reshape(batch, length, 3, heads, size // heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + linear(f"{block}.attn.proj", mixed)
        hidden = functional.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x)))
        x = x + linear(f"{block}.mlp.fc2", hidden)
    return linear("head", norm("norm", x)[:, 0])


def test_a_checkpoint_with_the_names_of_timm_computes_what_timm_does() -> None:
    model, tensors, x = vit(), timm_checkpoint(), torch.randn(4, 3, 16, 16)
    assert begin_with(model, tensors) == []
    torch.testing.assert_close(model(x), timm_forward(tensors, x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_transformers_computes_what_transformers_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        num_labels=5,
    )
    theirs = transformers.ViTForImageClassification(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    # Version 5 has other names in memory than in its files; both are taken.
    save_file(theirs.state_dict(), tmp_path / "state.safetensors")
    x = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = theirs(x).logits
        for name in ("model.safetensors", "state.safetensors"):
            model = vit(epsilon=config.layer_norm_eps)
            assert begin_with(model, read_tensors(tmp_path / name)[0]) == []
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        # The bare model has no classifier, and a pooler that is not used.
        bare = transformers.ViTModel(config).eval()
        bare.save_pretrained(tmp_path / "bare")
        model, x = vit(epsilon=config.layer_norm_eps), torch.randn(2, 3, 16, 16)
        (note,) = begin_with(model, read_tensors(tmp_path / "bare" / "model.safetensors")[0])
        assert note == "as drawn: head.weight and head.bias (the file has none)"
        hidden = bare(x).last_hidden_state[:, 0]
        torch.testing.assert_close(model[:-1](x), hidden, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [(7, 7), (3, 3), (2, 5)])
def test_positions_are_interpolated_plane_by_plane_and_the_class_token_s_stays(grid: tuple[int, int]) -> None:
    positions = torch.randn(1, 1 + 5 * 5, 3)
    found = resampled(positions, grid)
    assert found is not None
    assert torch.equal(found[:, 0], positions[:, 0])
    for channel in range(3):
        plane = torch.empty(5, 5)
        for place in range(25):
            plane[place // 5, place % 5] = positions[0, 1 + place, channel]
        expected = functional.interpolate(plane[None, None], size=grid, mode="bicubic", antialias=True)[0, 0]
        for row in range(grid[0]):
            for column in range(grid[1]):
                value = found[0, 1 + row * grid[1] + column, channel]
                torch.testing.assert_close(value, expected[row, column])


def test_a_model_for_larger_pictures_has_the_interpolated_positions() -> None:
    model, tensors = vit(side=24), timm_checkpoint()
    assert begin_with(model, tensors) == ["positions are interpolated from 4x4 patches to 6x6"]
    assert torch.equal(model.state_dict()["embedding.positions"], resampled(tensors["pos_embed"], (6, 6)))


def test_as_many_patches_in_other_proportions_are_interpolated_unless_the_names_are_its_own() -> None:
    def wide() -> nn.Module:
        return build("vit", (3, 8, 32), 5, seed=0, options=OPTIONS)

    model, tensors = wide(), timm_checkpoint()
    assert begin_with(model, tensors) == ["positions are interpolated from 4x4 patches to 2x8"]
    assert torch.equal(model.state_dict()["embedding.positions"], resampled(tensors["pos_embed"], (2, 8)))
    again = wide()
    assert begin_with(again, model.state_dict()) == []
    assert torch.equal(again.embedding.positions, model.embedding.positions)


def test_what_is_the_same_everywhere_stays_so_at_any_size() -> None:
    positions = torch.full((1, 10, 4), 0.7)
    found = resampled(positions, (2, 6))
    torch.testing.assert_close(found, torch.full((1, 13, 4), 0.7))


def test_prompts_and_a_classifier_of_other_classes_stay_as_drawn_and_all_else_is_the_file_s() -> None:
    drawn, model = vit(classes=7, prompts=2), vit(classes=7, prompts=2)
    notes = begin_with(model, timm_checkpoint())
    assert notes == [
        "as drawn: embedding.prompts (the file has none)",
        "as drawn: head.weight and head.bias (the file has 5 outputs, the model 7)",
    ]
    for (name, value), before in zip(model.state_dict().items(), drawn.state_dict().values(), strict=True):
        assert torch.equal(value, before) == (name in ("embedding.prompts", "head.weight", "head.bias"))
    # With prompts that are in the file it is the same model again.
    again = vit(classes=7, prompts=2)
    assert begin_with(again, model.state_dict()) == []
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "unet", "transformer of tokens", "lstm"])
def test_any_model_takes_a_state_dict_of_its_own(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    there, here = case.build(seed=1).eval(), case.build(seed=2).eval()
    for module in there.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    save_file(there.state_dict(), tmp_path / "weights.safetensors")
    assert begin_with(here, read_tensors(tmp_path / "weights.safetensors")[0]) == []
    x = case.examples(2)
    assert torch.equal(here(x), there(x))


def test_another_precision_is_converted_and_counters_may_be_absent() -> None:
    there, here = CASES["cnn"].build(seed=1), CASES["cnn"].build(seed=2)
    half = {
        name: tensor.half()
        for name, tensor in there.state_dict().items()
        if "num_batches_tracked" not in name
    }
    assert begin_with(here, half) == []
    for name, tensor in half.items():
        assert torch.equal(here.state_dict()[name], tensor.float())


def test_a_shared_weight_is_found_under_any_of_its_names(tmp_path: Path) -> None:
    there, here = Tied((3, 8, 8), 4), Tied((3, 8, 8), 4)
    save_model(there, str(tmp_path / "weights.safetensors"))  # It keeps one of the names.
    tensors = read_tensors(tmp_path / "weights.safetensors")[0]
    for name in ("one.weight", "other.weight"):
        (kept,) = tensors.keys() & {"one.weight", "other.weight"}
        begin_with(here, {(name if each == kept else each): value for each, value in tensors.items()})
        assert torch.equal(here.one.weight, there.one.weight)
    assert here.one.weight is here.other.weight


def changed(**changes: Any) -> dict[str, Tensor]:
    """Return a checkpoint with tensors replaced, or left out where None."""
    tensors = {**timm_checkpoint(), **{name.replace("__", "."): value for name, value in changes.items()}}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


MISFITS: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "width": (
        timm_checkpoint(),
        {"size": 32},
        r"'cls_token' \('embedding.class_token' in the model\) has shape \(1, 1, 16\), and the model "
        r"\(1, 1, 32\): take the model, with the options, that the file was made with",
    ),
    "fused": (
        changed(blocks__1__attn__qkv__weight=torch.zeros(48, 8)),
        {},
        r"'blocks.1.attn.qkv.weight' \('blocks.1.attention.query.weight' in the model\) has shape \(16, 8\)",
    ),
    "depth": (
        timm_checkpoint(layers=2),
        {},
        r"lacks 'blocks.2.norm1.weight', of shape \(16,\) in the model",
    ),
    "too deep": (
        timm_checkpoint(layers=4),
        {},
        r"holds 'blocks.3.attn.qkv.weight' of shape \(16, 16\), not in the model",
    ),
    "missing": (changed(norm__bias=None), {}, r"lacks 'norm.bias', of shape \(16,\) in the model"),
    "half a classifier": (changed(head__bias=None), {}, r"lacks 'head.bias', of shape \(5,\)"),
    "extra": (changed(dist_token=torch.zeros(1, 1, 16)), {}, r"holds 'dist_token' of shape \(1, 1, 16\)"),
    "prompts": (
        {**vit(prompts=2).state_dict()},
        {},
        r"holds 'embedding.prompts' of shape \(1, 2, 16\), not in the model",
    ),
    "no square": (
        changed(pos_embed=torch.zeros(1, 12, 16)),
        {},
        r"'pos_embed' has shape \(1, 12, 16\), no square of patches and a class token, and the model "
        r"\(1, 17, 16\)",
    ),
    "whole numbers": (
        changed(norm__bias=torch.zeros(16, dtype=torch.int64)),
        {},
        r"'norm.bias' holds torch.int64, and the model torch.float32",
    ),
    "not finite": (
        changed(norm__bias=torch.full((16,), torch.nan)),
        {},
        r"'norm.bias' holds values that are not finite",
    ),
    "another model": (
        {"conv1.weight": torch.zeros(2, 2), "fc.weight": torch.zeros(2)},
        {},
        r"holds 'conv1.weight', 'fc.weight', of which the model, with 'embedding.class_token', .* has none",
    ),
    "nothing": ({}, {}, "holds no tensors, of which the model"),
}


@pytest.mark.parametrize(("tensors", "options", "message"), MISFITS.values(), ids=MISFITS)
def test_what_is_not_of_the_model_is_refused_in_one_sentence_and_changes_nothing(
    tensors: dict[str, Tensor], options: dict[str, Any], message: str
) -> None:
    model = vit(**options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=f"^{message}") as refused:
        begin_with(model, tensors)
    assert "\n" not in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_file_that_is_none_or_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    torch.save(vit().state_dict(), path)
    with pytest.raises(UserError, match=r"is no safetensors file.*save_file"):
        read_tensors(path, values=False)
    save_file(vit().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="is no safetensors file, or damaged"):
        read_tensors(path, values=False)
    with pytest.raises(UserError, match=r"weigths.safetensors is no file"):
        read_tensors(tmp_path / "weigths.safetensors")
    with pytest.raises(UserError, match="is no file"):
        read_tensors(tmp_path)
