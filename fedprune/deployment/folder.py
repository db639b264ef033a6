"""The folder of a deployment: all that the server and each device need, and the commands in order.

The texts are in ``templates/``, one file for each that is written; here is what goes into them.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from fedprune import __version__
from fedprune import data as datasets
from fedprune.data.described import described
from fedprune.data.inputs import Pixels
from fedprune.deployment.credentials import make_certificates, make_key_pair
from fedprune.errors import UserError
from fedprune.plugin_files import is_in_file, path_in
from fedprune.results.plugin_copies import PLUGINS, copied, files_of
from fedprune.scenario import Scenario, load_scenario, yaml_file
from fedprune.server.check import resolve

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_CONNECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_MOST_DAYS = 36500
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def init(
    directory: Path,
    scenario: Scenario,
    *,
    host: str = "localhost",
    port: int = 8000,
    connection: str = "edge",
    days: int = 825,
) -> None:
    """Write the folder of a deployment of a scenario: one client is one device.

    It holds ``app/``, the Flower app that is submitted, with the scenario as it was resolved and its plug-in
    files, which travel to server and devices with it; ``server/``, with certificates and the SuperLink's
    script and unit; ``devices/device-K/``, to be copied to the device of client K; ``flwr/config.toml``,
    Flower's configuration for who submits runs; and a ``README.md`` with the commands.

    Parameters
    ----------
    directory
        A new or empty folder.
    scenario
        What is to run. Its data set is described in the copy, so that devices can check their own data.
    host
        The name or address under which devices reach the server; the certificate is for it. On loopback,
        the SuperLink listens there alone.
    port
        The SuperLink's.
    connection
        What ``flwr run`` calls this deployment.
    days
        How long the certificates are valid.

    Raises
    ------
    UserError
        For a folder with files in it, a mistake in the scenario, a plug-in file that looks like a test, or a
        host, port or name that can't be one.
    """
    _check(host, port, connection, days)
    plan = resolve(scenario)
    if plan.faults.any:
        raise UserError("faults are injected by `fedprune run` alone: leave out 'faults' for a deployment")
    described = _described(plan)
    files = files_of(described)
    _refuse_tests(files)
    _make_empty(directory)
    texts = {
        "name": scenario.name,
        "count": str(scenario.clients.count),
        "last": str(scenario.clients.count - 1),
        "host": host,
        "port": str(port),
        "address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "listen": _listen(host),
        "connection": connection,
        "version": __version__,
        "root": str(directory.resolve()),
        "certificate": json.dumps(str(directory.resolve() / "server" / "ca.crt")),  # As TOML has it, too.
        "days": str(days),
    }
    _write(directory, "README.md", texts)
    _write(directory / "app", "app/pyproject.toml.in", texts)
    copies = copied(files, directory / "app" / PLUGINS)
    content = _moved(described.model_dump(mode="json"), copies)
    (directory / "app" / "scenario.yaml").write_text(yaml_file.write(content), encoding="utf-8")
    _write(directory / "flwr", "config.toml", texts)
    certificates = make_certificates(host, days)
    server = directory / "server"
    _write(directory, "register.sh", texts)
    for name in ("superlink.sh", "superlink.service"):
        _write(server, f"server/{name}", texts)
    _write_file(server / "ca.crt", certificates.ca)
    _write_file(directory / "ca.key", certificates.ca_key, secret=True)
    _write_file(server / "server.crt", certificates.server)
    _write_file(server / "server.key", certificates.server_key, secret=True)
    for number in range(scenario.clients.count):
        device = directory / "devices" / f"device-{number}"
        for name in ("supernode.sh", "supernode.service", "node-config"):
            _write(device, f"device/{name}", {**texts, "number": str(number)})
        private, public = make_key_pair()
        _write_file(device / "ca.crt", certificates.ca)
        _write_file(device / "device.key", private, secret=True)
        _write_file(device / "device.pub", public)


def trial(overrides: Mapping[str, object]) -> Scenario:
    """Return the scenario of a first try, with values replaced."""
    with resources.as_file(resources.files(__package__) / "templates" / "app" / "scenario.yaml") as path:
        return load_scenario(path, overrides)


def _check(host: str, port: int, connection: str, days: int) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise UserError(
                f"{host!r} is no host: give a name or an address, without a scheme or a port"
            ) from None
    if not 0 < port < 65536:
        raise UserError(f"{port} is no port: give a number from 1 to 65535")
    if not _CONNECTION.fullmatch(connection):
        raise UserError(f"{connection!r} is no name for a connection: use letters, digits, - and _")
    if not 1 <= days <= _MOST_DAYS:
        raise UserError(f"certificates that are valid for {days} days are of no use: give 1 to {_MOST_DAYS}")


def _listen(host: str) -> str:
    """Return the address at which the SuperLink listens so that it is reached as ``host``."""
    if host in _LOOPBACK:
        return "::1" if host == "::1" else "127.0.0.1"
    return "::" if ":" in host else "0.0.0.0"


def _described(scenario: Scenario) -> Scenario:
    """Return the scenario with what a device must know of data that it does not have itself."""
    info = datasets.describe(scenario)
    data: dict[str, object] = {}
    if isinstance(info.inputs, Pixels):
        data |= {
            "input_shape": list(info.input_shape),
            "classes": list(info.class_names),
            "mean": list(info.inputs.mean),
            "std": list(info.inputs.std),
        }
    else:
        whole = datasets.load(scenario).info  # What it is standardised by follows from all examples.
        data |= {"inputs": described(whole)}
        if whole.class_names:
            data["classes"] = list(whole.class_names)
    if scenario.data.path is not None:
        path = scenario.directory / scenario.data.path
        data["path"] = str(path.resolve())
    return scenario.override(**{f"data.{key}": value for key, value in data.items()})


def _make_empty(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        present = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise UserError(f"{directory}: cannot hold a deployment: {error.strerror}") from None
    if present:
        raise UserError(
            f"{directory}: holds files already ({', '.join(present[:3])}); give a new or empty folder. "
            "New keys in place of those in use would lock the devices out"
        )


def _refuse_tests(files: list[Path]) -> None:
    """Refuse plug-in files that Flower would leave out of what it sends to devices."""
    for file in files:
        if file.name.startswith("test_") or file.name.endswith("_test.py"):
            raise UserError(f"{file}: Flower takes it for a test and does not send it to devices: rename it")


def _moved(value: Any, copies: Mapping[Path, Path]) -> Any:
    """Return plain values in which every "file.py:Name" leads to the file's copy, from the app's folder."""
    if is_in_file(value):
        place = copies[path_in(value).resolve()]
        return f"./{PLUGINS}/{place.as_posix()}:{value.rpartition(':')[2]}"
    if isinstance(value, dict):
        return {key: _moved(item, copies) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, copies) for item in value]
    return value


def _write(directory: Path, template: str, texts: Mapping[str, str]) -> None:
    """Write a template's file into a folder; a script can be executed."""
    text = (resources.files(__package__) / "templates" / template).read_text(encoding="utf-8")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / Path(template).name.removesuffix(".in")
    path.write_text(Template(text).substitute(texts), encoding="utf-8")
    if path.suffix == ".sh":
        path.chmod(0o755)


def _write_file(path: Path, content: bytes, *, secret: bool = False) -> None:
    """Write a file; a secret one is its owner's from the first byte on."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
