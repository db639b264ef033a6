"""Processes that compile nothing do without PyTorch's compiler; those that do have it."""

from __future__ import annotations

import subprocess
import sys

BEGIN = """
import sys
import torch
from fedprune.compiler import leave_out

leave_out()

def imported():
    return "torch._dynamo.convert_frame" in sys.modules

def step():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    for kind in (torch.optim.SGD, torch.optim.Adam):
        optimizer = kind(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())

step()
"""


def said(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_training_imports_no_compiler():
    assert said("print(imported())") == ["False"]


def test_who_compiles_has_the_compiler_and_what_it_is_not_to_compile_is_marked():
    code = """
seen = []
def looks(graph, inputs):
    seen.append(len(graph.graph.nodes))
    return graph.forward

twice = torch.compile(lambda x: x * 2 + 1, backend=looks)
print(float(twice(torch.ones(1))), len(seen), imported())
from torch._dynamo import config
import torch._dynamo.utils
print(config is torch._dynamo.config, torch._dynamo.utils.__name__)
step()
marked = torch.optim.Optimizer.add_param_group.__wrapped__
print(marked.__dict__["__dynamo_disable"] is not marked)
"""
    assert said(code) == ["3.0", "1", "True", "True", "torch._dynamo.utils", "True"]


def test_a_client_app_is_built_without_it():
    code = """
import fedprune.client_app
from fedprune.costs.flops import ModelCost
from fedprune.models import build

ModelCost.of(build("cnn", (1, 8, 8), 10, seed=0), (1, 8, 8))
print(imported())
"""
    assert said(code) == ["False"]
