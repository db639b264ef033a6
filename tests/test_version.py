"""The version stands in one place; what repeats it for people repeats it right."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import yaml

import fedprune

ROOT = Path(__file__).resolve().parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_package_says_the_version_of_its_project():
    assert fedprune.__version__ == metadata.version("fedprune") == VERSION


def test_the_citation_and_the_changes_know_it():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == VERSION
    assert VERSION in (ROOT / "CHANGELOG.md").read_text()


def test_documents_name_the_wheel_of_this_version():
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {found for path in documents for found in re.findall(r"fedprune-([0-9.]+)-py3", path.read_text())}
    assert named == {VERSION}


def test_a_checkout_that_is_not_installed_knows_it(monkeypatch):
    """As on `python run_sim.py` where only the other packages are."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    installed = fedprune.__version__
    monkeypatch.setattr(metadata, "version", missing)
    assert fedprune.__version__ == installed
