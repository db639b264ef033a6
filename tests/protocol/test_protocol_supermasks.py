"""What both sides agree on to learn a supermask: settings that travel, frozen weights rebuilt from a seed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from flwr.app import ConfigRecord
from inprocess import plan
from pydantic import ValidationError
from torch import nn

from fedprune import models
from fedprune.errors import WireError
from fedprune.protocol.supermasks import FrozenNetwork, Learning, Supermasks, drawn_weights
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable
from fedprune.sparsity.supermasks import initial_weights
from fedprune.strategies.fedmask import FedMask
from fedprune.strategies.fedpm import FedPM
from fedprune.strategies.hidenseek import HideNseek
from fedprune.wire import get_state

# Settings ---------------------------------------------------------------------------------------

OTHERS = {
    "straight_through": "clipped",
    "score_scale": 0.1 + 0.2,
    "score_lr": 1 / 3,
    "keep_scores": True,
    "init": "kaiming_normal",
    "train_dense": True,
    "vote_bits": 5,
}


def test_settings_come_out_as_they_went_in():
    assert OTHERS.keys() == Learning.model_fields.keys()
    learnings = [Learning(**{key: value}) for key, value in OTHERS.items()]
    learnings += [Learning(), Learning(**OTHERS), FedMask.Options(), FedPM.Options(prior=3.0)]
    for learning in learnings:
        for mask in ("sign", "binary", "bernoulli"):
            sent = Supermasks(mask, learning, 2**63 - 1)
            found = Supermasks.of(ConfigRecord(sent.config()))
            assert (found.mask, found.seed) == (mask, 2**63 - 1)
            for key in Learning.model_fields:
                assert getattr(found.learning, key) == getattr(learning, key)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"supermask": None}, "'supermask' is None, expected text"),
        ({"supermask": "sign"}, "'supermask': supermask: Invalid JSON"),
        ({"supermask": "[]"}, "'supermask': supermask"),
        ({"supermask": '{"m":"ternary"}'}, "'supermask': mask"),
        ({"supermask": '{"vb":17}'}, "'supermask': vote_bits"),
        ({"supermask": '{"vb":"8"}'}, "'supermask': vote_bits"),
        ({"supermask": '{"ss":Infinity}'}, "'supermask': score_scale"),
        ({"supermask": '{"scores":1}'}, "'supermask': scores"),
        ({"weights-seed": -1}, "'weights-seed' is -1"),
        ({"weights-seed": 0.5}, "'weights-seed' is 0.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config, fault):
    record = {"supermask": "{}", "weights-seed": 3, **config}
    with pytest.raises(WireError, match=fault):
        Supermasks.of(ConfigRecord({key: value for key, value in record.items() if value is not None}))


STRATEGIES = [(HideNseek, {"density": 0.1}), (FedPM, {}), (FedMask, {})]


@pytest.mark.parametrize(("strategy", "options"), STRATEGIES, ids=["hidenseek", "fedpm", "fedmask"])
def test_what_frozen_weights_cannot_have_is_found_before_a_run(strategy, options):
    def found(scenario, **more):
        return [key for key, _ in strategy.validation_errors(scenario, strategy.Options(**options, **more))]

    public = plan(data__server_fraction=0.2)
    assert found(public) == []
    assert found(public, pretrain_epochs=1) == ["pretrain_epochs"]
    assert found(plan(wire__values="float16")) == ["vote_bits"]
    assert found(plan(clients__training__proximal_mu=0.1)) == ["score_scale"]
    assert found(public, aggregator="flwr.serverapp.strategy.FedAdam") == ["aggregator"]


@pytest.mark.parametrize(
    ("strategy", "options", "key"),
    [
        (HideNseek, {}, "density"),
        (HideNseek, {"density": 0.1, "score_scale": float("inf")}, "score_scale"),
        (HideNseek, {"density": 0.1, "score_lr": 0}, "score_lr"),
        (HideNseek, {"density": 0.1, "vote_bits": 17}, "vote_bits"),
        (HideNseek, {"density": 0.1, "aggregate": "median"}, "aggregate"),
        (FedPM, {"prior": float("inf")}, "prior"),
        (FedPM, {"reset_every": 0}, "reset_every"),
        (FedMask, {"init": "signed_constant"}, "init"),
        (FedMask, {"train_dense": True, "keep": "last"}, "keep"),
    ],
)
def test_options_that_make_no_sense_are_refused(strategy, options, key):
    with pytest.raises(ValidationError) as caught:
        strategy.Options(**options)
    assert [error["loc"][0] for error in caught.value.errors()] == [key]


# Frozen weights ---------------------------------------------------------------------------------


def cnn():
    return models.build("cnn", (1, 8, 8), 10, seed=1, options={"width": 0.25})


def masks_of(module, names, density=0.3):
    draw = torch.Generator().manual_seed(0)
    return Masks({n: torch.rand(module.get_parameter(n).shape, generator=draw) < density for n in names})


@pytest.mark.parametrize("mask", ["sign", "binary"])
@pytest.mark.parametrize("init", ["signed_constant", "kaiming_normal"])
def test_the_frozen_state_is_drawn_for_weights_and_as_built_for_the_rest(mask, init):
    module = cnn()
    initial, weights = get_state(module), prunable(module, ())
    masks = masks_of(module, weights[1:])
    drawn = initial_weights({name: initial[name].shape for name in weights}, 11)
    frozen = FrozenNetwork(module, initial, masks, Supermasks(mask, Learning(init=init), 11))
    assert frozen.state.keys() == initial.keys()
    for name, found in frozen.state.items():
        expected = drawn.get(name, initial[name])
        if name in drawn and init == "signed_constant":
            share = masks[name].float().mean().item() if name in masks else 1
            fan_in = expected[0].numel()
            expected = expected.sign() * (2 / fan_in / share) ** 0.5
        if name in masks:
            factor = expected.abs() if mask == "sign" else expected
            torch.testing.assert_close(frozen.factors[name], factor, rtol=1e-6, atol=0)
            expected = expected * masks[name]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert frozen.factors.keys() == masks.keys()


def test_what_is_trained_densely_is_what_has_no_supermask_and_is_not_frozen():
    module = cnn()
    first, *middle, last = prunable(module, ())
    others = {name for name, _ in module.named_parameters()} - {first, *middle, last}

    def trained(names, **options):
        learning = Learning(**options)
        masks = masks_of(module, names)
        return FrozenNetwork(module, get_state(module), masks, Supermasks("sign", learning, 1)).trained

    assert trained([first, *middle, last]) == trained(middle) == frozenset()
    assert trained([first, *middle], train_dense=True) == others | {last}
    assert trained(middle, train_dense=True) == others | {last}
    assert trained([first, *middle, last], train_dense=True) == others


def test_the_last_layer_has_no_supermask_where_it_is_trained():
    for strategy, options in STRATEGIES:
        assert strategy.Options(**options).keep == ()
        assert strategy.Options(**options, train_dense=True).keep == ("last",)
        assert strategy.Options(**options, train_dense=True, keep=["first"]).keep == ("first", "last")
        assert strategy.Options(**options, train_dense=True, keep=("last",)).keep == ("last",)


def test_a_weight_that_layers_share_is_drawn_once():
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert list(drawn_weights(module, 0)) == ["0.weight", "2.weight"]
    module[2].weight = module[0].weight
    assert list(drawn_weights(module, 0)) == ["0.weight"]


def digest(threads):
    """Hash the frozen state of two models, in bytes; run by processes of their own, too."""
    torch.set_num_threads(threads)
    told = hashlib.sha256()
    for name, shape in (("resnet18", (3, 16, 16)), ("mlp", (1, 8, 8))):
        module = models.build(name, shape, 10, seed=5, options={"width": 0.125})
        masks = masks_of(module, prunable(module, ()))
        for init in ("signed_constant", "kaiming_normal"):
            settings = Supermasks("sign", Learning(init=init), 12345)
            for key, tensor in FrozenNetwork(module, get_state(module), masks, settings).state.items():
                told.update(key.encode() + tensor.numpy().tobytes())
    return told.hexdigest()


@pytest.mark.slow
def test_processes_with_other_threads_build_the_same_weights():
    code = f"import sys, {__name__} as test; print(test.digest(int(sys.argv[1])))"
    folder = os.path.dirname(__file__)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, threads],
            env={**os.environ, "PYTHONPATH": folder, "PYTHONHASHSEED": threads, "OMP_NUM_THREADS": threads},
            cwd=os.path.dirname(folder),
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in ("1", "3")
    ]
    found = {process.communicate(timeout=200)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert found == {digest(1)}
