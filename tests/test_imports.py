"""Who may import whom: downward only, server and client apart, a device without the server.

Every import statement counts, also those inside functions; only those under ``TYPE_CHECKING`` do not.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

import fedprune

ROOT = Path(__file__).resolve().parents[1]

#: From the top down; what shares a floor imports nothing of its neighbours but itself.
FLOORS = (
    {"cli", "server_app", "client_app"},
    {"deployment"},
    {"studies"},
    {"engine"},
    {"loggers"},
    {"results"},
    {"strategies", "clients"},
    {"server", "client"},
    {"protocol", "training"},
    {"compression"},
    {"wire"},
    {"costs"},
    {"tasks"},
    {"data", "models", "sparsity"},
    {"scenario"},
    {"registry"},
    {"plugin_files"},
    {"seeds", "determinism", "compiler", "wording", "units", "errors"},
)


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name without "fedprune."."""
    found = {}
    for top in ("fedprune", "strategies", "clients"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts if top != "fedprune" else parts[1:]).removesuffix(".__init__")
            if name not in ("", "__init__") and "templates" not in parts:
                found[name] = path
    return found


class _Imports(ast.NodeVisitor):
    """The modules of fedprune that a module imports, and names that may be modules."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute"
        if node.module == "fedprune":
            self.names |= {f"fedprune.{alias.name}" for alias in node.names}
        elif node.module:
            self.names.add(node.module)


def imported(path: Path) -> set[str]:
    """Return the top-level parts of fedprune that a file imports."""
    visitor = _Imports()
    visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
    known = set().union(*FLOORS)
    return {name.split(".")[1] for name in visitor.names if name.startswith("fedprune.")} & known


def test_every_module_stands_on_a_floor():
    assert {name.split(".")[0] for name in modules()} == set().union(*FLOORS)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_downward(name):
    own = name.split(".")[0]
    floor = next(number for number, parts in enumerate(FLOORS) if own in parts)
    below = set().union(*FLOORS[floor + 1 :]) | {own}
    upward = imported(modules()[name]) - below
    assert not upward, f"{name} imports {sorted(upward)}"


def test_no_method_imports_another_method():
    for name, path in modules().items():
        top, _, own = name.partition(".")
        if top not in ("strategies", "clients") or not own:
            continue
        visitor = _Imports()
        visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
        others = {n for n in visitor.names if n.startswith("fedprune.strategies.")}
        assert not others, f"{name} imports {sorted(others)}"


def test_every_public_name_is_there():
    assert sorted({*fedprune._EXPORTS, "__version__"}) == sorted(fedprune.__all__)
    for name in fedprune.__all__:
        assert getattr(fedprune, name) is not None


@pytest.mark.parametrize("name", sorted(set(fedprune.__all__) - {"__version__"}))
def test_every_public_name_has_a_docstring(name):
    assert (getattr(fedprune, name).__doc__ or "").strip()


def test_every_package_is_in_the_wheel():
    """What pyproject.toml does not list is there in a checkout, and missing where fedprune is installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = (path.parent.relative_to(ROOT).parts for path in (ROOT / "fedprune").rglob("__init__.py"))
    assert {".".join(parts) for parts in found} <= set(settings["tool"]["setuptools"]["packages"])
