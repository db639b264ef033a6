"""A real deployment on this machine: SuperLink, SuperNodes and `flwr run`, each a process of its own.

It is made by `fedprune deploy init` and started by the scripts in its folder, as a person would.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from fedprune import deployment
from fedprune.results.run import Run, load_run
from fedprune.scenario import Scenario

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(met: Callable[[], Any], seconds: float, what: str) -> Any:
    """Return the first true value of ``met``, or fail."""
    end = time.monotonic() + seconds
    while not (value := met()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
    return value


class Deployment:
    """The processes of a deployment; all of them end with ``close``."""

    def __init__(self, directory: Path, scenario: Scenario) -> None:
        self.directory = directory
        self.port = free_port()
        deployment.init(directory, scenario, host="127.0.0.1", port=self.port, connection="edge")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",  # Seconds; 1 by default.
            "FEDPRUNE_TEST_DEPLOYMENT": str(directory),
            "OMP_NUM_THREADS": "1",
        }

    # Processes ---------------------------------------------------------------------------

    def start(self, name: str, *command: str, **environment: str) -> None:
        """Start a process in the folder; what it prints goes to ``logs/<name>.log``."""
        logs = self.directory.parent / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.directory,
                env={**self.environment, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        return (self.directory.parent / "logs" / f"{name}.log").read_text(errors="replace")

    def start_superlink(self) -> None:
        self.start("superlink", "server/superlink.sh")
        wait_until(lambda: self._listens() or self._ended("superlink"), 60, "the SuperLink listens")
        assert self._listens(), self.log("superlink")

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _ended(self, name: str) -> bool:
        return self.processes[name].poll() is not None

    def register(self) -> None:
        done = subprocess.run(
            ["./register.sh"], cwd=self.directory, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def node_config(self, number: int, **values: Any) -> None:
        """Write the node config of a device; its number stays."""
        lines = [f"partition-id={number}", *(f"{key}={json.dumps(value)}" for key, value in values.items())]
        (self.directory / "devices" / f"device-{number}" / "node-config").write_text("\n".join(lines) + "\n")

    def start_node(self, number: int, *arguments: str, keep: bool = False, **environment: str) -> None:
        """Start a SuperNode; ``keep``: and again when it ends, as systemd does."""
        again = ["sh", "-c", 'until "$@"; do sleep 5; done', "sh"] if keep else []
        self.start(
            f"device-{number}",
            *again,
            f"devices/device-{number}/supernode.sh",
            *arguments,
            SUPERNODE_PORT=str(free_port()),
            **environment,
        )

    def online(self) -> int:
        """Return how many SuperNodes the SuperLink has online."""
        listed = json.loads(self.flwr("supernode", "list", "edge", "--format", "json").stdout)
        return sum(node["status"] == "online" for node in listed["nodes"])

    def start_nodes(self, *numbers: int) -> None:
        for number in numbers:
            self.start_node(number)
        self.wait_for_nodes(*numbers)

    def wait_for_nodes(self, *numbers: int) -> None:
        """Wait until SuperNodes that were just started are online."""
        known = "SuperNode ID:"  # It says so itself; to ask the SuperLink takes a process each time.
        wait_until(lambda: all(known in self.log(f"device-{n}") for n in numbers), 90, "they are known")
        wait_until(lambda: self.online() >= len(numbers), 90, f"{len(numbers)} SuperNodes are online")

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process and all that it has started, and wait for their end."""
        process = self.processes.pop(name)
        started: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid).children(recursive=True)
        in_group = [child for child in started if self._group_of(child) == process.pid]
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.wait(30)
        psutil.wait_procs(in_group, timeout=30)  # One that still listens would be taken for its successor.

    @staticmethod
    def _group_of(process: psutil.Process) -> int | None:
        try:
            return os.getpgid(process.pid)
        except ProcessLookupError:
            return None

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)
        marked = [process for process in psutil.process_iter() if self._is_ours(process)]
        for process in marked:
            process.kill()
        psutil.wait_procs(marked, timeout=10)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("FEDPRUNE_TEST_DEPLOYMENT") == str(self.directory)
        except psutil.Error:
            return False

    # Runs --------------------------------------------------------------------------------

    def flwr(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, "FLWR_HOME": str(self.directory / "flwr")}
        return subprocess.run(
            [str(BIN / "flwr"), *arguments],
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def write_scenario(self, content: Mapping[str, Any], name: str = "scenario.yaml") -> Path:
        path = self.directory / "app" / name
        path.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
        return path

    def submit(self, out: Path, **config: Any) -> str:
        """Submit a run; return its id."""
        given = " ".join(f"{key.replace('_', '-')}={json.dumps(value)}" for key, value in config.items())
        done = self.flwr(
            "run", "app", "edge", "--format", "json", "--run-config", f"out={json.dumps(str(out))} {given}"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return str(json.loads(done.stdout)["run-id"])

    def status(self, run_id: str) -> str:
        done = self.flwr("list", "edge", "--run-id", run_id, "--format", "json")
        assert done.returncode == 0, done.stdout + done.stderr
        return str(json.loads(done.stdout)["runs"][0]["status"])

    def finish(self, run_id: str, out: Path, seconds: float = 280) -> Run:
        """Wait for a run's end and return its results; fail with its log where it fails."""
        status = self.end(run_id, out, seconds)
        assert status == "finished:completed", self.flwr("log", run_id, "edge", "--show").stdout
        return load_run(out)

    def end(self, run_id: str, out: Path, seconds: float = 280) -> str:
        """Wait for a run's end, whatever it is; return its status."""
        looked = time.monotonic()

        def ended() -> str | None:
            nonlocal looked
            if (out / "summary.json").exists() or time.monotonic() > looked + 20:
                looked = time.monotonic()
                status = self.status(run_id)  # A process of its own: not too often.
                return status if status.startswith("finished") else None
            return None

        return str(wait_until(ended, seconds, "the run ends"))

    def rounds(self, out: Path) -> int:
        """Return how many rounds of training a run has ended."""
        path = out / "rounds.jsonl"
        return path.read_text().count("\n") - 1 if path.exists() else -1


class CountingProxy:
    """A TCP proxy on loopback that counts the bytes that pass, both ways, and can lose all that is sent."""

    def __init__(self, port: int) -> None:
        self.total = 0
        self._counting = threading.Lock()
        self._target = port
        self._passing = threading.Event()
        self._passing.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self._server.accept()
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._passing.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            near.close()
            return
        threading.Thread(target=self._pump, args=(near, far), daemon=True).start()
        threading.Thread(target=self._pump, args=(far, near), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while block := source.recv(65536):
                self._passing.wait()  # As where a radio is out of reach: nobody is told.
                with self._counting:
                    self.total += len(block)
                sink.sendall(block)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut(self) -> None:
        """Let nothing through, and say nothing of it."""
        self._passing.clear()

    def mend(self) -> None:
        """Let through what waits, and all that comes."""
        self._passing.set()
