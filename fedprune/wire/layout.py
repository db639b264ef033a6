"""What both sides of a connection know of a model's state: its names, shapes and dtypes.

A state is the floating-point part of a ``state_dict``: parameters and floating-point buffers such
as batch-norm statistics. Integer buffers (``num_batches_tracked``) are neither sent nor averaged.
This module reads and writes states; how they travel is for `fedprune.wire.values`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedprune.errors import WireError

_SENT = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Layout:
    """The entries of a model's state, in ``state_dict`` order.

    ``shapes`` and ``dtypes`` have the same keys. Nothing else about a state needs to be agreed on. A tensor
    that layers share is one entry, under the first of its names: it travels, and is counted, once.
    """

    shapes: dict[str, torch.Size]
    dtypes: dict[str, torch.dtype]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """Return the layout of a module's state.

        Raises
        ------
        WireError
            For an entry that is neither an integer nor a float of at most 32 bits: values travel
            as float32 at most, so a float64 or complex entry could not come back as it was.
        """
        entries = _entries(module)
        for name, entry in entries.items():
            if entry.dtype not in _SENT:
                raise WireError(f"{name!r} has dtype {entry.dtype}; a state holds float32 or smaller floats")
        return cls(
            shapes={name: entry.shape for name, entry in entries.items()},
            dtypes={name: entry.dtype for name, entry in entries.items()},
        )

    def only(self, names: Container[str]) -> Layout:
        """Return the layout of those entries alone, in the same order."""
        return Layout(
            shapes={name: shape for name, shape in self.shapes.items() if name in names},
            dtypes={name: dtype for name, dtype in self.dtypes.items() if name in names},
        )

    def without(self, names: Container[str]) -> Layout:
        """Return the layout of all other entries, in the same order."""
        return self.only([name for name in self.shapes if name not in names])

    def select(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the entries of this layout out of a larger state."""
        return {name: state[name] for name in self.shapes}

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raise a ``WireError`` unless the state has exactly these names and shapes."""
        for name in state:
            if name not in self.shapes:
                raise WireError(f"{name!r} is not a tensor of this model")
        for name, shape in self.shapes.items():
            if name not in state:
                raise WireError(f"{name!r} is missing from the state")
            if state[name].shape != shape:
                raise WireError(f"{name!r} has shape {tuple(state[name].shape)}, expected {tuple(shape)}")


def get_state(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of the floating-point entries of the module's ``state_dict``, on the CPU."""
    return {name: entry.detach().to("cpu", copy=True) for name, entry in _entries(module).items()}


def set_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state into the module's own tensors; what is not part of a state stays as it is.

    Raises
    ------
    WireError
        If the names or shapes are not those of the module; it is then unchanged.
    """
    Layout.of(module).check(state)
    module.load_state_dict(dict(state), strict=False)


def _entries(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's own floating-point tensors, each once."""
    first_names: dict[int, str] = {}
    entries = module.state_dict(keep_vars=True)  # Without, a shared parameter is another tensor each time.
    for name, entry in entries.items():
        if isinstance(entry, Tensor) and (entry.is_floating_point() or entry.is_complex()):
            first_names.setdefault(id(entry), name)
    return {name: entries[name] for name in first_names.values()}
