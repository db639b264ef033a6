"""The vision transformer: published sizes, where prompts go, and that any part of it runs by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedprune.errors import UserError
from fedprune.models import MODELS, build

SHAPE = (3, 8, 12)
SMALL = {"patch": 4, "size": 16, "layers": 3, "heads": 2}


def small(**options: Any) -> nn.Sequential:
    model = build("vit", SHAPE, 5, seed=1, options={**SMALL, **options}).eval()
    assert isinstance(model, nn.Sequential)
    return model


@pytest.mark.parametrize(
    # timm's, of vit_{tiny,small,base}_patch16_224.
    ("name", "count"),
    [("vit_tiny", 5_717_416), ("vit_small", 22_050_664), ("vit_base", 86_567_656)],
)
def test_a_preset_has_as_many_parameters_as_is_known(name: str, count: int) -> None:
    with torch.device("meta"):
        model = MODELS[name]((3, 224, 224), 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_prompts_add_their_values_and_nothing_else() -> None:
    plain, prompted = small().state_dict(), small(prompts=4).state_dict()
    assert prompted.keys() - plain.keys() == {"embedding.prompts"}
    assert prompted["embedding.prompts"].shape == (1, 4, 16)
    # VPT: uniform with the variance of Glorot for a layer from a patch's pixels to a token.
    assert prompted["embedding.prompts"].abs().max() <= (6 / (3 * 4 * 4 + 16)) ** 0.5


def test_tokens_are_the_class_prompts_without_a_position_and_the_patches_row_by_row() -> None:
    model, x = small(prompts=2), torch.randn(2, *SHAPE)
    embedding = model.embedding
    with torch.no_grad():
        embedding.positions.normal_()
        tokens = model[0](x)
        assert tokens.shape == (2, 1 + 2 + 6, 16)
        for example in range(2):
            torch.testing.assert_close(
                tokens[example, 0], (embedding.class_token + embedding.positions[:, :1])[0, 0]
            )
            torch.testing.assert_close(tokens[example, 1:3], embedding.prompts[0])
        place = 0
        for row in (0, 4):
            for column in (0, 4, 8):
                pixels = x[:, :, row : row + 4, column : column + 4]
                patch = embedding.patch(pixels).flatten(1) + embedding.positions[0, 1 + place]
                torch.testing.assert_close(tokens[:, 3 + place], patch)
                place += 1


def test_the_answer_depends_on_prompts_and_on_where_a_patch_is() -> None:
    model, x = small(prompts=2), torch.randn(2, *SHAPE)
    with torch.no_grad():
        before, elsewhere = model(x), model(x.roll(4, dims=3))
        assert not torch.allclose(before, elsewhere)
        model.embedding.prompts.normal_()
        assert not torch.allclose(before, model(x))


@pytest.mark.parametrize("cut", range(4))
def test_a_part_up_to_a_block_and_the_rest_compute_what_the_whole_does(cut: int) -> None:
    model, x = small(prompts=2), torch.randn(2, *SHAPE)
    children = [model.embedding, *model.blocks, model.norm, model.pool, model.head]
    head, tail = nn.Sequential(*children[: 1 + cut]), nn.Sequential(*children[1 + cut :])
    assert torch.equal(tail(head(x)), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 5}, "patch is 5 and pictures are 8x12: .* multiples of patch .data.resize"),
        ({"patch": 0}, "patch is 0"),
        ({"heads": 3}, "size is 16 and heads is 3"),
        ({"size": 0}, "size is 0 and heads is 2"),
        ({"layers": 0}, "layers is 0, expected at least 1"),
        ({"prompts": -1}, "prompts is -1, expected at least 0"),
        ({"epsilon": 0.0}, "epsilon is 0.0"),
    ],
)
def test_what_makes_no_model_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**options)


def test_pictures_alone_are_taken() -> None:
    with pytest.raises(UserError, match="vit_tiny needs images"):
        MODELS["vit_tiny"]((9, 128), 6)
