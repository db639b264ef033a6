"""The registry: every way to name a plug-in finds it, and every way to get it wrong says what is wrong."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.serverapp.strategy import FedAdam, Strategy

from fedprune import plugin_files, registry
from fedprune.errors import PluginError
from fedprune.models import MODELS

STRATEGY = '''\
from flwr.serverapp.strategy import FedAvg

class Mine(FedAvg):
    """A strategy of mine.

    With more to say.
    """

class NoStrategy:
    """Something else."""

NUMBER = 3
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(STRATEGY)
    return tmp_path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Return a function that installs a distribution with entry points, the way that pip would."""

    def install(distribution: str, entry_points: str, code: str) -> str:
        site = tmp_path / f"site-{distribution}"
        module = distribution.replace("-", "_")
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        (site / f"{module}.py").write_text(code)
        monkeypatch.syspath_prepend(str(site))
        request.addfinalizer(lambda: sys.modules.pop(module, None))
        return module

    return install


def test_a_built_in_name_is_found() -> None:
    assert registry.load("model", "resnet18") is MODELS["resnet18"]


@pytest.mark.parametrize(
    "kind", ["model", "data", "criterion", "distribution", "schedule", "strategy", "aggregator", "client"]
)
def test_everything_built_in_loads_and_says_what_it_is_in_a_line(kind: str) -> None:
    listed = registry.available(kind)
    assert list(listed) == registry.names(kind)
    assert listed
    for name, line in listed.items():
        assert registry.load(kind, name).__doc__.startswith(line)
        assert "\n" not in line


def test_a_built_in_strategy_is_the_class_in_the_file_of_its_name() -> None:
    for name in registry.names("strategy"):
        strategy = registry.load("strategy", name)
        assert strategy.__module__ == f"fedprune.strategies.{name}"
        assert issubclass(strategy, Strategy)


@pytest.mark.parametrize("name", ["flwr.serverapp.strategy.FedAdam", "flwr.serverapp.strategy:FedAdam"])
def test_a_dotted_path_is_found(name: str) -> None:
    assert registry.load("strategy", name) is FedAdam


def test_a_file_is_found_from_the_directory_and_loaded_once(folder: Path) -> None:
    found = registry.load("strategy", "./mine.py:Mine", folder)
    assert found.__name__ == "Mine"
    assert registry.load("strategy", "mine.py:Mine", folder) is found
    assert registry.load("strategy", f"{folder}/mine.py:Mine") is found
    assert pickle.loads(pickle.dumps(found)) is found


def test_two_files_of_one_name_do_not_collide(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "mine.py").write_text(STRATEGY)
    first, second = (registry.load("strategy", "mine.py:Mine", place) for place in (folder, other))
    assert first is not second
    assert pickle.loads(pickle.dumps(second)) is second


def test_another_process_loads_what_was_pickled_here_by_its_name(folder: Path) -> None:
    pickled = pickle.dumps(registry.load("criterion", "mine.py:NoStrategy", folder)())
    code = (
        "import pickle, sys; from pathlib import Path; from fedprune import registry\n"
        f"kind = registry.load('criterion', 'mine.py:NoStrategy', Path({str(folder)!r}))\n"
        f"assert type(pickle.loads({pickled!r})) is kind"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_entry_point_is_found_and_listed(package) -> None:
    package("acme-prune", "[fedprune.strategies]\nacme = acme_prune:Mine\n", STRATEGY)
    found = registry.load("strategy", "acme")
    assert found.__module__ == "acme_prune"
    assert registry.available("strategy")["acme"] == "A strategy of mine."


def test_a_broken_entry_point_is_listed_with_the_reason_and_refused_when_named(package) -> None:
    package("acme-broken", "[fedprune.models]\nbroken = acme_broken:Net\n", "import no_such_thing\n")
    listed = registry.available("model")
    assert "no_such_thing" in listed["broken"]
    assert set(MODELS) < set(listed)
    with pytest.raises(PluginError, match=r"package acme-broken .*no module 'no_such_thing'"):
        registry.load("model", "broken")


def test_an_entry_point_to_a_module_is_refused(package) -> None:
    package("acme-module", "[fedprune.models]\nmodule = acme_module\n", "")
    with pytest.raises(PluginError, match=r"names a module: it must be 'package\.module:Name'"):
        registry.load("model", "module")


def test_a_name_that_two_things_have_is_refused_and_each_can_still_be_named(package) -> None:
    package("acme-cnn", "[fedprune.models]\ncnn = acme_cnn:cnn\n", "def cnn(shape, classes): 'Mine.'\n")
    with pytest.raises(
        PluginError, match=r"'cnn' is ambiguous: .*fedprune\.models.* and .*package acme-cnn \(acme_cnn:cnn\)"
    ):
        registry.load("model", "cnn")
    assert registry.load("model", "fedprune.models:cnn") is MODELS["cnn"]
    assert registry.load("model", "acme_cnn:cnn").__module__ == "acme_cnn"


def test_two_packages_with_one_name_are_refused(package) -> None:
    for name in ("acme-one", "acme-two"):
        module = name.replace("-", "_")
        package(name, f"[fedprune.criteria]\nsame = {module}:score\n", "def score(): 'Mine.'\n")
    with pytest.raises(PluginError, match=r"acme-.* and .*acme-"):
        registry.load("criterion", "same")


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("model", "resnet81", "no model 'resnet81'; did you mean 'resnet8' or 'resnet18'"),
        (
            "model",
            "zzz",
            r"known here: .*gru.*\); or write 'package\.module:Name' or '\./file\.py:Name'",
        ),
        ("data", "cifar", "no data set 'cifar'; did you mean 'cifar10' or 'cifar100'"),
        ("modle", "cnn", "no kind of plug-in 'modle'; did you mean 'model'"),
        ("model", "flwr.nowhere.Net", r"there is no module 'flwr\.nowhere'"),
        ("model", "flwr.nowhere:Net", r"there is no module 'flwr\.nowhere'"),
        ("strategy", "flwr.serverapp.strategy.FedAddam", "has no 'FedAddam'; did you mean 'FedAdam'"),
        (
            "strategy",
            "fedprune.errors:UserError",
            r"must be a subclass of flwr\.serverapp\.strategy\.Strategy",
        ),
        ("client", "fedprune.errors:UserError", r"must be a subclass of fedprune\.client\.Client"),
        ("strategy", "mine.py:NoStrategy", "must be a subclass of"),
        ("strategy", "mine.py:mine", "mine.py has no 'mine'; did you mean 'Mine'"),
        ("strategy", "mien.py:Mine", "no file .*/mien.py; did you mean 'mine.py'"),
        ("strategy", "nowhere/mine.py:Mine", "no file .*/nowhere/mine.py"),
        ("model", "mine.py:NUMBER", "is 3: it must be a function or a class"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, kind: str, name: str, words: str) -> None:
    with pytest.raises(PluginError, match=words) as refused:
        registry.load(kind, name, folder)
    assert refused.value.exit_status == 2
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1\ndef f(:\n", r"broken\.py:2: "),
        ("x = 1\nimport no_such_thing\n", r"no module 'no_such_thing'.*broken\.py:2"),
        ("x = 1\ndef f():\n    import no_such_thing\nf()\n", r"no module 'no_such_thing'.*broken\.py:3"),
        ("from fedprune.errors import Nothing\n", r"ImportError: .*'Nothing'.*broken\.py:1"),
        ("x = 1\ny = 2\nz = x / 0\n", r"ZeroDivisionError: .*broken\.py:3"),
    ],
)
def test_a_fault_in_the_file_itself_is_said_with_its_line(tmp_path: Path, code: str, words: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(PluginError, match=words):
        registry.load("model", "broken.py:Net", tmp_path)
    # Once it is mended it loads: nothing of the failure stays behind.
    path.write_text("class Net:\n    pass\n")
    importlib.invalidate_caches()
    assert registry.load("model", "broken.py:Net", tmp_path).__name__ == "Net"


def test_loading_one_strategy_imports_no_other() -> None:
    names = registry.names("strategy")
    code = (
        "import sys; from fedprune import registry\n"
        f"registry.load('strategy', {names[0]!r})\n"
        f"assert not [n for n in {names[1:]!r} if 'fedprune.strategies.' + n in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Files beside a plug-in --------------------------------------------------------------------------


def make(folder: Path, files: dict[str, str] | None = None, **more: str) -> Path:
    """Write the text of Python files, whose names come without ".py"."""
    for name, text in {**(files or {}), **more}.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize(
    "code",
    [
        "import helper\ndef which(): return helper.WHICH",
        "import helper as other\ndef which(): return other.WHICH",
        "from helper import WHICH\ndef which(): return WHICH",
        "def which():\n    from helper import WHICH\n    return WHICH",
        "def which():\n    import helper\n    return helper.WHICH",
        "from . import helper\ndef which(): return helper.WHICH",
        "from .helper import WHICH\ndef which(): return WHICH",
        "import package.inner\ndef which(): return package.inner.WHICH",
        "import package.inner as inner\ndef which(): return inner.WHICH",
        "from package import inner\ndef which(): return inner.WHICH",
        "from package.inner import WHICH\ndef which(): return WHICH",
    ],
)
def test_two_plug_ins_have_siblings_of_one_name_each_its_own(
    tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = make(tmp_path / "installed", helper="WHICH = 'installed'", package="WHICH = 'installed'")
    monkeypatch.syspath_prepend(str(installed))
    inner = "from helper import WHICH as outer\nfrom .deep import WHICH\nassert outer == WHICH"
    places = [
        make(
            tmp_path / name,
            {"package/__init__": "", "package/inner": inner, "package/deep": f"WHICH = {name!r}"},
            mine=code,
            helper=f"WHICH = {name!r}",
        )
        for name in ("first", "second")
    ]
    found = [registry.load("model", "mine.py:which", place) for place in places]
    assert [which() for which in found] == ["first", "second"]
    assert importlib.import_module("helper").WHICH == "installed"
    del sys.modules["helper"]
    assert sys.path.count(str(places[0])) == 0


def test_a_plug_in_has_the_standard_library_whatever_its_folder_holds(tmp_path: Path) -> None:
    code = "import random, fedprune\ndef score(): return random.Random(0), fedprune.__version__"
    make(tmp_path, random=code, fedprune="", mine=code)
    for name in ("random", "mine"):
        assert registry.load("criterion", f"{name}.py:score", tmp_path)()[1]


def test_a_file_named_like_what_it_imports_and_one_that_no_import_could_name(tmp_path: Path) -> None:
    make(tmp_path, yaml="import yaml\nread = yaml.safe_load")
    assert registry.load("model", "yaml.py:read", tmp_path)("1") == 1
    (tmp_path / "2nd try.v1.py").write_text("from yaml import read\nclass A:\n    class B: ...\n")
    found = registry.load("model", "2nd try.v1.py:A.B", tmp_path)
    assert pickle.loads(pickle.dumps(found)) is found


def test_two_files_that_import_each_other(tmp_path: Path) -> None:
    make(
        tmp_path,
        mine="import other\ndef one(): return other.two()",
        other="import mine\ndef two(): return mine",
    )
    one = registry.load("model", "mine.py:one", tmp_path)
    assert one().one is one


def test_a_fault_in_a_sibling_is_said_with_its_own_line(tmp_path: Path) -> None:
    make(tmp_path, mine="import helper\n", helper="x = 1\nimport no_such_thing\n")
    with pytest.raises(PluginError, match=r"mine\.py cannot be .*'no_such_thing'.*helper\.py:2"):
        registry.load("model", "mine.py:x", tmp_path)
    # Put right, it loads, in the same process.
    make(tmp_path, helper="y = 1\nx = print\n", mine="import helper\nx = helper.x\n")
    assert registry.load("model", "mine.py:x", tmp_path) is print


def test_an_attribute_and_a_default_lead_to_files_beside_the_class_that_has_them(tmp_path: Path) -> None:
    base = (
        "from pydantic import BaseModel\n"
        "class Base:\n"
        "    client = './clients.py:A'\n"
        "    class Options(BaseModel):\n"
        "        bases: tuple[tuple[str, str], ...] = (('scores.py:a', 'erk'),)\n"
        "        rule: str | dict = {'name': '../rules.py:R', 'n': 3}\n"
    )
    derived = (
        "from deeper.base import Base\n"
        "class Mine(Base):\n"
        "    class Options(Base.Options):\n"
        "        schedule: str = 'ramps.py:b'\n"
    )
    make(tmp_path, {"mine": derived, "deeper/__init__": "", "deeper/base": base, "deeper/scores": ""})
    mine = registry.load("model", "mine.py:Mine", tmp_path)
    assert registry.named_by(mine, "client", "sparse") == f"{tmp_path}/deeper/clients.py:A"
    assert registry.named_by(mine, "no_such", "sparse") == "sparse"
    options = registry.place_defaults(mine.Options())
    assert options.bases == ((f"{tmp_path}/deeper/scores.py:a", "erk"),)
    assert options.rule == {"name": f"{tmp_path}/rules.py:R", "n": 3}
    assert options.schedule == f"{tmp_path}/ramps.py:b"
    given = mine.Options(schedule="linear", bases=())
    assert registry.place_defaults(given).schedule == "linear"
    # What code of either class names, where that file is.
    assert registry.beside(mine, "scores.py:a") == f"{tmp_path}/deeper/scores.py:a"
    assert registry.beside(mine, "mine.py:Mine") == f"{tmp_path}/mine.py:Mine"
    assert registry.beside(mine, "erk") == "erk"


def test_what_belongs_to_a_plug_in_is_found_without_running_it(tmp_path: Path) -> None:
    make(
        tmp_path / "a",
        {"pack/__init__": "", "pack/inner": "import five", "pack/other": ""},
        mine="raise SystemExit\nimport one, torch\ndef f():\n    from two import x\nclient = '../b/c.py:C'\n",
        one="from .three import y\nfrom . import four, nothing\n",
        two="import mine\nlater = 'gone.py:G'\n",
        three="",
        four="import pack.inner\n",
        unused="",
        five="not python (",
    )
    make(tmp_path / "b", c="import one", one="", mine="")
    found = plugin_files.sources([tmp_path / "a" / "mine.py"])
    names = "a/five a/four a/mine a/one a/pack/__init__ a/pack/inner a/pack/other a/three a/two b/c b/one"
    assert [str(path.relative_to(tmp_path).with_suffix("")) for path in found] == names.split()
