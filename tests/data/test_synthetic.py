"""Made-up data: an example is the same whatever else is asked for, and there is something to learn."""

import numpy as np
import pytest
import torch

from fedprune.data import SOURCES, Request, Source

MADE_UP = sorted(name for name in SOURCES if name.startswith("synthetic_"))
CLASSES = ["synthetic_keywords", "synthetic_activity", "synthetic_people"]


def made(name: str, train: int = 12, test: int = 6, seed: int = 0) -> Source:
    return SOURCES[name](Request(name, seed=seed, train_examples=train, test_examples=test))


@pytest.mark.parametrize("name", MADE_UP)
def test_an_example_is_the_same_whichever_are_asked_for(name: str) -> None:
    few, many = made(name, 12), made(name, 40)
    rows = {
        row.tobytes(): target.tobytes()
        for row, target in zip(many.train.inputs, many.train.targets, strict=True)
    }
    assert len(rows) == 40
    again = made(name, 12)
    np.testing.assert_array_equal(few.train.inputs, again.train.inputs)
    assert few.clients is not None
    assert len(few.clients) == len(few.train) == 12
    other = made(name, 12, seed=1)
    assert {r.tobytes() for r in other.train.inputs} != {r.tobytes() for r in few.train.inputs}
    if few.inputs is not None:
        tensor = few.inputs.tensor(torch.from_numpy(few.train.inputs))
        assert tensor.shape == (12, *few.inputs.shape)
        assert tensor.isfinite().all()


@pytest.mark.parametrize("name", CLASSES)
def test_classes_can_be_told_apart(name: str) -> None:
    """The nearest neighbour in spectra is more often right than by chance: there is something to learn."""
    source = made(name, 500, 200)
    train, test = (spectra(part.inputs) for part in (source.train, source.test))
    scale = train.std(0) + 1e-9
    train, test = train / scale, test / scale
    nearest = ((train**2).sum(1) - 2 * test @ train.T).argmin(1)
    right = (source.train.targets[nearest] == source.test.targets).mean()
    chance = 1 / len(source.class_names)
    assert right > chance + 3 * np.sqrt(chance * (1 - chance) / len(source.test))
    assert len(set(source.test.targets.tolist())) == len(source.class_names)


def spectra(inputs: np.ndarray) -> np.ndarray:
    """Return few numbers an example: the strength of each frequency, of pictures along each eighth row."""
    if inputs.ndim == 4:
        inputs = inputs[:, :, ::8, ::8]
    strength = np.abs(np.fft.rfft(inputs.astype(np.float64), axis=-1)).reshape(len(inputs), -1)
    width = max(1, strength.shape[1] // 400)
    return strength[:, : width * 400].reshape(len(inputs), -1, width).mean(-1)


def test_machines_to_train_on_run_well_and_half_of_those_to_test_do_not() -> None:
    source = made("synthetic_machine_sounds", 50, 100)
    assert source.task == "reconstruction"
    assert not source.train.targets.any()
    assert 20 < source.test.targets.sum() < 80
    assert source.inputs is not None
    assert source.inputs.shape == (1, 5, 128)  # 640 values, as in MLPerf Tiny
    loud = source.inputs.tensor(torch.from_numpy(source.test.inputs))[:, 0, :, 64:].mean((1, 2)).numpy()
    faulty = source.test.targets == 1
    assert loud[faulty].mean() > loud[~faulty].mean()  # knocks and whistles are high


def test_scenes_have_a_class_for_each_pixel() -> None:
    source = made("synthetic_scenes", 30)
    assert source.train.targets.shape == (30, 32, 32)
    assert set(np.unique(source.train.targets)) == {0, 1, 2}
    assert source.task == "segmentation"


def test_keywords_have_the_shape_of_mlperf_tiny() -> None:
    inputs = made("synthetic_keywords").inputs
    assert inputs is not None
    assert inputs.shape == (1, 49, 10)
