"""Every built-in model, as far as it can be executed sparse, computes and learns what it does dense."""

from __future__ import annotations

import pytest
import torch
from built_in import CASES, Case
from torch import Tensor, nn

from fedprune.sparsity.execution import dense_state, held_masks, index_masks, sparse_copy
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.sparsity.pruning import prunable
from fedprune.sparsity.training import hold


def masks_of(model: nn.Module) -> Masks:
    draws = torch.Generator().manual_seed(2)
    shapes = {name: model.get_parameter(name).shape for name in prunable(model, keep=())}
    return Masks({name: torch.rand(shape, generator=draws) < 0.4 for name, shape in shapes.items()})


def executed_sparse(model: nn.Module) -> set[str]:
    """What has kernels: linear layers, and convolutions of images without groups."""
    return {
        f"{name}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }


def trained(model: nn.Module, case: Case, masks: Masks) -> list[float]:
    task, losses = case.task(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with hold(model.train(), masks):
        for step in range(2):
            x = case.examples(5, seed=step)
            x = x.double() if x.is_floating_point() else x
            optimizer.zero_grad()
            loss = task.loss(model(x), torch.zeros(5), x)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_sparse_and_dense_steps_agree(case: Case) -> None:
    dense = case.build().double()
    masks = masks_of(dense)
    indices = index_masks(dense, masks)
    assert set(indices) == executed_sparse(dense) & set(masks)
    with torch.no_grad():
        for name, value in apply_masks({name: dense.get_parameter(name) for name in masks}, masks).items():
            dense.get_parameter(name).copy_(value)
    sparse = sparse_copy(dense, indices)
    assert trained(sparse, case, held_masks(masks, indices)) == pytest.approx(trained(dense, case, masks))
    found: dict[str, Tensor] = dense_state(sparse.state_dict(), indices)
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(found[name], value, msg=lambda text, at=name: f"{at}: {text}")
