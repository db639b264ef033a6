import pytest
import torch

from fedprune.sparsity.execution import pays
from fedprune.sparsity.execution.rule import break_even

# Densities at which a step took as long sparse as dense, read off `benchmarks/sparse.py --layers`.
MEASURED = [
    ((64, 64, 3, 3), 1024, 64, 0.177),
    ((256, 256, 3, 3), 64, 64, 0.167),
    ((512, 512, 3, 3), 16, 64, 0.119),
    ((128, 64, 3, 3), 256, 16, 0.112),
    ((256, 256, 3, 3), 64, 16, 0.094),
    ((512, 512, 3, 3), 16, 16, 0.063),
    ((256, 256, 3, 3), 64, 4, 0.033),
    ((128, 4096), 1, 64, 0.084),
    ((512, 512), 1, 64, 0.050),
    ((128, 4096), 1, 16, 0.030),
]


@pytest.mark.parametrize(("shape", "positions", "batch", "density"), MEASURED)
def test_the_limit_is_where_sparse_and_dense_were_equally_fast(shape, positions, batch, density):
    assert break_even(shape, batch, positions) == pytest.approx(density, rel=0.25)


def test_a_layer_is_sparse_below_its_limit_and_never_where_the_kernels_were_not_measured(monkeypatch):
    shape, many = (64, 64, 3, 3), {"w": 1024}
    limit = int(break_even(shape, 64, 1024) * 64 * 64 * 9)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert pays("w", shape, limit, batch=64, positions=many)
    assert not pays("w", shape, limit + 1, batch=64, positions=many)
    assert not pays("w", shape, 1, batch=64, positions={"w": 4})
    assert not pays("w", shape, 1, batch=64, positions={})
    assert not pays("w", (16, 8, 3, 3), 1, batch=4, positions=many)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not pays("w", shape, limit, batch=64, positions=many)
