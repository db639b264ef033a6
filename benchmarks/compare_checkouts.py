"""Whether two checkouts give the same results: every round, every task and every weight, bit by bit.

    git worktree add ../before <commit>
    python benchmarks/compare_checkouts.py ../before . [--cifar10 DIR] [--full] [--only TEXT] [--cache DIR]

Runs every file in ``scenarios/`` of the second checkout and a short run of every strategy, dense and
sparse, in both, and compares ``rounds.jsonl``, ``clients.jsonl`` and ``model.safetensors``. Left out of the
comparison is what a clock measured. Scenarios on CIFAR-10 are cut down to a few rounds and images; with
``--full`` nothing is cut. With ``--cache`` the first checkout's results are kept from one comparison to the
next. Ends with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: What a clock measured, in the lines of a run folder.
CLOCKS = {"wall_seconds", "startup_seconds", "total_seconds", "measured_seconds", "measured_memory_bytes"}

#: What a scenario on CIFAR-10 is cut down to.
CUT = {
    "rounds": 2,
    "data.train_examples": 1000,
    "data.test_examples": 200,
    "clients.count": 8,
    "clients.per_round": 4,
    "clients.training.epochs": 1,
    "clients.training.batch_size": 16,
}
CUT_STRATEGY = {
    "fedtiny": {"strategy.pretrain_epochs": 1, "strategy.candidates": 2, "strategy.adjust_every": 1},
    "static": {"evaluation.every": 1},
    "hidenseek": {},
}

#: Options with which a short run reaches what a strategy does later.
OPTIONS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "feddst": {"adjust_every": 1, "stop_adjusting_at": 4},
    "fedmask": {"keep_scores": True},
    "fedmef": {"adjust_every": 2, "stop_adjusting_at": 4},
    "fedpm": {"reset_every": 2},
    "fedtiny": {"adjust_every": 1, "stop_adjusting_at": 4, "candidates": 3},
    "gradual": {"end": 3, "regrow": True},
    "hidenseek": {"keep_scores": True, "train_dense": True},
    "lotteryfl": {"accuracy_threshold": 0.05, "prune_step": 0.5},
    "prunefl": {"adjust_every": 1},
    "static": {"criterion": "snip", "distribution": "global"},
}
#: Those whose clients cannot execute layers sparse.
DENSE_ONLY = {"fedavg", "fedmask", "fedpm", "hidenseek"}


def strategy_case(name: str, execution: str) -> dict[str, Any]:
    """Return a short scenario of a strategy, as a mapping."""
    density = {} if name == "fedavg" else {"density": 0.2}
    return {
        "name": f"{name}-{execution}",
        "seed": 3,
        "rounds": 4,
        "model": {"name": "cnn", "width": 0.25},
        "data": {
            "name": "digits",
            "partition": {"scheme": "dirichlet", "alpha": 0.5},
            "server_fraction": 0.1,
            "client_test_fraction": 0.2,
        },
        "clients": {
            "count": 8,
            "per_round": 4,
            "training": {"batch_size": 16, "optimizer": {"lr": 0.1, "momentum": 0.9}, "execution": execution},
        },
        "strategy": {"name": name, **density, **OPTIONS[name]},
        "evaluation": {"clients": "all"},
    }


def cases(checkout: Path, cifar10: Path | None, full: bool) -> Iterator[dict[str, Any]]:
    """Yield what is run: a name, a scenario file and values to replace."""
    import yaml

    for file in sorted((checkout / "scenarios").glob("*.yaml")):
        content = yaml.safe_load(file.read_text())
        changes: dict[str, Any] = {}
        if content["data"]["name"] == "cifar10":
            if cifar10 is None:
                continue
            changes["data.path"] = str(cifar10)
            if not full:
                changes |= CUT | CUT_STRATEGY[content["strategy"]["name"]]
        yield {"name": file.stem, "scenario": content, "changes": changes}
    for name in OPTIONS:
        for execution in ("dense",) if name in DENSE_ONLY else ("dense", "sparse"):
            yield {"name": f"{name}-{execution}", "scenario": strategy_case(name, execution), "changes": {}}


def run_cases(out: Path) -> None:
    """Run the cases that standard input lists, with the fedprune that is on the path."""
    import ray
    import torch

    import fedprune
    from fedprune.scenario import Scenario

    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    for case in json.load(sys.stdin):
        if (out / case["name"] / "summary.json").exists():
            continue
        print(f"  {case['name']}", file=sys.stderr, flush=True)
        scenario = Scenario.from_mapping(case["scenario"])
        fedprune.run(
            scenario, out=out / case["name"], overwrite=True, progress=False, overrides=case["changes"]
        )


def run_checkout(checkout: Path, out: Path, todo: list[dict[str, Any]]) -> None:
    """Run the cases with a checkout's code, in a process of its own."""
    print(f"{checkout}:", file=sys.stderr, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(checkout.resolve()),
        # What `fedprune.determinism` chooses by default, also for checkouts from before it did.
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "COMPATIBLE",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--run-cases", str(out.resolve())],
        input=json.dumps(todo),
        text=True,
        check=True,
        env=environment,
        cwd=out,
    )


def lines(file: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without what a clock measured."""
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in CLOCKS} for record in records]


def differences(before: Path, after: Path) -> Iterator[str]:
    """Yield a sentence for each thing in which two run folders differ."""
    for name in ("rounds.jsonl", "clients.jsonl"):
        ours, theirs = lines(before / name), lines(after / name)
        if len(ours) != len(theirs):
            yield f"{name} has {len(ours)} lines, then {len(theirs)}"
        for number, (one, two) in enumerate(zip(ours, theirs, strict=False), 1):
            keys = [key for key in {**one, **two} if one.get(key, ...) != two.get(key, ...)]
            if keys:
                shown = ", ".join(f"{key} {one.get(key)!r} -> {two.get(key)!r}" for key in keys[:4])
                yield f"{name}, line {number}: {shown}"
                break
    if weights(before) != weights(after):
        yield "model.safetensors has other values"


def weights(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return the tensors of a run's model: type, shape and bytes by name."""
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in tensors.items()}


def main() -> None:
    """Compare."""
    if sys.argv[1:2] == ["--run-cases"]:
        run_cases(Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--cifar10", type=Path, help="its folder; without, scenarios on it are left out")
    parser.add_argument("--full", action="store_true", help="scenarios on CIFAR-10 at full length")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--cache", type=Path, help="keep the first checkout's results here")
    given = parser.parse_args()
    cifar10 = given.cifar10.resolve() if given.cifar10 else None
    todo = [case for case in cases(given.after, cifar10, given.full) if given.only in case["name"]]
    with tempfile.TemporaryDirectory() as folder:
        before, after = given.cache or Path(folder, "before"), Path(folder, "after")
        run_checkout(given.before, before, todo)
        run_checkout(given.after, after, todo)
        found = {
            case["name"]: list(differences(before / case["name"], after / case["name"])) for case in todo
        }
    for name, texts in found.items():
        print(f"{name}: {'; '.join(texts) or 'bit-identical'}")
    same = sum(not texts for texts in found.values())
    print(f"{same} of {len(found)} bit-identical")
    sys.exit(same < len(found))


if __name__ == "__main__":
    main()
