"""The notebook runs from its first cell to its last, and shows what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    client: Any = pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "start" / "study.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs: the site has none"
    monkeypatch.chdir(tmp_path)
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("<table" in data.get("text/html", "") for data in shown)
    assert sum("image/png" in data for data in shown) == 2
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    assert shown[-1]["text/plain"].endswith(", 0)")
