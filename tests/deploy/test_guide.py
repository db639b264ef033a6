"""Every command of docs/deploy.md runs, in its order, as a person would type them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import psutil
from deployment import BIN, free_port

from fedprune import load_run

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


def commands() -> list[str]:
    """Return the commands of the guide's console blocks."""
    blocks = re.findall(
        r"^```console\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_guide(tmp_path):
    """The ports are others, for what else may run on this machine; all else is as it stands there."""
    script = "\n".join(["set -e -m", *commands()])
    assert script.count("fedprune deploy init edge\n") == 1
    script = script.replace("init edge\n", f"init edge --port {free_port()}\n")
    script = re.sub("SUPERNODE_PORT=91..", lambda _: f"SUPERNODE_PORT={free_port()}", script)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FEDPRUNE_TEST_DEPLOYMENT": str(tmp_path),
    }
    with (tmp_path / "log").open("w") as log:
        try:
            done = subprocess.run(
                ["bash", "-c", script], cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        finally:
            left = [process for process in psutil.process_iter() if _is_ours(process, tmp_path)]
            for process in left:
                process.kill()
    shown = (tmp_path / "log").read_text(errors="replace")
    assert done.returncode == 0, shown[-3000:]
    runs = tmp_path / "edge" / "server" / "runs"
    trial, sparser = load_run(runs / "trial"), load_run(runs / "sparser")
    assert (trial.summary["status"], sparser.summary["status"]) == ("complete", "complete")
    assert (trial.summary["rounds"], sparser.summary["rounds"]) == (5, 2)
    assert trial.summary["clients_failed"] == 0
    measured = trial.summary["measured"]["raspberry-pi-4"]
    assert measured["measured_memory_bytes"] > measured["peak_memory_bytes"] > 0
    assert (tmp_path / "edge" / "model.safetensors").stat().st_size > 1000


def _is_ours(process: psutil.Process, directory: Path) -> bool:
    try:
        return process.environ().get("FEDPRUNE_TEST_DEPLOYMENT") == str(directory)
    except psutil.Error:
        return False


def test_links_of_the_guide_lead_somewhere():
    text = GUIDE.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (GUIDE.parent / target).exists(), target
    for named in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (GUIDE.parents[1] / named).exists(), named
