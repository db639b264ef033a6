"""The site builds strictly, loads nothing from elsewhere, and has what the code has."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pages import ROOT

import fedprune
from fedprune import registry
from fedprune.results.records import summarise
from fedprune.scenario import json_schema

pytest.importorskip("mkdocs")
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    """The hook that makes pages and tables."""
    spec = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site: that of `make docs` where CI has just made it, by the same command."""
    if "FEDPRUNE_SITE" in os.environ:
        made = Path(os.environ["FEDPRUNE_SITE"])
        assert (made / "index.html").exists()
        return made
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_public_api_is_documented(generated: ModuleType) -> None:
    assert generated.undocumented() == []


def test_a_public_name_without_a_docstring_or_a_page_is_found(
    generated: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgotten() -> None: ...

    monkeypatch.setattr(fedprune, "__all__", [*fedprune.__all__, "forgotten"])
    monkeypatch.setattr(fedprune, "forgotten", forgotten, raising=False)
    assert generated.undocumented() == [
        "fedprune.forgotten is on no page of docs/reference",
        "fedprune.forgotten has no docstring",
    ]


def test_every_method_has_a_page_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r"methods/(\w+)\.md", navigation)
    assert sorted(pages) == sorted([*registry.names("strategy"), "index"])


@pytest.mark.parametrize("name", registry.names("strategy"))
def test_a_method_s_page_has_its_options_and_its_source(generated: ModuleType, name: str) -> None:
    page = generated.method(name)
    for option in registry.load("strategy", name).Options.model_fields:
        assert f"| `{option}` |" in page
    assert "## References" in page


def test_every_section_of_a_scenario_is_in_the_reference(generated: ModuleType) -> None:
    page = generated.filled((DOCS / "reference/scenario.md").read_text(encoding="utf-8"))
    for name, spec in json_schema()["$defs"].items():
        if name.endswith("Spec"):
            for key in spec.get("properties", ()):
                assert f"| `{key}` |" in page, f"{name}.{key}"


def test_every_key_of_a_summary_is_in_the_reference() -> None:
    page = (DOCS / "reference/files.md").read_text(encoding="utf-8")
    section = page.partition("## summary.json")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]+)\|", section, flags=re.M))))
    summary = summarise([], [], name="x", strategy="y", seed=0, planned_rounds=1, status="complete")
    assert documented == summary.keys()


def test_every_option_of_the_command_line_is_in_the_reference(generated: ModuleType) -> None:
    page = generated.commands()
    for command in ("run", "resume", "validate", "list", "compare", "export", "deploy init"):
        assert f"## fedprune {command}\n" in page
    for option in ("--set KEY=VALUE", "--overwrite", "--host NAME"):
        assert f"`{option}`" in page


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\">]+)")
    for page in site.rglob("*.html"):
        assert loaded.findall(page.read_text(encoding="utf-8")) == [], page


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_the_site_has_an_anchor_for_every_public_name(site: Path) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    for name in fedprune.__all__:
        if not name.startswith("__"):
            assert f'id="fedprune.{name}"' in pages, name


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_every_page_has_one_title(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name != "404.html":
            assert len(re.findall(r"<h1[ >]", page.read_text(encoding="utf-8"))) == 1, page
