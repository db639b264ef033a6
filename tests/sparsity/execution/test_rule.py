import pytest
import torch

from fedprune.sparsity.execution import Window, pays
from fedprune.sparsity.execution.rule import break_even

# Densities at which a step took as long sparse as dense, read off `benchmarks/sparse.py --layers`.
MEASURED = [
    ((64, 64, 3, 3), 64, 0.177),
    ((256, 256, 3, 3), 64, 0.167),
    ((512, 512, 3, 3), 64, 0.119),
    ((128, 64, 3, 3), 16, 0.112),
    ((256, 256, 3, 3), 16, 0.094),
    ((512, 512, 3, 3), 16, 0.063),
    ((256, 256, 3, 3), 4, 0.033),
    ((128, 4096), 64, 0.084),
    ((512, 512), 64, 0.050),
    ((128, 4096), 16, 0.030),
]


@pytest.mark.parametrize(("shape", "batch", "density"), MEASURED)
def test_the_limit_is_where_sparse_and_dense_were_equally_fast(shape, batch, density):
    assert break_even(shape, batch) == pytest.approx(density, rel=0.25)


def test_a_layer_is_sparse_below_its_limit_and_never_where_the_kernels_were_not_measured(monkeypatch):
    shape, window = (64, 64, 3, 3), Window((3, 3))
    limit = int(break_even(shape, 64) * 64 * 64 * 9)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert pays(shape, window, limit, batch=64)
    assert not pays(shape, window, limit + 1, batch=64)
    assert not pays((16, 8, 3, 3), window, 1, batch=4)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not pays(shape, window, limit, batch=64)
