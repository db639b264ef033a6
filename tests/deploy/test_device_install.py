"""`pip install fedprune`, without an extra, is all that a device needs: tried in a clean environment."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

#: What only an extra brings, and no device needs.
EXTRAS = "datasets flwr_datasets matplotlib onnx onnxruntime onnxscript pandas pyarrow PIL ray sklearn"

#: What runs on a device.
MODULES = "client_app data models wire clients.sparse clients.supermask cli"


@pytest.fixture(scope="session")
def device_python(tmp_path_factory) -> Path:
    """Return the Python of a new environment with fedprune's wheel and what that asks for."""
    folder = tmp_path_factory.mktemp("device")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT], check=True, cwd=folder
    )
    wheel = next(folder.glob("fedprune-*.whl"))
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    # PyTorch is the project's own: to install it once more takes a minute, and another build gigabytes.
    link_installed("torch", folder / "venv" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix))
    install = [python, "-I", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*install, wheel], check=True)
    return python


def link_installed(name: str, site: Path) -> None:
    """Give another environment a package of this one, with all that it requires."""
    left, found = [name], set[str]()
    while left:
        package = distribution(left.pop())
        if package.name in found:
            continue
        found.add(package.name)
        for required in map(Requirement, package.requires or []):
            if required.marker is None or required.marker.evaluate({"extra": ""}):
                left.append(required.name)
        for part in {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}:
            target = Path(str(package.locate_file(part)))
            if not (site / part).exists():
                (site / part).symlink_to(target, target_is_directory=target.is_dir())


def said_by(python: Path, code: str, folder: Path) -> str:
    done = subprocess.run([python, "-I", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_of_the_extras_is_there_and_the_client_is_imported(device_python, tmp_path):
    code = f"""
import importlib, json, sys
from importlib.util import find_spec
there = [name for name in {EXTRAS!r}.split() if find_spec(name)]
for name in {MODULES!r}.split():
    importlib.import_module("fedprune." + name)
from fedprune import registry
clients = [registry.load("client", name).__module__ for name in registry.names("client")]
strategies = [registry.load("strategy", name).__module__ for name in registry.names("strategy")]
import fedprune
print(json.dumps([there, clients, strategies, fedprune.__file__]))
"""
    there, clients, strategies, file = json.loads(said_by(device_python, code, tmp_path))
    assert there == []
    assert len(clients) >= 3
    assert len(strategies) >= 10
    assert str(device_python.parents[1]) in file


def test_the_client_runs_there_on_data_of_its_own(device_python, deployment, plan, tmp_path):
    """Three SuperNodes of that environment, each with images of its own, finish a run."""
    digits = np.random.default_rng(0)
    for number in range(3):
        labels = np.arange(60) % 10
        pixels = np.zeros((60, 1, 8, 8), dtype=np.uint8)
        pixels[np.arange(60), 0, labels % 8, labels // 8] = 255  # A dot whose place is the digit.
        pixels += digits.integers(0, 20, pixels.shape, dtype=np.uint8)
        np.savez(tmp_path / f"own-{number}.npz", pixels=pixels, labels=labels)
        deployment.node_config(
            number, data=str(tmp_path / f"own-{number}.npz"), device="raspberry-pi-zero-2-w"
        )
        device = deployment.directory / "devices" / f"device-{number}"
        (device / "venv").symlink_to(device_python.parents[1])
    deployment.write_scenario({**plan, "strategy": {"name": "static", "density": 0.3}})
    deployment.start_nodes(0, 1, 2)
    out = tmp_path / "out"
    run = deployment.finish(deployment.submit(out), out)
    assert run.summary["clients_failed"] == 0
    trained = [task for task in run.clients if task["type"] == "train"]
    assert {task["examples"] for task in trained} == {48}  # 60, of which a fifth is held out.
    assert {task["device"] for task in trained} == {"raspberry-pi-zero-2-w"}
    for task in trained:
        assert task["measured_seconds"] > 0
        assert task["measured_memory_bytes"] > 50 * 2**20 > task["peak_memory_bytes"]
