"""Models cut in three: the parts together are the model, and mistakes in a cut have one sentence."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.costs.flops import ModelCost
from fedprune.errors import UserError
from fedprune.models import build
from fedprune.models.cut import ClientPart, cut, part, stages
from fedprune.sparsity.masks import Masks
from fedprune.wire import Layout

VIT = {"patch": 8, "size": 16, "layers": 4, "heads": 2, "prompts": 3}
CUTS = [
    ("vit", VIT, None, None),
    ("vit", VIT, "blocks.1", "norm"),
    ("cnn", {"width": 0.25}, "block2", "hidden"),
    ("resnet8", {"width": 0.25}, "layer1", "pool"),
    ("mlp", {"hidden": [9, 8]}, "hidden2", "head"),
]


def made(name: str, options: dict) -> nn.Module:
    return build(name, (3, 16, 16), 5, seed=1, options=options)


@pytest.mark.parametrize(("name", "options", "body", "tail"), CUTS)
def test_the_parts_one_after_another_are_the_model(name, options, body, tail):
    model = made(name, options).eval()
    x = torch.randn(4, 3, 16, 16)
    where = cut(model, body, tail)
    client, server = ClientPart(model, where, x), part(model, where.body)
    assert torch.equal(client.run_tail(server(client.run_head(x))), model(x))
    names = set(Layout.of(client).shapes) | set(Layout.of(server).shapes)
    assert names == set(Layout.of(model).shapes)
    assert not set(Layout.of(client).shapes) & set(Layout.of(server).shapes)


@pytest.mark.parametrize(("name", "options", "body", "tail"), CUTS)
def test_what_client_and_server_compute_is_what_the_model_costs(name, options, body, tail):
    model = made(name, options)
    x = torch.randn(4, 3, 16, 16)
    where = cut(model, body, tail)
    whole = ModelCost.of(model, (3, 16, 16))
    client = ModelCost.of(ClientPart(model, where, x), (3, 16, 16))
    server = whole.matmul_flops(Masks(), 4).total - client.matmul_flops(Masks(), 4).total
    smashed = ClientPart(model, where, x).run_head(x).detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        part(model, where.body)(smashed).sum().backward()
    assert server == counter.get_total_flops()
    assert whole.training_flops(Masks(), 4) > client.training_flops(Masks(), 4)


@pytest.mark.parametrize(("name", "options", "body", "tail"), CUTS)
def test_gradients_are_those_of_the_whole_model(name, options, body, tail):
    model = made(name, options).double()
    twin = copy.deepcopy(model)
    x, y = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.arange(6) % 5
    nn.functional.cross_entropy(model(x), y).backward()

    where = cut(twin, body, tail)
    head, middle, tail_part = (part(twin, names) for names in (where.head, where.body, where.tail))
    smashed = head(x)
    into_body = smashed.detach().requires_grad_()
    outputs = middle(into_body)
    into_tail = outputs.detach().requires_grad_()
    nn.functional.cross_entropy(tail_part(into_tail), y).backward()
    outputs.backward(into_tail.grad)
    smashed.backward(into_body.grad)
    for (key, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=0, atol=1e-10), key


@pytest.mark.parametrize(
    ("body", "tail", "said"),
    [
        ("blocks.9", None, "strategy.body: the model has no stage 'blocks.9'"),
        ("blocks.1", "tial", "strategy.tail: the model has no stage 'tial'"),
        ("norm", "blocks.1", "head, body and tail must have a stage each"),
        ("embedding", "norm", "head, body and tail must have a stage each"),
    ],
)
def test_a_cut_that_does_not_exist_is_refused(body, tail, said):
    with pytest.raises(UserError) as refused:
        cut(made("vit", VIT), body, tail)
    assert said in str(refused.value)
    assert "its stages: embedding, blocks.0" in str(refused.value)


def test_a_model_without_blocks_or_stages_is_refused():
    with pytest.raises(UserError, match=r"the model has no stages 'blocks\.0'"):
        cut(made("cnn", {}))
    with pytest.raises(UserError, match=r"a GRU cannot be cut: it is no nn\.Sequential"):
        stages(nn.GRU(3, 4))


class Both(nn.Module):
    def forward(self, x):
        return x, x


class First(nn.Module):
    def forward(self, both):
        return both[0]


@pytest.mark.parametrize(("body", "tail", "key"), [("3", "4", "body"), ("1", "3", "tail")])
def test_a_cut_that_nothing_could_travel_through_is_refused(body, tail, key):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), Both(), First(), nn.Linear(5, 5))
    with pytest.raises(UserError, match=rf"strategy\.{key}: cut there, the model would have to send a tuple"):
        ClientPart(model, cut(model, body, tail), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("module", [True, False])
def test_weights_that_parts_share_are_refused(module):
    """A module that is there twice, or two with the same weights."""
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    model = nn.Sequential(one, nn.ReLU(), one if module else other, nn.ReLU(), nn.Linear(4, 2))
    for body, tail in (("1", "3"), ("1", "2")):
        with pytest.raises(UserError, match=r"its stages '0' in the head and '2' in the .* share weights"):
            cut(model, body, tail)
    assert cut(model, "3", "4").head == ("0", "1", "2")
