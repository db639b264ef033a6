"""Keeps PyTorch from importing its compiler in processes that compile nothing.

PyTorch marks functions as not to be compiled when they are first called: optimizers' methods, batch norm
without data. For the mark it imports the compiler, which takes most of a second of processor time; a device
starts a process for each message, and most of what that takes is imports. `leave_out` puts a stand-in in the
compiler's place that marks nothing. It makes way as soon as anything else is asked of it, and what it did not
mark is marked then: a user's model that compiles a part of itself works as ever.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

_NAME = "torch._dynamo"
#: Where PyTorch remembers how a function is called that is not to be compiled.
_REMEMBERED = "__dynamo_disable"

F = TypeVar("F", bound=Callable[..., Any])


class _StandIn(ModuleType):
    """What of the compiler is called where nothing is compiled."""

    def __init__(self) -> None:
        super().__init__(_NAME, __doc__)
        self.__dict__["_unmarked"] = []

    def disable(self, fn: F, recursive: bool = True, *, wrapping: bool = True) -> F:
        """Return a function as it is: nothing compiles it."""
        self._unmarked.append(fn)
        return fn

    def graph_break(self, msg: str = "") -> None:
        """Do nothing: there is no graph."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(self._make_way(), name)

    def _make_way(self) -> ModuleType:
        """Import the compiler in the place of this, and let PyTorch mark what it has not."""
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
            torch = sys.modules["torch"]
            if torch.__dict__.get("_dynamo") is self:
                del torch.__dict__["_dynamo"]
            for function in self._unmarked:
                function.__dict__.pop(_REMEMBERED, None)
        return importlib.import_module(_NAME)


def leave_out() -> None:
    """Let this process do without PyTorch's compiler, until something asks for it."""
    sys.modules.setdefault(_NAME, _StandIn())
