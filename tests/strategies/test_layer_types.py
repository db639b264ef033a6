"""Models with layers of every type that can be pruned: masks, wire, growth and execution hold for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from inprocess import federate, plan
from torch import nn

from fedprune import models
from fedprune.client.site import Site
from fedprune.costs.flops import ModelCost
from fedprune.scenario import OptimizerSpec
from fedprune.sparsity.layers import weights
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable
from fedprune.tasks import classification_of
from fedprune.training.loop import train

NETWORKS = Path(__file__).resolve().parents[1] / "networks.py"
SHAPE, CLASSES = (1, 8, 8), 10

#: Name of a model -> its options, and what must be prunable of it if nothing is kept.
MODELS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "lstm": ("RowByRow", {}, {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "h.weight"}),
    "projected lstm": (
        "RowByRow",
        {"proj_size": 5},
        {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.weight_hr_l0", "h.weight"},
    ),
    "gru both ways": (
        "RowByRow",
        {"kind": "GRU", "bidirectional": True},
        {f"rnn.weight_{of}_l0{way}" for of in ("ih", "hh") for way in ("", "_reverse")} | {"h.weight"},
    ),
    "rnn": ("RowByRow", {"kind": "RNN"}, {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "h.weight"}),
    "tied words": (
        "WordLanguageModel",
        {},
        {f"rnn.weight_{of}_l{layer}" for of in ("ih", "hh") for layer in (0, 1)} | {"encoder.weight"},
    ),
    "untied words": (
        "WordLanguageModel",
        {"rnn_type": "GRU", "tie_weights": False},
        {f"rnn.weight_{of}_l{layer}" for of in ("ih", "hh") for layer in (0, 1)} | {"decoder.weight"},
    ),
    "transformer": (
        "Encoder",
        {},
        {"rows.weight", "head.weight"}
        | {
            f"encoder.layers.{layer}.{name}"
            for layer in (0, 1)
            for name in (
                "self_attn.in_proj_weight",
                "self_attn.out_proj.weight",
                "linear1.weight",
                "linear2.weight",
            )
        },
    ),
    "separate attention": (
        "SeparateAttention",
        {},
        {"query.weight", "attention.out_proj.weight", "head.weight"}
        | {f"attention.{each}_proj_weight" for each in "qkv"},
    ),
    "volumes": ("Volumes", {}, {"conv1.weight", "conv2.weight", "fc.weight"}),
    "signals": ("Signals", {}, {"conv.weight", "depthwise.weight", "up.weight", "head.weight"}),
    "gru cell": ("Cells", {}, {"cell.weight_ih", "cell.weight_hh", "head.weight"}),
    "lstm cell": ("Cells", {"kind": "LSTMCell"}, {"cell.weight_ih", "cell.weight_hh", "head.weight"}),
    "tied layers": ("Tied", {}, {"stem.weight", "one.weight", "head.weight"}),
}

STRATEGIES: dict[str, dict[str, Any]] = {
    "static": {"name": "static", "density": 0.3, "criterion": "snip", "distribution": "erk"},
    "fedtiny": {
        "name": "fedtiny", "density": 0.3, "candidates": 2, "adjust_every": 1, "stop_adjusting_at": 2
    },
}  # fmt: skip

FURTHER: dict[str, dict[str, Any]] = {
    "fedmef": {"name": "fedmef", "density": 0.3, "adjust_every": 1, "stop_adjusting_at": 2},
    "feddst": {"name": "feddst", "density": 0.3, "adjust_every": 1, "stop_adjusting_at": 2},
    "fedmask": {"name": "fedmask", "density": 0.3},
    "gradual": {"name": "gradual", "density": 0.3, "end": 2, "regrow": True},
    "hidenseek": {"name": "hidenseek", "density": 0.3},
    "lotteryfl": {"name": "lotteryfl", "density": 0.3, "accuracy_threshold": 0.0, "prune_step": 0.5},
    "prunefl": {"name": "prunefl", "density": 0.3, "adjust_every": 1},
}


def built(name: str) -> nn.Module:
    factory, options, _ = MODELS[name]
    return models.build(f"{NETWORKS}:{factory}", SHAPE, CLASSES, seed=3, options=options)


def run(name: str, strategy: dict[str, Any], *, options: dict[str, Any] | None = None, **changes: Any) -> Any:
    factory, own, _ = MODELS[name]
    return federate(
        plan(
            model={"name": f"{NETWORKS}:{factory}", **own, **(options or {})},
            strategy=strategy,
            data__client_test_fraction=0.2,
            **changes,
        )
    )


def assert_pruned(made: Any, density: float) -> None:
    """The masks have the density, what the server holds is 0 where they prune, and nobody failed."""
    masks, strategy = made.strategy.masks, made.strategy
    assert set(masks) == set(prunable(strategy.module))
    assert masks.density == pytest.approx(density, abs=1 / masks.total)
    for state in (strategy.state, made.states[-1]):
        assert all(not state[mask][~masks[mask]].any() for mask in masks)
        assert all(state[mask].any() for mask in masks)
    assert [record.clients_failed for record in made.rounds] == [0, 0, 0]
    assert made.rounds[-1].density == masks.density


@pytest.mark.parametrize("name", MODELS)
def test_what_is_prunable_is_known_by_the_type_of_the_layer(name: str) -> None:
    module = built(name)
    assert set(prunable(module, keep=[])) == MODELS[name][2]
    found = weights(module)
    assert [weight.elements for weight in found] == [
        dict(module.named_parameters())[weight.name].numel() for weight in found
    ]
    assert {weight.name for weight in found} == {key for key, _ in module.named_parameters()}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_two_rounds_prune_and_change_the_masks_where_the_method_does(name: str, strategy: str) -> None:
    made = run(name, STRATEGIES[strategy])
    assert_pruned(made, 0.3)
    first, last = made.states[0], made.states[-1]
    assert any(not torch.equal(first[key], last[key]) for key in made.strategy.masks)


@pytest.mark.parametrize("name", ["lstm", "transformer", "volumes", "signals", "tied layers"])
@pytest.mark.parametrize(
    "strategy", ["feddst", "fedmask", "fedmef", "gradual", "hidenseek", "lotteryfl", "prunefl"]
)
def test_every_other_method_takes_these_models(name: str, strategy: str) -> None:
    made = run(name, FURTHER[strategy])
    assert [record.clients_failed for record in made.rounds] == [0, 0, 0]


@pytest.mark.parametrize("strategy", ["feddst", "hidenseek"])
def test_masks_and_supermasks_take_depthwise_convolutions_and_group_norm(strategy: str) -> None:
    model = {"name": "mobilenet_v1", "width": 0.05, "stem_stride": 1, "norm": "group"}
    made = federate(plan(model=model, strategy=FURTHER[strategy], rounds=1, data__client_test_fraction=0.2))
    assert [record.clients_failed for record in made.rounds] == [0, 0]


@pytest.mark.parametrize("strategy", [*STRATEGIES, *FURTHER, "fedavg", "fedpm"])
def test_every_method_takes_a_vision_transformer_with_prompts(
    strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = {**STRATEGIES, **FURTHER}.get(strategy, {"name": strategy})
    vit = {"name": "vit", "patch": 2, "size": 16, "layers": 2, "heads": 2, "prompts": 2}
    made = federate(plan(model=vit, strategy=chosen, data__client_test_fraction=0.2))
    assert [record.clients_failed for record in made.rounds] == [0, 0, 0]
    # What needs batch norm says that it has none here.
    assert caplog.text.count("selection needs batch norm") == (strategy == "fedtiny")
    if strategy == "static":
        assert_pruned(made, 0.3)
    first, last = made.states[0], made.states[-1]
    if strategy not in ("hidenseek", "fedmask", "fedpm"):  # They freeze what is no prunable weight.
        for name in ("embedding.prompts", "embedding.class_token", "embedding.positions"):
            assert not torch.equal(first[name], last[name])


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "momentum": 0.9}, {"name": "adam"}])
@pytest.mark.parametrize("name", MODELS)
def test_pruned_weights_stay_exactly_0_in_local_training(name: str, optimizer: dict[str, Any]) -> None:
    module = built(name)
    draws = torch.Generator().manual_seed(1)
    masks = Masks(
        {
            key: torch.rand(module.get_parameter(key).shape, generator=draws) < 0.4
            for key in prunable(module, keep=[])
        }
    )
    before = {key: module.get_parameter(key).detach().clone() for key in masks}
    batches = [(torch.rand(6, *SHAPE, generator=draws), torch.arange(6)) for _ in range(3)]
    spec = OptimizerSpec.model_validate({"lr": 0.1, "weight_decay": 0.01, **optimizer})
    train(module, batches, classification_of(SHAPE), spec, lr=0.1, masks=masks, proximal_mu=0.1)
    for key, mask in masks.items():
        weight = module.get_parameter(key).detach()
        assert not weight[~mask].any()
        assert not torch.equal(weight[mask], before[key][mask])


@pytest.mark.parametrize(("batch_norm", "said"), [(True, 0), (False, 1)])
def test_fedtiny_says_once_that_selection_needs_batch_norm(
    batch_norm: bool, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    federate(
        plan(
            model={"name": "cnn", "width": 0.1, "norm": "batch" if batch_norm else "group"},
            strategy=STRATEGIES["fedtiny"],
            rounds=1,
        )
    )
    assert caplog.text.count("selection needs batch norm") == said


def test_a_shared_weight_travels_and_counts_once() -> None:
    made = run("tied layers", STRATEGIES["static"])
    parameters = dict(made.strategy.module.named_parameters())
    assert set(made.strategy.layout.shapes) == set(parameters)
    assert "other.weight" not in parameters
    cost = ModelCost.of(made.strategy.module, SHAPE)
    (one,) = (layer for layer in cost.layers if layer.weight == "one.weight")
    assert (one.positions, one.input_gradient_positions) == (2, 2)
    assert sum(parameter.elements for parameter in cost.parameters) == sum(
        value.numel() for value in parameters.values()
    )
    model = made.strategy.module
    assert model.one.weight is model.other.weight


def test_the_layers_that_keep_names_are_found_under_every_name_of_a_shared_weight() -> None:
    module = built("tied words")
    for pattern in ("last", "decoder", "decoder.weight", "encoder", "enc*"):
        assert set(prunable(module, keep=[pattern])) == MODELS["tied words"][2] - {"encoder.weight"}


def test_a_vision_transformer_executed_sparse_agrees_and_attention_is_sparse_in_it() -> None:
    vit = {"name": "vit", "patch": 2, "size": 16, "layers": 2, "heads": 2, "prompts": 2}
    dense, sparse = (
        federate(plan(model=vit, strategy=STRATEGIES["static"], rounds=1, clients__training__execution=way))
        for way in ("dense", "sparse")
    )
    site = Site(sparse.scenario, sparse.data)
    local = site.sparse(sparse.strategy.masks)
    assert local is not None
    assert not local.held  # Every masked layer has a kernel.
    for key, tensor in dense.strategy.state.items():
        torch.testing.assert_close(sparse.strategy.state[key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("transformer", {"dropout": 0.0}), ("lstm", {}), ("signals", {}), ("tied layers", {})],
)
def test_sparse_execution_agrees_and_leaves_dense_what_it_has_no_kernel_for(
    name: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    dense, sparse = (
        run(
            name,
            {**STRATEGIES["fedtiny"], "keep": []},
            options=options,
            clients__training__execution=way,
            rounds=1,
        )
        for way in ("dense", "sparse")
    )
    assert "executed dense" not in caplog.text  # as a whole
    for key, tensor in dense.strategy.state.items():
        torch.testing.assert_close(sparse.strategy.state[key], tensor, rtol=1e-3, atol=1e-4)
