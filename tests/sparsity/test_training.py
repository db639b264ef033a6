import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedprune.models import MODELS
from fedprune.sparsity.criteria import CRITERIA
from fedprune.sparsity.distributions import DISTRIBUTIONS
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable, prune
from fedprune.sparsity.training import hold

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "weight decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam with weight decay": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return MODELS["cnn"]((1, 8, 8), 3, width=0.2)


def pruned_masks(module: nn.Module, density: float = 0.2) -> Masks:
    return prune(
        module,
        prunable(module),
        criterion=CRITERIA["magnitude"],
        distribution=DISTRIBUTIONS["erk"],
        density=density,
        example=torch.ones(1, 1, 8, 8),
    )


def steps(count: int = 20) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return [(torch.randn(8, 1, 8, 8, generator=generator), torch.arange(8) % 3) for _ in range(count)]


def train(module: nn.Module, make: Make, after_step: Callable[[], None] = lambda: None) -> None:
    optimizer = make(list(module.parameters()))
    for inputs, labels in steps():
        optimizer.zero_grad()
        functional.cross_entropy(module(inputs), labels).backward()
        optimizer.step()
        after_step()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_pruned_weights_stay_zero_and_the_others_train_as_if_masked_after_each_step(name: str) -> None:
    module = network()
    masks = pruned_masks(module)
    reference = copy.deepcopy(module)

    def mask_reference() -> None:
        with torch.no_grad():
            for key, mask in masks.items():
                weight = reference.get_parameter(key)
                weight.copy_(torch.where(mask, weight, 0.0))

    with hold(module, masks):
        train(module, OPTIMIZERS[name])
    mask_reference()
    train(reference, OPTIMIZERS[name], mask_reference)

    for key, mask in masks.items():
        weight = module.get_parameter(key).detach()
        assert torch.equal(weight[~mask], torch.zeros(int((~mask).sum())))
    for key, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[key], rtol=0, atol=0)


def test_gradients_of_pruned_weights_are_zero_over_accumulated_passes() -> None:
    module = network()
    masks = pruned_masks(module)
    reference = copy.deepcopy(module)
    with hold(module, masks):
        with torch.no_grad():
            reference.load_state_dict(module.state_dict())
        for inputs, labels in steps(3):
            functional.cross_entropy(module(inputs), labels).backward()
            functional.cross_entropy(reference(inputs), labels).backward()
    for key, parameter in reference.named_parameters():
        expected = parameter.grad if key not in masks else torch.where(masks[key], parameter.grad, 0.0)
        assert torch.equal(module.get_parameter(key).grad, expected)


def test_a_gradient_that_is_not_finite_does_not_reach_pruned_weights() -> None:
    module = nn.Linear(2, 2, bias=False)
    masks = Masks({"weight": torch.tensor([[True, False], [False, False]])})
    with torch.no_grad():
        module.weight[1, 1] = torch.nan
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    with hold(module, masks):
        for inputs in (torch.tensor([[1.0, torch.inf]]), torch.tensor([[1.0, torch.nan]])):
            optimizer.zero_grad()
            (functional.linear(torch.ones(1, 2), module.weight) * inputs).sum().backward()
            optimizer.step()
        (module(torch.tensor([[1.0, torch.nan]]))).sum().backward()
    assert torch.equal(module.weight.detach()[1], torch.zeros(2))
    assert torch.equal(module.weight.grad[~masks["weight"]], torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_kept_values_and_gradients_are_the_same_bits_in_every_dtype(dtype: torch.dtype) -> None:
    module = nn.Linear(5, 3, bias=False).to(dtype)
    before = module.weight.detach().clone()
    mask = torch.arange(15).reshape(3, 5) % 2 == 0
    upstream = torch.randn(3, 5).to(dtype)
    with hold(module, Masks({"weight": mask})):
        (module.weight * upstream).sum().backward()
    assert torch.equal(module.weight.detach(), torch.where(mask, before, torch.zeros((), dtype=dtype)))
    assert torch.equal(module.weight.grad, torch.where(mask, upstream, torch.zeros((), dtype=dtype)))


def test_weights_in_another_memory_layout_are_held_too() -> None:
    module = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    mask = torch.rand(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    with hold(module, Masks({"weight": mask})):
        module(torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)).sum().backward()
    assert torch.equal(module.weight.detach() == 0, ~mask)
    assert torch.equal(module.weight.grad == 0, ~mask)


def test_nothing_is_left_behind_after_the_block_even_after_an_error() -> None:
    module = network()
    masks = pruned_masks(module)
    with pytest.raises(RuntimeError, match="stop"), hold(module, masks):
        raise RuntimeError("stop")
    inputs, labels = steps(1)[0]
    functional.cross_entropy(module(inputs), labels).backward()
    name = next(iter(masks))
    assert module.get_parameter(name).grad[~masks[name]].any()


def test_masks_that_do_not_fit_the_module_are_refused() -> None:
    module = nn.Linear(2, 3)
    with (
        pytest.raises(ValueError, match=r"'weight' has shape \(2, 3\), its parameter \(3, 2\)"),
        hold(module, Masks({"weight": torch.ones(2, 3, dtype=torch.bool)})),
    ):
        pass
    with pytest.raises(AttributeError), hold(module, Masks({"other": torch.ones(1, dtype=torch.bool)})):
        pass
