"""What the documentation shows works: every console, Python and YAML block of it runs, in its order.

A block under a comment ``<!-- not run: reason -->`` is left out. Blocks with a title are written to the file
of that name, for those below. Runs are cut to two rounds, and the shipped scenarios to six clients. What the
README, the first pages and studies run has workers on Ray, as a user's has; on the other pages clients run in
this process, with the same results.
"""

from __future__ import annotations

import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import PAGES, ROOT, Block, blocks

from fedprune.cli import main
from fedprune.engine import simulation
from fedprune.engine.hosts import InProcess
from fedprune.scenario import load_scenario
from fedprune.server.check import check
from fedprune.studies.plan import Plan
from fedprune.studies.spec import load_study

#: tests/deploy/test_guide.py runs this page, with real processes.
GUIDE = ROOT / "docs" / "deploy.md"
RUN = ("console", "python")

#: Pages whose runs have workers on Ray, besides those with a study, which has its own.
ON_RAY = [ROOT / "README.md", ROOT / "docs" / "start" / "tutorial.md"]

SHOWN = [page for page in PAGES if any(block.language in RUN for block in blocks(page))]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def runs(page: Path) -> bool:
    return page != GUIDE and any(block.language in RUN and block.reason is None for block in blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_language_is_one_that_is_known(page: Path) -> None:
    """A misspelt language would leave a block out of the tests."""
    known = {*RUN, "bash", "csv", "sh", "text", "toml", "yaml"}
    assert {block.language for block in blocks(page)} <= known


def test_what_is_not_run_has_a_reason() -> None:
    reasons = [block.reason for page in PAGES for block in blocks(page) if block.reason is not None]
    assert all(len(reason) > 10 for reason in reasons)
    left_out = sum(
        block.language in RUN and block.reason is not None for page in PAGES for block in blocks(page)
    )
    run = sum(block.language in RUN and block.reason is None for page in PAGES for block in blocks(page))
    assert run > left_out


def yaml_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == "yaml"]


@pytest.mark.parametrize("block", yaml_blocks(), ids=lambda block: block.place)
def test_scenarios_are_valid(block: Block, tmp_path: Path) -> None:
    """A whole scenario by itself, a part of one in the quickstart."""
    if block.reason is not None or (block.title or "") == "profiles.yaml":
        return
    content = yaml.safe_load(block.code)
    path = tmp_path / "shown.yaml"
    if "runs" in content:
        (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
        path.write_text(block.code, encoding="utf-8")
        assert Plan(load_study(path)).runs()
    elif "rounds" in content:
        path.write_text(block.code, encoding="utf-8")
        check(load_scenario(path))
    else:
        check(load_scenario(ROOT / "scenarios/quickstart.yaml", content))


def needs_ray(page: Path) -> bool:
    return page in ON_RAY or any(
        "study run" in block.code or "study.run(" in block.code for block in blocks(page)
    )


def on_a_host() -> list[Any]:
    """Return the pages that are run; those that need Ray stay with the tests that share one."""
    return [
        pytest.param(
            page, id=named(page), marks=[pytest.mark.xdist_group("ray-docs")] if needs_ray(page) else []
        )
        for page in SHOWN
        if runs(page)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", on_a_host())
def test_every_block_runs(
    page: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if needs_ray(page):
        request.getfixturevalue("shared_ray")
    else:
        monkeypatch.setattr(simulation, "OnRay", InProcess)
    monkeypatch.chdir(tmp_path)
    shrink(Path("scenarios"))
    shrink_study(Path("studies"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.reason is not None:
            continue
        if block.title is not None:
            Path(block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.code, block.place, "exec"), names)
        elif block.language == "console":
            for command, shown in block.commands():
                status, printed = run(command, capfd)
                wanted = 2 if "# exit status 2" in command else 0
                assert status == wanted, f"{block.place}: {command}: {printed}"
                if shown.startswith("error:"):
                    assert shown.strip() in printed


def shrink(folder: Path) -> None:
    """Write the quickstart and its twins into a folder, small ones."""
    folder.mkdir()
    for path in (ROOT / "scenarios").glob("quickstart*.yaml"):
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
        plan |= {"rounds": 2, "engine": {"workers": 1}}
        plan["clients"] |= {"count": 6, "per_round": 3}
        plan["strategy"] |= {"pretrain_epochs": 1}
        if plan["strategy"]["name"] == "fedtiny":
            plan["strategy"] |= {"candidates": 2}
        (folder / path.name).write_text(yaml.safe_dump(plan), encoding="utf-8")


def shrink_study(folder: Path) -> None:
    """Write the quickstart's study into a folder, on the small scenarios."""
    folder.mkdir()
    content = yaml.safe_load((ROOT / "studies" / "quickstart.yaml").read_text(encoding="utf-8"))
    content |= {"seeds": 2}
    content["runs"]["FedTiny"]["strategy"] |= {"candidates": 2, "stop_adjusting_at": 2}
    for each in content["runs"].values():
        if "pretrain_epochs" in each.get("strategy", {}):
            each["strategy"]["pretrain_epochs"] = 1
    (folder / "quickstart.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def run(command: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run a command of a console; return its exit status and what it printed."""
    words = shlex.split(command, comments=True)
    to = Path(words[words.index(">") + 1]) if ">" in words else None
    words = words[: words.index(">")] if ">" in words else words
    assert words[0] == "fedprune", f"{command}: only fedprune's commands are run here"
    arguments = words[1:]
    if arguments[0] == "run":
        arguments += ["--set", "rounds=2", "--set", "engine.workers=1"]
    capfd.readouterr()
    if to is None:
        status = main(arguments)
    else:
        with to.open("w") as file, redirect_stdout(file):
            status = main(arguments)
    printed = capfd.readouterr()
    return status, printed.out + printed.err
