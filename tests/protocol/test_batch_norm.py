"""Batch-norm statistics: exact over all examples, pooled as if all examples were in one place."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedprune.errors import WireError
from fedprune.protocol import batch_norm


def net(**options):
    """Two batch norms for images, one for vectors, one without statistics, and dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.BatchNorm2d(2, **options),
            nn.Conv2d(2, 3, 3),
            nn.BatchNorm2d(3, **options),
            nn.ReLU(),
            nn.BatchNorm2d(3, track_running_stats=False),
            nn.Flatten(),
            nn.Linear(12, 5),
            nn.BatchNorm1d(5, **options),
            nn.Linear(5, 2),
        )
    return module.eval()


KEEPING = ("0", "2", "7")


def drawn(count, seed=1):
    return 3 + 2 * torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def by_layer(vector, sizes=(2, 3, 5)):
    """(mean, variance) of each layer."""
    parts = np.split(vector, np.cumsum([n for size in sizes for n in (size, size)])[:-1])
    return list(zip(parts[::2], parts[1::2], strict=True))


def inputs_of(module, batches):
    """Everything that went into each batch norm, by name, in training mode: (values, channels)."""
    module, seen = copy.deepcopy(module).train(), {}
    for x in batches:
        for name, layer in module.named_children():
            if name in KEEPING:
                moved = x.detach().double().movedim(1, -1)
                seen.setdefault(name, []).append(moved.reshape(-1, x.shape[1]))
            x = layer(x)
    return [torch.cat(seen[name]).numpy() for name in KEEPING]


@pytest.mark.parametrize("lengths", [(12,), (5, 4, 3), (2,) * 6])
def test_statistics_are_those_of_all_inputs_in_one_tensor(lengths):
    module = net()
    batches = [drawn(length, seed) for seed, length in enumerate(lengths)]
    found = by_layer(batch_norm.collect_statistics(module, iter(batches)))
    for (mean, variance), values in zip(found, inputs_of(module, batches), strict=True):
        np.testing.assert_allclose(mean, values.mean(axis=0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(variance, values.var(axis=0), rtol=1e-5, atol=1e-7)


def test_a_common_offset_does_not_drown_the_variance():
    module = nn.Sequential(nn.BatchNorm2d(1))
    x = 1000 + torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    _, variance = batch_norm.collect_statistics(module, [x[:30], x[30:]])
    assert variance == pytest.approx(x.double().var(unbiased=False).item(), rel=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_module_comes_back_as_it_was(training, momentum):
    module = net(momentum=momentum).train(training)
    before = copy.deepcopy(module.state_dict())
    batch_norm.collect_statistics(module, [drawn(4), drawn(3)])
    with pytest.raises(RuntimeError):
        batch_norm.collect_statistics(module, [drawn(4), torch.zeros(4, 7, 4, 4)])
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert module.training == training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def test_a_module_without_batch_norm_has_no_statistics():
    module = nn.Sequential(nn.Flatten(), nn.Linear(32, 2))
    vector = batch_norm.collect_statistics(module, [drawn(2)])
    assert vector.shape == (0,)
    batch_norm.put_statistics(module, batch_norm.statistics_record(vector))


def test_pooled_over_clients_they_are_those_of_the_pooled_data():
    """Of the first batch norm: deeper ones see what each client's own batch was normalised to."""
    module, clients = net(), [drawn(4, 1), drawn(9, 2) * 3, drawn(2, 3) - 5]
    statistics = [batch_norm.collect_statistics(module, [x]) for x in clients]
    pooled = batch_norm.pool(statistics, [len(x) for x in clients], [2, 3, 5], pool_variance=True)
    together = batch_norm.collect_statistics(module, [torch.cat(clients)])
    for one, other in zip(by_layer(pooled)[0], by_layer(together)[0], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(-50, 50), min_size=6, max_size=6),
            st.lists(st.floats(0, 50), min_size=6, max_size=6),
            st.integers(1, 1000),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_pooling_by_the_formula(clients):
    """mean = sum p m; variance = sum p (v + m^2) - mean^2, or sum p v; two layers, of 2 and 4 channels."""
    statistics = [np.array([*m[:2], *v[:2], *m[2:], *v[2:]]) for m, v, _ in clients]
    weights = [weight for _, _, weight in clients]
    shares = [weight / sum(weights) for weight in weights]
    for pool_variance in (True, False):
        found = batch_norm.pool(statistics, weights, [2, 4], pool_variance=pool_variance)
        (first, v1), (second, v2) = by_layer(found, (2, 4))
        means, variances = [*first, *second], [*v1, *v2]
        for channel in range(6):
            mean = sum(p * m[channel] for p, (m, _, _) in zip(shares, clients, strict=True))
            variance = sum(p * v[channel] for p, (_, v, _) in zip(shares, clients, strict=True))
            if pool_variance:
                squares = sum(p * m[channel] ** 2 for p, (m, _, _) in zip(shares, clients, strict=True))
                variance += squares - mean**2
            assert means[channel] == pytest.approx(mean, abs=1e-9)
            assert variances[channel] == pytest.approx(variance, abs=1e-8)
            assert variances[channel] >= 0


def test_what_is_put_is_what_was_collected():
    module = net()
    vector = batch_norm.collect_statistics(module, [drawn(12)])
    before = copy.deepcopy(module.state_dict())
    batch_norm.put_statistics(module, batch_norm.statistics_record(vector))
    for name, (mean, variance) in zip(KEEPING, by_layer(vector), strict=True):
        layer = module.get_submodule(name)
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-6)
        np.testing.assert_allclose(layer.running_var, variance, rtol=1e-6)
    for key, value in module.state_dict().items():
        assert "running" in key or torch.equal(value, before[key])


def test_a_model_with_its_own_statistics_evaluates_as_it_trains():
    """One batch: normalised by its statistics is normalised by itself."""
    module, x = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=0.1)), drawn(6)
    vector = batch_norm.collect_statistics(module, [x])
    batch_norm.put_statistics(module, batch_norm.statistics_record(vector))
    evaluated = module.eval()(x)
    torch.testing.assert_close(evaluated, copy.deepcopy(module).train()(x), rtol=1e-4, atol=1e-5)


def values(*numbers, dtype=np.float32):
    return ArrayRecord({"values": Array(np.array(numbers, dtype=dtype))})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (None, "no batch-norm statistics"),
        (ArrayRecord({"other": Array(np.zeros(4, np.float32))}), "no batch-norm statistics"),
        (values(0, 0, 1), "shape"),
        (values(0, 0, 1, 1, 1), "shape"),
        (values(0, 0, 1, 1, dtype=np.float64), "float"),
        (values(0, np.nan, 1, 1), "not finite"),
        (values(0, 0, np.inf, 1), "not finite"),
        (values(0, 0, 1, -1e-6), "variance is negative"),
    ],
)
def test_impossible_statistics_are_refused(record, reason):
    module = nn.Sequential(nn.BatchNorm2d(2))
    with pytest.raises(WireError, match=reason):
        batch_norm.put_statistics(module, record)
    assert module[0].running_var.tolist() == [1, 1]


def test_negative_means_and_no_variance_are_possible():
    found = batch_norm.read_statistics(values(-1, -2, 0, 3), nn.BatchNorm2d(2))
    assert found.tolist() == [-1, -2, 0, 3]
