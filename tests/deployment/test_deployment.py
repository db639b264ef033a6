"""`fedprune deploy init` writes all that a deployment takes, and nothing that should not travel."""

from __future__ import annotations

import configparser
import ssl
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store
from safetensors.torch import save_file

from fedprune import data as datasets
from fedprune import deployment
from fedprune.cli import main
from fedprune.client.node_config import client_number, data_place, device_profile
from fedprune.deployment.credentials import make_certificates
from fedprune.errors import UserError
from fedprune.models import MODELS
from fedprune.scenario import Scenario, load_scenario

ROOT = Path(__file__).resolve().parents[2]
PLAN = {
    "name": "images",
    "rounds": 3,
    "model": {"name": "cnn"},
    "clients": {"count": 2},
    "strategy": {"name": "fedavg"},
}


@pytest.fixture
def folder(tmp_path):
    deployment.init(tmp_path / "edge", Scenario.from_mapping(PLAN), host="fed.example.org", port=9000)
    return tmp_path / "edge"


def test_what_is_in_the_folder(folder):
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    device = {"ca.crt", "device.key", "device.pub", "node-config", "supernode.service", "supernode.sh"}
    server = {"ca.crt", "server.crt", "server.key", "superlink.service", "superlink.sh"}
    assert found == {
        *(
            "README.md",
            "ca.key",
            "register.sh",
            "app/pyproject.toml",
            "app/scenario.yaml",
            "flwr/config.toml",
        ),
        *(f"server/{name}" for name in server),
        *(f"devices/device-{number}/{name}" for number in range(2) for name in device),
    }
    secret = {path.name for path in folder.rglob("*") if stat.S_IMODE(path.stat().st_mode) == 0o600}
    assert secret == {"ca.key", "server.key", "device.key"}
    assert all(path.stat().st_mode & 0o111 for path in folder.rglob("*.sh"))


def test_scripts_units_and_configurations_can_be_read(folder):
    for script in folder.rglob("*.sh"):
        subprocess.run(["sh", "-n", script], check=True)
    for unit in folder.rglob("*.service"):
        parser = configparser.ConfigParser(interpolation=None)
        parser.optionxform = str
        parser.read_string(unit.read_text())
        assert parser["Service"]["Restart"] == "always"
        script = parser["Service"]["ExecStart"].rpartition("/")[2]
        assert (unit.parent / script).exists()
    config = tomllib.loads((folder / "flwr" / "config.toml").read_text())
    assert config["superlink"]["edge"]["address"] == "fed.example.org:9000"
    app = tomllib.loads((folder / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    # What a run config may say is what the repository's own app says.
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["components"] == ours["components"]
    assert set(app["config"]) == set(ours["config"])


def test_the_scenario_says_what_a_device_cannot_see(folder):
    scenario = load_scenario(folder / "app" / "scenario.yaml")
    assert scenario.data.input_shape == (1, 8, 8)
    assert scenario.data.classes is not None
    assert scenario.override(data__input_shape=None).rounds == 3


def test_initial_weights_stay_on_the_server_where_they_are(tmp_path):
    weights = tmp_path / "begin.safetensors"
    save_file(MODELS["cnn"]((1, 8, 8), 10).state_dict(), weights)
    plan = {**PLAN, "model": {"name": "cnn", "weights": weights.name}}
    deployment.init(tmp_path / "edge", Scenario.from_mapping(plan, tmp_path))
    assert not list((tmp_path / "edge").rglob("*.safetensors"))
    weights.unlink()  # As on a device.
    scenario = load_scenario(tmp_path / "edge" / "app" / "scenario.yaml")
    assert scenario.model.weights == weights


@pytest.mark.parametrize("host", ["fed.example.org", "192.168.1.7", "2001:db8::7", "localhost"])
def test_the_servers_certificate_holds_for_the_host(host):
    made = make_certificates(host, days=30)
    ca, server = map(x509.load_pem_x509_certificate, (made.ca, made.server))
    verifier = PolicyBuilder().store(Store([ca])).build_client_verifier()
    assert verifier is not None
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    said = {*names.get_values_for_type(x509.DNSName)}
    said |= {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert {host, "localhost", "127.0.0.1"} <= said
    server.verify_directly_issued_by(ca)
    assert 29 <= (server.not_valid_after_utc - server.not_valid_before_utc).days <= 32


def test_a_client_that_trusts_the_authority_accepts_the_server(tmp_path):
    """As OpenSSL sees it, in a handshake; and by no other authority."""
    made, other = make_certificates("localhost", days=30), make_certificates("localhost", days=30)
    for name, content in (("crt", made.server), ("key", made.server_key)):
        (tmp_path / f"server.{name}").write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")

    def shake(authority):
        client = ssl.create_default_context(cadata=authority.decode())
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = client.wrap_bio(to_client, to_server, server_hostname="localhost")
        theirs = context.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(4):
            for end in (ours, theirs):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        return ours.version()

    assert shake(made.ca)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(other.ca)


def test_every_device_has_a_key_of_its_own(folder):
    keys = []
    for device in sorted((folder / "devices").iterdir()):
        private = load_ssh_private_key((device / "device.key").read_bytes(), None)
        public = load_ssh_public_key((device / "device.pub").read_bytes())
        assert private.public_key() == public
        keys.append(public)
    assert len(keys) == 2
    assert keys[0] != keys[1]


def test_plug_ins_travel_with_the_scenario(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from fedprune.server.strategy import PruningStrategy\nclass Mine(PruningStrategy): ...\n"
    )
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**PLAN, "strategy": {"name": "./mine.py:Mine"}}))
    assert main(["deploy", "init", str(tmp_path / "edge"), str(file)]) == 0
    app = tmp_path / "edge" / "app"
    assert (app / "plugins" / "mine.py").read_text() == (tmp_path / "mine.py").read_text()
    assert load_scenario(app / "scenario.yaml").strategy.name == f"{app / 'plugins' / 'mine.py'}:Mine"
    # Wherever it lies: the scenario in the app leads to the copy, and says what its devices run.
    inner = tmp_path / "a folder: with words"
    inner.mkdir()
    outside = inner / "outside.yaml"
    outside.write_text(yaml.safe_dump({**PLAN, "strategy": {"name": "../mine.py:Mine"}}))
    deployment.init(tmp_path / "other", load_scenario(outside))
    found = load_scenario(tmp_path / "other" / "app" / "scenario.yaml")
    assert found.strategy.name == f"{tmp_path}/other/app/plugins/mine.py:Mine"
    assert found.clients.algorithm == "sparse"
    assert str(tmp_path) not in (tmp_path / "other" / "app" / "scenario.yaml").read_text()


def test_a_plug_in_that_flower_would_not_send_is_refused(tmp_path):
    (tmp_path / "test_net.py").write_text("from fedprune.models.cnn import cnn as net\n")
    plan = Scenario.from_mapping({**PLAN, "model": {"name": "test_net.py:net"}}, tmp_path)
    with pytest.raises(UserError, match=r"test_net\.py: Flower takes it for a test .* rename it"):
        deployment.init(tmp_path / "edge", plan)
    assert not (tmp_path / "edge").exists()


def test_a_trial_needs_no_scenario(tmp_path, capsys):
    assert main(["deploy", "init", str(tmp_path / "edge")]) == 0
    assert "trial for 3 devices and localhost:8000" in capsys.readouterr().out
    assert "--host 127.0.0.1 " in (tmp_path / "edge" / "server" / "superlink.sh").read_text()
    assert main(["deploy", "init", str(tmp_path / "edge")]) == 2
    assert "holds files already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"host": "https://fed.example.org"}, "is no host"),
        ({"host": "a b"}, "is no host"),
        ({"host": ""}, "is no host"),
        ({"port": 0}, "is no port"),
        ({"port": 65536}, "is no port"),
        ({"connection": "my edge"}, "is no name"),
        ({"days": 0}, "of no use"),
    ],
)
def test_what_cannot_be_deployed(tmp_path, wrong, expected):
    with pytest.raises(UserError, match=expected):
        deployment.init(tmp_path / "edge", Scenario.from_mapping(PLAN), **wrong)
    assert not (tmp_path / "edge").exists()


def test_faults_are_not_deployed(tmp_path):
    with pytest.raises(UserError, match="leave out 'faults'"):
        deployment.init(tmp_path / "edge", Scenario.from_mapping({**PLAN, "faults": {"late": 0.1}}))


# The node config -------------------------------------------------------------------------


def test_what_a_node_config_says():
    scenario = Scenario.from_mapping(PLAN)
    assert client_number({"partition-id": 3, "num-partitions": 10}) == 3
    assert data_place({"data": "/srv/images"}) == "/srv/images"
    assert data_place({}) is None
    assert device_profile({"partition-id": 0}, scenario) is None
    named = device_profile({"device": "raspberry-pi-4"}, scenario)
    smaller = device_profile({"device": "raspberry-pi-4", "memory": "64 MiB"}, scenario)
    assert named.name == "raspberry-pi-4"
    assert smaller.name == "raspberry-pi-4 (memory 64 MiB)"
    assert smaller.memory == 64 * 2**20 < named.memory
    assert smaller.compute == named.compute
    own = {"memory": "1 GiB", "compute": "5 GFLOP/s", "downlink": "20 Mbit/s", "uplink": 625000}
    board = device_profile({"device": "my-board", **own}, scenario)
    assert (board.name, board.memory, board.uplink) == ("my-board", 2**30, 625000)
    assert device_profile(own, scenario).name == "custom"


@pytest.mark.parametrize("name", ["raspberry-pi-4", "phone-low-end"])
def test_a_real_device_has_no_chance_of_being_away(name):
    profile = device_profile({"device": name}, Scenario.from_mapping(PLAN))
    assert (profile.availability, profile.dropout) == (1, 0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "partition-id in the node config is None"),
        ({"partition-id": "3"}, "partition-id in the node config is '3'"),
        ({"partition-id": True}, "partition-id in the node config is True"),
        ({"partition-id": 0, "data": 3}, "data in the node config is 3"),
        ({"partition-id": 0, "data": ""}, "data in the node config is ''"),
        ({"partition-id": 0, "device": "rasberry-pi-4"}, "did you mean 'raspberry-pi-4'"),
        ({"partition-id": 0, "memory": "64 MiB"}, "name one, or give compute, downlink, uplink"),
        ({"partition-id": 0, "device": "raspberry-pi-4", "memory": "much"}, "memory"),
        ({"partition-id": 0, "device": "raspberry-pi-4", "compute": -1}, "compute"),
    ],
)
def test_what_a_node_config_cannot_say(config, expected):
    scenario = Scenario.from_mapping(PLAN)
    with pytest.raises(UserError, match=expected):
        client_number(config), data_place(config), device_profile(config, scenario)


def test_of_other_data_than_images_all_is_said_that_a_device_must_know(tmp_path):
    plan = {**PLAN, "model": {"name": "mlp"}, "data": {"name": "breast_cancer"}}
    deployment.init(tmp_path / "rows", Scenario.from_mapping(plan))
    written = load_scenario(tmp_path / "rows" / "app" / "scenario.yaml")
    data = written.data
    assert (data.name, data.input_shape, data.mean) == ("breast_cancer", None, None)
    assert data.classes == ("malignant", "benign")
    there = datasets.load(Scenario.from_mapping(plan)).info.inputs
    assert datasets.load(written).info.inputs == there
    assert data.inputs["mean"] == list(there.mean)
