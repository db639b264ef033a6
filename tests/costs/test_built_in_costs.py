"""Every built-in model on inputs that it is for: FLOPs and saved bytes are PyTorch's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from built_in import CASES, Case
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedprune.costs.flops import ModelCost, Work
from fedprune.costs.memory import step_memory
from fedprune.costs.step import in_single_products
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable

BATCH = 3


class Apart(nn.Module):
    """A convolution with groups as one convolution for each: PyTorch's counter takes all groups for one."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        settings = conv.kernel_size, conv.stride, conv.padding
        self.parts = nn.ModuleList(
            nn.Conv2d(
                conv.in_channels // conv.groups,
                conv.out_channels // conv.groups,
                *settings,
                bias=conv.bias is not None,
            )
            for _ in range(conv.groups)
        )

    def forward(self, x: Tensor) -> Tensor:
        pieces = zip(self.parts, x.chunk(len(self.parts), dim=1), strict=True)
        return torch.cat([part(piece) for part, piece in pieces], dim=1)


def without_groups(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.groups > 1:
                setattr(module, name, Apart(child))
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def cost(case: Case) -> ModelCost:
    return ModelCost.of(case.build(), case.task())


@pytest.fixture(autouse=True)
def _products(case: Case) -> Iterator[None]:
    """On a CPU an LSTM is one operation, in which no product can be seen."""
    with in_single_products(nn.Linear(1, 1)) if case.name == "lstm" else nullcontext():
        yield


def test_products_are_those_that_pytorch_counts_in_a_real_step(case: Case, cost: ModelCost) -> None:
    model, task, x = without_groups(case.build()), case.task(), case.examples(BATCH)
    with FlopCounterMode(display=False) as counter:
        loss = task.loss(model(x), torch.zeros(BATCH), x)
        forward = counter.get_total_flops()
        loss.backward()
    assert cost.matmul_flops(Masks(), BATCH) == Work(forward, counter.get_total_flops() - forward)


def test_what_is_saved_for_the_backward_pass_is_what_autograd_saves(case: Case, cost: ModelCost) -> None:
    model, task, x = case.build(), case.task(), case.examples(BATCH)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []  # Holding them keeps addresses from being used again.
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        task.loss(model(x), torch.zeros(BATCH), x)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    saved = sum(size for address, size in storages.items() if address not in own)
    assert step_memory(cost, Masks(), BATCH).activations == saved


def test_every_prunable_weight_is_counted_and_costs_nothing_when_it_is_pruned(
    case: Case, cost: ModelCost
) -> None:
    model = case.build()
    names = prunable(model, keep=())
    assert {layer.weight for layer in cost.layers} >= set(names)
    nothing = Masks({name: torch.zeros_like(model.get_parameter(name)).bool() for name in names})
    assert cost.matmul_flops(nothing, BATCH) == Work(
        BATCH * cost.other_products.forward, BATCH * cost.other_products.backward
    )
    # What is not a layer's are products of activations, which only attention has.
    assert (cost.other_products.forward > 0) == (case.name in ("transformer", "vit"))
