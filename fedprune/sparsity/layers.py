"""Which parameters of which types of layers may be pruned: one table, and why the others stay dense.

A parameter that is trained is prunable where all that acts on it does: masks, the wire format, growth, and
the counts of FLOPs and memory. That is so for matrices and kernels that enter a product themselves. How a
layer is then executed, sparse or dense, is for `fedprune.sparsity.execution`; what a scenario keeps dense
besides is for `fedprune.sparsity.pruning`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNCellBase
from torch.nn.utils.parametrize import ParametrizationList

#: What is said of biases and the parameters of normalisation layers, which are too many to name.
SMALL = "biases and normalisation"
#: What is said of weights that would be prunable but are not trained.
FROZEN = "frozen"


_COMPUTED = "a weight is computed from it"


@dataclass(frozen=True)
class Rule:
    """How the parameters of a type of layer are handled.

    Parameters
    ----------
    kinds
        The layer's classes; their subclasses too.
    prunable
        Patterns (``fnmatch``) on the names of the parameters that may be pruned.
    why_dense
        Why the others, but for biases, are not.
    """

    kinds: tuple[type[nn.Module], ...]
    prunable: tuple[str, ...] = ()
    why_dense: str = _COMPUTED


RULES: tuple[Rule, ...] = (
    Rule((nn.Linear, _ConvNd), ("weight",)),  # Convolutions of 1 to 3 dimensions, transposed ones too.
    Rule((nn.RNNBase,), ("weight_ih_l*", "weight_hh_l*", "weight_hr_l*")),  # RNN, LSTM, GRU
    Rule((RNNCellBase,), ("weight_ih", "weight_hh")),
    # Its out_proj is a linear layer of its own.
    Rule((nn.MultiheadAttention,), ("in_proj_weight", "[qkv]_proj_weight")),
    Rule((nn.Embedding, nn.EmbeddingBag), why_dense="rows are looked up, not multiplied"),
    Rule((nn.Bilinear,), why_dense="its products are not counted by weight"),
    Rule((_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU), why_dense=SMALL),
    Rule((ParametrizationList,)),
)
"""The first rule that fits a layer holds. A layer that none fits has no prunable parameters."""


@dataclass(frozen=True)
class Weight:
    """One parameter of a model, under all its names.

    Parameters
    ----------
    name
        As ``named_parameters`` and ``Masks`` have it.
    names
        That one, and those under which other layers share the parameter.
    elements
        Number of its values.
    why_dense
        Why it may not be pruned; None where it may.
    """

    name: str
    names: tuple[str, ...]
    elements: int
    why_dense: str | None


def weights(module: nn.Module) -> list[Weight]:
    """Return every parameter of a model once, in the order of the layers.

    A parameter that several layers share is prunable if it is for one of them, and has that one's place: the
    matrix of a decoder is, though an embedding looks it up as well.

    Examples
    --------
    >>> [(weight.name, weight.why_dense) for weight in weights(nn.GRU(4, 8))][:3]
    [('weight_ih_l0', None), ('weight_hh_l0', None), ('bias_ih_l0', 'biases and normalisation')]
    """
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found: dict[int, Weight] = {}
    for layer in module.modules():
        for own, parameter in layer.named_parameters(recurse=False):
            key, why = id(parameter), _why_dense(layer, own)
            if why is None and not parameter.requires_grad:
                why = FROZEN
            if key in found and (found[key].why_dense is None or why is not None):
                continue
            found.pop(key, None)
            found[key] = Weight(names[key][0], tuple(names[key]), parameter.numel(), why)
    return list(found.values())


def _why_dense(layer: nn.Module, name: str) -> str | None:
    kind = type(layer).__name__
    rule = next((rule for rule in RULES if isinstance(layer, rule.kinds)), None)
    if rule is not None and any(fnmatchcase(name, pattern) for pattern in rule.prunable):
        return None
    if "bias" in name or (rule is not None and rule.why_dense == SMALL):
        return SMALL
    return f"{kind}: {rule.why_dense if rule is not None else 'not a type of layer that can be pruned'}"
