"""Steps are those of PyTorch's optimizers, bit for bit, and import none of its compiler."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from fedprune.scenario import OptimizerSpec
from fedprune.training.loop import make_optimizer
from fedprune.training.optimizers import SGD, Adam, Optimizer

SPECS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "lr": 0.1},
    "momentum": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "weight decay": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    "nesterov": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
    "adam": {"name": "adam", "lr": 0.01},
    "adam, all": {"name": "adam", "lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6},
}


def network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3))


def pytorchs(parameters: Any, spec: OptimizerSpec) -> torch.optim.Optimizer:
    if spec.name == "adam":
        return torch.optim.Adam(
            parameters,
            lr=spec.lr,
            betas=spec.betas,
            eps=spec.eps,
            weight_decay=spec.weight_decay,
            foreach=True,
        )
    return torch.optim.SGD(
        parameters,
        lr=spec.lr,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.nesterov,
        foreach=True,
    )


def trained(make: Any, *, frozen: int = 0, groups: bool = False) -> dict[str, torch.Tensor]:
    """Return a network after some steps, some of them without the gradient of a parameter."""
    module = network()
    parameters = list(module.parameters())
    optimizer = make(parameters[2:] if groups else parameters)
    if groups:
        optimizer.add_param_group({"params": parameters[:2], "lr": 0.3})
    generator = torch.Generator().manual_seed(7)
    for step in range(6):
        optimizer.zero_grad(set_to_none=True)
        x = torch.randn(10, 6, generator=generator)
        nn.functional.cross_entropy(module(x), torch.arange(10) % 3).backward()
        if step % 2 and frozen:
            parameters[-frozen].grad = None
        optimizer.step()
    return module.state_dict()


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("case", [{}, {"frozen": 1}, {"groups": True}], ids=str)
def test_a_step_is_pytorchs(spec, case):
    asked = OptimizerSpec(**spec)
    ours = trained(lambda parameters: make_optimizer(parameters, asked, asked.lr), **case)
    theirs = trained(lambda parameters: pytorchs(parameters, asked), **case)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_learning_rate_may_change_between_steps():
    asked = OptimizerSpec(name="sgd", lr=0.1, momentum=0.9)

    def falling(make: Any) -> Any:
        def made(parameters: Any) -> Any:
            optimizer = make(parameters)

            def halve(optimizer: Any, args: Any, kwargs: Any) -> None:
                for group in optimizer.param_groups:
                    group["lr"] *= 0.5

            optimizer.register_step_post_hook(halve)
            return optimizer

        return made

    ours = trained(falling(lambda parameters: make_optimizer(parameters, asked, 0.1)))
    theirs = trained(falling(lambda parameters: pytorchs(parameters, asked)))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_hooks_are_called_around_a_step(kind):
    weight = nn.Parameter(torch.ones(2))
    settings = {"momentum": 0.0, "weight_decay": 0.0, "nesterov": False, "betas": (0.9, 0.999), "eps": 1e-8}
    optimizer: Optimizer = kind([weight], lr=0.5, **settings)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(weight.detach().clone()))
    optimizer.register_step_post_hook(lambda *_: seen.append(weight.detach().clone()))
    weight.grad = torch.ones(2)
    optimizer.step()
    before, after = seen
    assert torch.equal(before, torch.ones(2))
    assert torch.allclose(after, torch.full((2,), 0.5))
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(weight.grad, torch.zeros(2))
    optimizer.zero_grad()
    assert weight.grad is None


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_training_imports_none_of_pytorchs_compiler(name):
    code = f"""
import sys
import torch
from torch import nn
from fedprune.determinism import make_deterministic
from fedprune.scenario import OptimizerSpec
from fedprune.sparsity.masks import Masks
from fedprune.training.loop import train

make_deterministic()
batch = torch.randn(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
spec = OptimizerSpec(name={name!r}, lr=0.1)
train(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), [batch], spec, lr=0.1, masks=Masks())
assert torch.cuda.is_available() or "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
