"""What follows from pooled sums is what follows from all values together."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedprune.data.dataset import Shares
from fedprune.data.series import Windows
from fedprune.data.standard import pooled


def divided(rows: int, clients: int, rng: np.random.Generator) -> Shares:
    """Return a division of some of the rows; clients may have none."""
    owner = rng.integers(-1, clients, rows)  # -1: nobody's
    parts = [np.flatnonzero(owner == client) for client in range(clients)]
    return Shares(np.concatenate(parts), np.concatenate([[0], np.cumsum([len(part) for part in parts])]))


@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 2**32), st.floats(-1e6, 1e6))
def test_pooled_constants_are_those_of_the_union(rows: int, clients: int, seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    stored = shift + rng.normal(0, 1 + abs(shift) / 10, (rows, 3, 4))
    stored[rng.random(stored.shape) < 0.1] = np.nan
    shares = divided(rows, clients, rng)
    fitted = pooled(Windows((3, 4)), stored, shares)
    union = stored[shares.indices]
    for channel in range(3):
        values = union[:, channel][np.isfinite(union[:, channel])]
        if len(values) > 1:
            assert fitted.mean[channel] == pytest.approx(values.mean(), rel=1e-9, abs=1e-6)
            assert fitted.std[channel] == pytest.approx(values.std(), rel=1e-5)
        if len(values) == 0:
            assert (fitted.mean[channel], fitted.std[channel]) == (0.0, 1.0)


def test_a_constant_channel_becomes_zero_and_a_missing_value_the_mean() -> None:
    stored = np.full((5, 2, 3), 7.3, dtype=np.float32)
    stored[:, 1] = np.arange(5, dtype=np.float32)[:, None]
    stored[0, 1, 0] = np.nan
    fitted = pooled(Windows((2, 3)), stored, Shares(np.arange(5), np.array([0, 2, 5])))
    made = fitted.tensor(torch.from_numpy(stored))
    assert made.dtype == torch.float32
    assert made[:, 0].abs().max() < 1e-5
    assert made[0, 1, 0] == 0
    assert made[:, 1].mean() == pytest.approx(0, abs=1e-6)


def test_unfitted_inputs_are_taken_as_they_are() -> None:
    stored = torch.arange(6.0).view(1, 2, 3)
    assert Windows((2, 3)).tensor(stored).equal(stored)
