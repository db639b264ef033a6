"""FLOPs of a model: a forward pass, a training step, the dense gradient of an adjustment.

A multiply-accumulate is 2 FLOPs. A masked weight costs nothing, forward or backward; biases,
normalisation, activations, pooling and the loss are dense whatever the masks. The count is that of
the mathematics, not of a kernel: no index arithmetic, no im2col, no Winograd. The optimizer's own
arithmetic is left out. How long the FLOPs take is for `fedprune.costs.clock`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fedprune.costs.step import TRACE_EXAMPLES, forward_loss, in_single_products, leaves_no_trace, on_skeleton
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.structure.smaller import shrink
from fedprune.tasks import Task, classification_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Work:
    """FLOPs of a forward pass and of the backward pass that belongs to it."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """FLOPs of both passes."""
        return self.forward + self.backward


@dataclass(frozen=True)
class LayerCost:
    """What one weight tensor takes part in, per example.

    Parameters
    ----------
    name
        Path of the module that holds the weight.
    weight
        Name of the parameter, as in ``Masks``.
    weights
        Its number of elements, pruned ones included.
    positions
        Output positions, each of which uses every weight once: 1 for a linear layer, height times
        width of the output for a convolution (of the input for a transposed one), the length of the
        sequence for a recurrent layer, summed over the uses of a weight that is used twice. Of attention
        between sequences of two lengths it is the mean over the weights, rounded down; the rest is
        among the model's ``other_products``.
    input_gradient_positions
        Of these, the positions through which a gradient flows on to the layer's input.
    trained
        Whether the weight receives a gradient.
    """

    name: str
    weight: str
    weights: int
    positions: int
    input_gradient_positions: int
    trained: bool

    @property
    def first(self) -> bool:
        """Whether nothing below the layer is trained, so that it needs no gradient to its input."""
        return self.input_gradient_positions == 0

    def work(self, kept: int, examples: int) -> Work:
        """FLOPs of the layer's products with ``kept`` weights unpruned."""
        backward = self.input_gradient_positions + (self.positions if self.trained else 0)
        return Work(2 * kept * self.positions * examples, 2 * kept * backward * examples)


@dataclass(frozen=True)
class ParameterCost:
    """Size of one parameter: its name, elements, bytes per element, and whether it is trained."""

    name: str
    elements: int
    itemsize: int
    trained: bool


@dataclass(frozen=True, eq=False)
class ModelCost:
    """Everything about a model that its costs depend on, found once by tracing one training step.

    ``layers`` are the parameters that enter a matrix product or a convolution directly, however the
    model's code calls it. ``other_products`` are products of two activations (attention) or with a
    weight that was computed (weight norm): they stay dense. ``elementwise`` is all the rest. Both
    are FLOPs per example. Costs are taken to be proportional to the number of examples.

    FLOPs per element, forward and backward:

    ============================ ======================================= ==========================
    what                         forward                                 backward
    ============================ ======================================= ==========================
    bias                         1 per output                            1 per output gradient
    batch, layer, group norm     8 (mean 1, variance 3, normalise and    9 (both sums 5, gradient to
                                 scale 4)                                the input 4)
    activations, residual sums,  1 per output and operation              1 per output and operation
    any other pointwise step
    means, sums, largest values  1 per input                             1 per input, where scaled
    max and average pooling      window size per output                  1, window size per output
    bilinear interpolation       7 per output                            7 per output gradient
    embedding                    0                                       1 per output gradient
    log-softmax, softmax         5, 4 per input                          4 per input
    ============================ ======================================= ==========================

    An exponential or a root is one FLOP like an addition. The forward figure is that of training
    mode: batch norm computes the statistics of the batch.
    """

    task: Task
    layers: tuple[LayerCost, ...]
    other_products: Work
    elementwise: Work
    parameters: tuple[ParameterCost, ...]
    buffer_bytes: int
    skeleton: nn.Module = field(repr=False)
    _smaller: dict[str, ModelCost] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, module: nn.Module, task: Task | Sequence[int]) -> Self:
        """Measure a model; it is neither changed nor run on data (see `fedprune.costs.step`).

        Parameters
        ----------
        module
            Maps the task's inputs to its outputs.
        task
            What is learnt. A shape, such as (C, H, W), stands for classification of inputs of that shape.
        """
        task = task if isinstance(task, Task) else classification_of(task)
        model, counts = on_skeleton(module, lambda model: _trace(model, task))
        named = dict(model.named_parameters())
        layers = tuple(_layer(name, named[name], counts) for name in counts.by_weight)
        of_layers = [layer.work(layer.weights, TRACE_EXAMPLES) for layer in layers]
        return cls(
            task=task,
            layers=layers,
            other_products=Work(
                _per_example(counts.products["forward"] - sum(work.forward for work in of_layers)),
                _per_example(counts.products["backward"] - sum(work.backward for work in of_layers)),
            ),
            elementwise=Work(
                _per_example(counts.elementwise["forward"]), _per_example(counts.elementwise["backward"])
            ),
            parameters=tuple(
                ParameterCost(name, tensor.numel(), tensor.element_size(), tensor.requires_grad)
                for name, tensor in named.items()
            ),
            buffer_bytes=sum(tensor.numel() * tensor.element_size() for tensor in model.buffers()),
            skeleton=model,
        )

    def under(self, masks: Masks) -> ModelCost:
        """Return the costs of what is trained under masks: the smaller model where they prune whole channels.

        For masks of single weights, and where the model's code relies on the sizes that it was built with, it
        is this one.
        """
        if masks.density == 1 or masks.axes is None:
            return self
        if masks.version not in self._smaller:
            try:
                found = type(self).of(shrink(self.skeleton, masks), self.task)
            except Exception:  # A user's own code may raise anything.
                found = self
            self._smaller[masks.version] = found
        return self._smaller[masks.version]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.task.info.input_shape

    def matmul_flops(self, masks: Masks, examples: int) -> Work:
        """FLOPs of matrix products and convolutions alone.

        With empty or all-ones masks they are those of ``torch.utils.flop_counter.FlopCounterMode``,
        except that it counts the weight gradient of a grouped convolution as if it had one group.
        """
        cost = self.under(masks)
        works = [layer.work(self._kept(layer, masks), examples) for layer in cost.layers]
        return Work(
            sum(work.forward for work in works) + cost.other_products.forward * examples,
            sum(work.backward for work in works) + cost.other_products.backward * examples,
        )

    def forward_flops(self, masks: Masks, examples: int) -> int:
        """FLOPs of a forward pass over ``examples`` examples, with the loss."""
        return self.matmul_flops(masks, examples).forward + self.under(masks).elementwise.forward * examples

    def training_flops(self, masks: Masks, examples: int) -> int:
        """FLOPs of forward and backward over ``examples`` examples; weight gradients where kept."""
        return self.matmul_flops(masks, examples).total + self.under(masks).elementwise.total * examples

    def dense_gradient_flops(self, masks: Masks, weights: Iterable[str], examples: int) -> int:
        """FLOPs that a training step over ``examples`` spends more when these weights' gradients are dense.

        That is the weight gradient at the pruned positions, which `training_flops` leaves out.

        Raises
        ------
        KeyError
            A name that is not a layer's weight.
        """
        layers = {layer.weight: layer for layer in self.layers}
        return sum(
            2 * (layers[name].weights - self._kept(layers[name], masks)) * layers[name].positions * examples
            for name in weights
        )

    @staticmethod
    def _kept(layer: LayerCost, masks: Masks) -> int:
        return masks.kept.get(layer.weight, layer.weights)


def _per_example(flops: int) -> int:
    return -(-flops // TRACE_EXAMPLES)  # what does not grow with the batch, as a loss's mean, rounds up


def _layer(weight: str, parameter: Tensor, counts: _Counts) -> LayerCost:
    once = 2 * parameter.numel() * TRACE_EXAMPLES  # FLOPs of one position
    uses = counts.by_weight[weight]
    return LayerCost(
        name=weight.rpartition(".")[0],
        weight=weight,
        weights=parameter.numel(),
        positions=uses["forward"] // once,
        input_gradient_positions=uses["backward"] // once,
        trained=parameter.requires_grad,
    )


def _trace(model: nn.Module, task: Task) -> _Counts:
    counts = _Counts(model)
    with leaves_no_trace(model), in_single_products(model), counts:
        loss = forward_loss(model, task, TRACE_EXAMPLES)
        counts.phase = "backward"
        loss.backward()  # type: ignore[no-untyped-call]
    return counts


class _Counts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the FLOPs of every operation that runs inside, apart for forward and backward.

    A product with a parameter is booked under its name: in the forward pass it is the layer's
    output, in the backward pass the gradient to its input. The weight gradient is a product of two
    activations, so it cannot be told by its operands; it is as large as the forward product.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = "forward"
        self.products: Counter[str] = Counter()
        self.elementwise: Counter[str] = Counter()
        self.by_weight: dict[str, Counter[str]] = {}
        self._names = {_storage(tensor): name for name, tensor in model.named_parameters()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        operation = func._overloadpacket
        if operation in _CONVOLUTIONS:
            self._count_convolution(operation, args, out)
        elif operation in flop_registry:
            biased = operation in _WITH_BIAS
            flops = flop_registry[operation](*args, **(kwargs or {}), out_val=out)
            self._count_product(args[1:] if biased else args, flops)
            self.elementwise[self.phase] += out.numel() if biased else 0
        else:
            self.elementwise[self.phase] += _elementwise_flops(func, args, out)
        return out

    def _count_product(self, operands: Iterable[Any], flops: int) -> None:
        self.products[self.phase] += flops
        for operand in operands:
            if isinstance(operand, Tensor) and (name := self._names.get(_storage(operand))):
                self.by_weight.setdefault(name, Counter())[self.phase] += flops

    def _count_convolution(self, operation: Any, args: tuple[Any, ...], out: Any) -> None:
        # Not the registry's formulas: they are wrong for the weight gradient with groups.
        backward = operation is aten.convolution_backward
        gradient, inputs, weight = args[:3] if backward else (out, args[0], args[1])
        transposed = args[7] if backward else args[6]
        positions = prod((inputs if transposed else gradient).shape[2:]) * inputs.shape[0]
        flops = 2 * weight.numel() * positions
        to_input, to_weight, to_bias = args[10] if backward else (True, False, args[2] is not None)
        if to_input:
            self._count_product([weight], flops)
        if to_weight:
            self._count_product([], flops)
        self.elementwise[self.phase] += gradient.numel() if to_bias else 0


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


_CONVOLUTIONS = {aten.convolution, aten.convolution_backward}
_WITH_BIAS = {aten.addmm, aten.baddbmm}


def _window(args: tuple[Any, ...], dimensions: int = 2) -> int:
    sizes = args[1]
    return prod(sizes) if len(sizes) > 1 else sizes[0] ** dimensions


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in (values if isinstance(values, tuple | list) else [values]) if _is_float(value)]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _elements(values: Any) -> int:
    return max((tensor.numel() for tensor in _tensors(values)), default=0)


# FLOPs by (arguments, outputs) of what is neither a product nor one step per element.
_FORMULAS: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    **dict.fromkeys(
        (
            aten.native_batch_norm,
            aten._native_batch_norm_legit,
            aten.native_group_norm,
            aten.native_layer_norm,
        ),
        lambda args, out: 8 * _elements(out),
    ),
    **dict.fromkeys(
        (aten.native_batch_norm_backward, aten.native_group_norm_backward, aten.native_layer_norm_backward),
        lambda args, out: 9 * _elements(args),
    ),
    aten.max_pool2d_with_indices: lambda args, out: _window(args) * _elements(out),
    aten.max_pool2d_with_indices_backward: lambda args, out: args[0].numel(),
    aten.avg_pool2d: lambda args, out: _window(args) * _elements(out),
    aten.avg_pool2d_backward: lambda args, out: _window((args[0], args[2])) * args[0].numel(),
    aten._adaptive_avg_pool2d: lambda args, out: args[0].numel(),
    aten._adaptive_avg_pool2d_backward: lambda args, out: _elements(out),
    aten.max_pool3d_with_indices: lambda args, out: _window(args, 3) * _elements(out),
    aten.max_pool3d_with_indices_backward: lambda args, out: args[0].numel(),
    aten.avg_pool3d: lambda args, out: _window(args, 3) * _elements(out),
    aten.avg_pool3d_backward: lambda args, out: _window((args[0], args[2]), 3) * args[0].numel(),
    aten._adaptive_avg_pool3d: lambda args, out: args[0].numel(),
    aten._adaptive_avg_pool3d_backward: lambda args, out: _elements(out),
    aten.embedding_dense_backward: lambda args, out: args[0].numel(),
    aten._log_softmax: lambda args, out: 5 * _elements(out),
    aten._log_softmax_backward_data: lambda args, out: 4 * _elements(out),
    aten._safe_softmax: lambda args, out: 4 * _elements(out),
    aten._softmax: lambda args, out: 4 * _elements(out),
    aten._softmax_backward_data: lambda args, out: 4 * _elements(out),
    aten.sum: lambda args, out: _elements(args),
    aten.mean: lambda args, out: _elements(args),
    **dict.fromkeys(
        (aten.amax, aten.amin, aten.max, aten.min, aten.prod, aten.logsumexp, aten.linalg_vector_norm),
        lambda args, out: _elements(args),
    ),
    aten.cumsum: lambda args, out: _elements(args),
    aten.var: lambda args, out: 3 * _elements(args),
    **dict.fromkeys((aten.nll_loss_forward, aten.nll_loss2d_forward), lambda args, out: args[1].numel()),
    **dict.fromkeys((aten.nll_loss_backward, aten.nll_loss2d_backward), lambda args, out: args[2].numel()),
    aten.upsample_bilinear2d: lambda args, out: 7 * _elements(out),
    aten.upsample_bilinear2d_backward: lambda args, out: 7 * args[0].numel(),
    aten.upsample_nearest2d_backward: lambda args, out: args[0].numel(),
}

# One step per element, though PyTorch has no such tag on them.
_POINTWISE = {
    aten.binary_cross_entropy_with_logits,
    aten.elu_backward,
    aten.glu,
    aten.glu_backward,
    aten.hardsigmoid_backward,
    aten.hardswish,
    aten.hardswish_backward,
    aten.hardtanh_backward,
    aten.huber_loss,
    aten.huber_loss_backward,
    aten.leaky_relu_backward,
    aten.mse_loss,
    aten.mse_loss_backward,
    aten._prelu_kernel,
    aten._prelu_kernel_backward,
    aten.smooth_l1_loss,
    aten.smooth_l1_loss_backward,
    aten.softplus_backward,
}

# Pointwise by PyTorch's tags, but they only move or create data.
_FREE = {
    aten.fill,
    aten.fill_,
    aten.zero_,
    aten.copy_,
    aten._to_copy,
    aten.clone,
    aten.zeros_like,
    aten.ones_like,
}


def _elementwise_flops(func: Any, args: tuple[Any, ...], out: Any) -> int:
    operation = func._overloadpacket
    if formula := _FORMULAS.get(operation):
        return formula(args, out)
    tagged = torch.Tag.pointwise in func.tags and operation not in _FREE
    pointwise = tagged or operation in _POINTWISE
    return _elements(out) if pointwise else 0
