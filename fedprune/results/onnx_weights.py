"""How weights lie in an ONNX file: pruned ones without their zeros, and in 8 bits where wanted.

ONNX stores dense tensors, in which a zero takes as much room as any other weight. Here a pruned
tensor is its kept values and a code of where they lie, close to the entropy of its mask; a function
inside the file, ``fedprune.Unpack``, puts the dense tensor together out of standard operators. A
runtime that folds constants, such as onnxruntime, does so once, when it loads the file, and from
then on computes as if the tensor had been stored dense.

The code is that of Golomb (1966) and Rice (1979). The gap before a kept weight, the number of zeros
since the one before it, is cut into its k low bits and the rest. ``high`` has for each kept weight
as many 0 bits as the rest says, and a 1 bit; ``low`` has a row of bits for each of the k, of which
the first is worth 1. With k = 0 ``high`` is the mask itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, NodeProto, helper, numpy_helper, parser

Array = NDArray[Any]

OPSET = 18
"""The first with ``BitwiseAnd``: onnxruntime 1.14 and later."""

_DOMAIN = "fedprune"

# The ones of `high` are found as the largest of its bits; of equal ones TopK takes the first. NonZero would
# say it in a word, but onnxruntime folds only what has a known shape. If the i-th is bit p of `high`, p - i
# zeros lie before it, so weight i lies at (p - i) * 2**k + i + low[0] + ... + low[i].
_UNPACK = f"""
<domain: "{_DOMAIN}", opset_import: ["": {OPSET}]>
Unpack (values, high, low, shape) => (dense) {{
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    two = Constant <value_int: int = 2> ()
    first = Constant <value_ints: ints = [0]> ()
    inner = Constant <value_ints: ints = [1, 2]> ()
    last = Constant <value_ints: ints = [-1]> ()
    mask = Constant <value: tensor = uint8[1] {{1}}> ()
    shifts = Constant <value: tensor = uint8[8] {{7, 6, 5, 4, 3, 2, 1, 0}}> ()
    size = Size (values)
    count = Reshape (size, last)
    i = Range (zero, size, one)
    high_bytes = Unsqueeze (high, last)
    high_shifted = BitShift <direction: string = "RIGHT"> (high_bytes, shifts)
    high_masked = BitwiseAnd (high_shifted, mask)
    high_flat = Reshape (high_masked, last)
    high_bits = Cast <to: int = 6> (high_flat)
    ones, p = TopK <axis: int = 0> (high_bits, count)
    low_bytes = Unsqueeze (low, last)
    low_shifted = BitShift <direction: string = "RIGHT"> (low_bytes, shifts)
    low_masked = BitwiseAnd (low_shifted, mask)
    low_bits = CastLike (low_masked, one)
    rows = Shape <start: int = 0, end: int = 1> (low)
    k = Squeeze (rows)
    places = Range (zero, k, one)
    powers = Pow (two, places)
    worth = Unsqueeze (powers, inner)
    low_worth = Mul (low_bits, worth)
    low_sum = ReduceSum <keepdims: int = 0> (low_worth, first)
    low_flat = Reshape (low_sum, last)
    low_gaps = Slice (low_flat, first, count)
    low_before = CumSum (low_gaps, zero)
    unit = Pow (two, k)
    zeros = Sub (p, i)
    high_before = Mul (zeros, unit)
    high_position = Add (high_before, i)
    position = Add (high_position, low_before)
    nothing = ConstantOfShape (shape)
    typed = CastLike (nothing, values)
    flat = Reshape (typed, last)
    filled = ScatterElements <axis: int = 0> (flat, position, values)
    dense = Reshape (filled, shape)
}}
"""
# Not DequantizeLinear: onnxruntime keeps that for kernels of 8 bits, and then computes it at every inference.
_DEQUANTIZE = f"""
<domain: "{_DOMAIN}", opset_import: ["": {OPSET}]>
Dequantize (values, scale) => (weight) {{
    float = CastLike (values, scale)
    weight = Mul (float, scale)
}}
"""


def pack(model: ModelProto, *, quantize: bool = False, sparse: bool = True) -> None:
    """Store each weight tensor of a model as it takes least room: without its zeros, or as it is.

    A weight tensor is a float32 initializer of two or more dimensions. What is unpacked equals what
    was there, but for quantisation.

    Parameters
    ----------
    model
        Of opset 18 or later; changed in place.
    quantize
        Round weights to 8 bits: symmetric, so that zeros stay zeros, with a float32 scale for each
        place of the first dimension (an output channel).
    sparse
        Leave zeros out where that takes less room; without, every tensor is stored dense.
    """
    nodes: list[NodeProto] = []
    initializers: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim < 2 or array.dtype != np.float32:
            initializers[tensor.name] = array
            continue
        target = tensor.name
        if quantize:
            stored = f"{target}.int8"
            array, initializers[f"{target}.scale"] = _quantized(array)
            nodes.insert(
                0, helper.make_node("Dequantize", [stored, f"{target}.scale"], [target], domain=_DOMAIN)
            )
            target = stored
        parts = {f"{target}.{part}": value for part, value in _encode(array).items()}
        if sparse and sum(value.nbytes for value in parts.values()) < array.nbytes:
            nodes.insert(0, helper.make_node("Unpack", list(parts), [target], domain=_DOMAIN))
            initializers |= parts
        else:
            initializers[target] = array
    _replace(model, initializers, [*nodes, *model.graph.node])
    used = {node.op_type for node in nodes}
    if used:
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        functions = map(_function, (_UNPACK, _DEQUANTIZE))
        model.functions.extend(function for function in functions if function.name in used)


def unpack(model: ModelProto) -> None:
    """Undo `pack`, in place: every weight is a dense initializer; quantised ones are float32 again."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    others = []
    for node in model.graph.node:
        if node.domain != _DOMAIN:
            others.append(node)
            continue
        inputs = [arrays.pop(name) for name in node.input]
        arrays[node.output[0]] = _decode(*inputs) if node.op_type == "Unpack" else inputs[0] * inputs[1]
    _replace(model, arrays, others)
    del model.functions[:]
    kept = [opset for opset in model.opset_import if opset.domain != _DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _function(text: str) -> FunctionProto:
    """Return a function with its names inside shortened: they would be a tenth of a small file."""
    function = parser.parse_function(text)
    short = {name: name for name in [*function.input, *function.output]}
    for node in function.node:
        node.input[:] = [short[name] for name in node.input]
        node.output[:] = [short.setdefault(name, str(len(short))) for name in node.output]
    return function


def _replace(model: ModelProto, initializers: dict[str, Array], nodes: list[NodeProto]) -> None:
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in initializers.items()
    )
    model.graph.node.extend(nodes)


def _quantized(weight: Array) -> tuple[Array, Array]:
    """Return int8 values in [-127, 127] and the float32 scales that broadcast against them."""
    largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def _encode(dense: Array) -> dict[str, Array]:
    """Return the inputs of ``Unpack`` for a tensor."""
    flat = dense.reshape(-1)
    positions = np.flatnonzero(flat)
    gaps = np.diff(positions, prepend=-1) - 1
    # Bits that the code takes for each k: one and k for each weight, and the zeros before the ones.
    lengths = [len(gaps) * (1 + k) + int((gaps >> k).sum()) for k in range(dense.size.bit_length())]
    k = int(np.argmin(lengths))
    ends = np.cumsum((gaps >> k) + 1) - 1
    high = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, dtype=bool)
    high[ends] = True
    low = (gaps >> np.arange(k)[:, None]) & 1
    return {
        "values": flat[positions],
        "high": np.packbits(high),
        "low": np.packbits(low.astype(bool), axis=1),
        "shape": np.array(dense.shape, dtype=np.int64),
    }


def _decode(values: Array, high: Array, low: Array, shape: Array) -> Array:
    """Return the dense tensor, as ``Unpack`` does."""
    i = np.arange(len(values))
    p = np.flatnonzero(np.unpackbits(high))
    gaps = (np.unpackbits(low, axis=1, count=len(values)) << np.arange(len(low))[:, None]).sum(axis=0)
    dense = np.zeros(int(np.prod(shape)), dtype=values.dtype)
    dense[((p - i) << len(low)) + i + np.cumsum(gaps)] = values
    return dense.reshape(shape)
