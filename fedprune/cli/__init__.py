"""The `fedprune` command: run, resume, validate, list and compare from a shell.

A thin layer: each command reads its arguments, calls one function of the package and prints what
came of it. A mistake ends with one line and exit status 2, a fault of a run with 1, Ctrl-C with
130. PyTorch, Ray and Flower are imported by the commands that need them, so help comes at once.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fedprune import __version__
from fedprune.errors import FedpruneError, UserError

# This module is imported to run the command and for nothing else, so it may end the process.
if find_spec("typer") is None or find_spec("rich") is None:
    print("error: the fedprune command is not part of the device install: "
          "pip install 'fedprune[sim]' adds it", file=sys.stderr)  # fmt: skip
    raise SystemExit(UserError.exit_status)

import click
import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fedprune.costs.devices import DeviceProfile
    from fedprune.costs.ledger import RoundRecord, TaskRecord
    from fedprune.results.bench_model import Cost
    from fedprune.results.run import Run
    from fedprune.scenario import FaultsSpec, Scenario
    from fedprune.server.sizing import Execution, Fit, Sizing

_INTERRUPTED = 130

app = typer.Typer(
    help="Run federated pruning from one YAML file, and know what it costs every client.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

deploy = typer.Typer(
    help="Run a scenario on real devices, over Flower's SuperLink and SuperNodes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(deploy, name="deploy")

# Arguments are described in the commands' docstrings: typer below 0.21, which Flower asks for, loses the
# help of an argument under click 8.5.
ScenarioPath = Annotated[Path, typer.Argument(metavar="SCENARIO", hidden=True)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Put another value in the scenario; may be repeated."),
]

# What `fedprune list` shows: the word for people -> the registry's kind.
_KINDS = {
    "strategies": "strategy",
    "models": "model",
    "data": "data",
    "criteria": "criterion",
    "distributions": "distribution",
    "schedules": "schedule",
}
_DEVICES = "devices"

# What only an extra installs.
_EXTRAS = {
    **dict.fromkeys(("datasets", "flwr_datasets", "matplotlib", "ray", "sklearn"), "sim"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, the process's own by default; return its exit status."""
    try:
        status = app(arguments, prog_name="fedprune", standalone_mode=False)
    except FedpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"error: this needs {error.name}: pip install 'fedprune[{extra}]' adds it", file=sys.stderr)
        return UserError.exit_status
    except (KeyboardInterrupt, click.Abort):
        status = _INTERRUPTED
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return FedpruneError.exit_status
    # Some versions of typer turn Ctrl-C into this status themselves.
    if status == _INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return status if isinstance(status, int) else 0


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Run federated pruning from one YAML file, and know what it costs every client."""
    if show:
        print(f"fedprune {__version__}")
        raise typer.Exit


@app.command()
def run(
    scenario: ScenarioPath,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder.  [default: runs/NAME]")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Short for --set seed=N.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run in the folder.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder, where it was broken off.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Run SCENARIO, a YAML file, and write its run folder."""
    from fedprune.engine.simulation import run as run_scenario

    plan = _load(scenario, settings, {} if seed is None else {"seed": seed})
    folder = out if out is not None else Path("runs") / plan.name
    with _endable(folder) as ending:
        done = run_scenario(
            plan, out=folder, overwrite=overwrite, resume=resume, progress=not quiet, listeners=[ending]
        )
    print_summary(done, _console())


@app.command("resume")
def resume_run(
    directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", hidden=True)],
    settings: Settings = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Go on with the run in RUN_DIR from its newest checkpoint; --set may change keys under engine."""
    from fedprune.engine.simulation import resume

    with _endable(directory) as ending:
        done = resume(
            directory, overrides=parse_settings(settings or ()), progress=not quiet, listeners=[ending]
        )
    print_summary(done, _console())


class _Ending:
    """Ends a run on a signal, as Ctrl-C does; listens to the run for the case that nobody heard it.

    Python drops an exception that a signal's handler raises inside a finalizer or a weak reference's
    callback, of which Ray has many: the run then ends with its next task.
    """

    def __init__(self) -> None:
        self._asked = False

    def __call__(self, number: int, frame: object) -> None:
        """Handle the signal."""
        self._asked = True
        raise KeyboardInterrupt

    def on_task(self, task: TaskRecord) -> None:
        """End the run if it was to end."""
        if self._asked:
            raise KeyboardInterrupt

    def on_round(self, round: RoundRecord) -> None:
        """End the run if it was to end."""
        if self._asked:
            raise KeyboardInterrupt


@contextmanager
def _endable(folder: Path) -> Iterator[_Ending]:
    """Let SIGTERM end a run as Ctrl-C does, and say then what is left of it."""
    ending = _Ending()
    before = {number: signal.signal(number, ending) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield ending
    except KeyboardInterrupt:
        from fedprune.engine.checkpoints import listed

        more = f"; fedprune resume {folder} goes on with it" if listed(folder) else ""
        print(f"the run folder {folder} holds the rounds that ended{more}", file=sys.stderr)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command()
def validate(scenario: ScenarioPath, settings: Settings = None) -> None:
    """Check SCENARIO, a YAML file, without running it, and say what it would run."""
    from fedprune.server.check import check

    plan = _load(scenario, settings)
    check(plan)
    print(f"ok: {scenario}: {describe(plan)}")
    for warning in _too_small(plan):
        print(f"but: {warning}")


def _too_small(plan: Scenario) -> Iterator[str]:
    """Yield a sentence where clients have too little memory, as far as the scenario alone tells."""
    from fedprune.server.sizing import clients_of, sizing

    try:
        asked = sizing(plan)
    except UserError:  # Without the data set, its shape is not known.
        return
    peak = asked.step.memory(asked.density, asked.batch).total
    devices = clients_of(plan)
    if small := sum(device.memory < peak for device in devices):
        yield (
            f"a training step at density {asked.density:g} in batches of {asked.batch} is too much for the "
            f"memory of {small} of {len(devices)} clients; clients.over_budget is {plan.clients.over_budget} "
            "(see `fedprune devices`)"
        )


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for an editor."""
    from fedprune.scenario import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command("list")
def list_names(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", hidden=True)] = None,
) -> None:
    """List what a scenario can name.

    KIND is one of strategies, models, data, criteria, distributions, schedules and devices; all of them
    where it is left out.
    """
    from fedprune import registry

    kinds = (*_KINDS, _DEVICES)
    if kind is not None and kind not in kinds:
        raise UserError(f"nothing is listed under {kind!r}; write one of: {', '.join(kinds)}")
    console = _console()
    for each in kinds if kind is None else (kind,):
        names = _devices() if each == _DEVICES else registry.available(_KINDS[each])
        print_names(each, names, console)


@app.command()
def devices(
    scenario: Annotated[Path | None, typer.Argument(metavar="[SCENARIO]", hidden=True)] = None,
    settings: Settings = None,
    density: Annotated[
        float | None, typer.Option(metavar="D", help="In place of the scenario's target density.")
    ] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="In place of the scenario's batch.")] = None,
) -> None:
    """List device profiles, and what of SCENARIO fits each: peak memory, largest density and batch.

    Without SCENARIO, a YAML file, the profiles alone.
    """
    console = _console()
    if scenario is None:
        from fedprune.costs.devices import profiles

        if settings or density is not None or batch is not None:
            raise UserError("name a SCENARIO: --set, --density and --batch say what of it is to fit")
        print_devices(list(profiles().values()), console)
        return
    from fedprune.server.check import check
    from fedprune.server.sizing import clients_of, devices_of, execution_of, sizing

    plan = _load(scenario, settings)
    check(plan)
    asked = sizing(plan, density, batch)
    fits = [asked.on(device) for device in devices_of(plan)]
    print_devices([fit.device for fit in fits], console, fits, asked.most)
    clients = clients_of(plan)
    fitting = sum(fits[0].peak <= client.memory for client in clients)
    console.print(
        f"A training step of {plan.name} at density {asked.density:g} in batches of {asked.batch} fits "
        f"{fitting} of its {len(clients)} clients.\n"
        "The largest density is at that batch, the largest batch at that density; the layers' densities are "
        f"taken to be {asked.distribution}.\n"
        "Not counted: what a method keeps in rounds that adjust masks, or before it reaches the density.\n"
        f"{describe_execution(plan, asked, execution_of(plan, asked))}",
        markup=False,
        soft_wrap=True,
    )


@app.command()
def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", hidden=True)],
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the raw numbers to a CSV file.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw accuracy against each cost.")
    ] = None,
) -> None:
    """Put the runs of some run folders side by side: what they reached and what it cost."""
    from fedprune.results.compare import compare as compare_runs
    from fedprune.results.run import load_run

    comparison = compare_runs([load_run(directory) for directory in directories])
    console = _console()
    console.print(comparison.table())
    console.print(comparison.notes(), markup=False)
    labelled = zip(comparison.labels, comparison.runs, strict=True)
    summaries = {label: run.summary for label, run in labelled}
    print_classes(summaries, console)
    print_measured(summaries, console)
    if csv is not None:
        comparison.write_csv(csv)
    if figure is not None:
        comparison.save_figure(figure)


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(metavar="RUN_DIR", hidden=True)],
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="onnx, torch-export or safetensors.")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file.  [default: the run folder's name]")
    ] = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Take uint8 pixels: the normalisation is part of the model.")
    ] = False,
    quantize: Annotated[
        str | None, typer.Option(metavar="TYPE", help="int8: weights in 8 bits; for onnx.")
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Store zeros too, as plain ONNX constants; for onnx.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write the final model of the run in RUN_DIR as a file to ship."""
    from fedprune.results.export import export as export_model
    from fedprune.units import format_bytes

    path = export_model(
        directory, form, out=out, pixels=pixels, quantize=quantize, dense=dense, overwrite=overwrite
    )
    print(f"{path}: {format_bytes(path.stat().st_size)}")


@app.command("bench-model")
def bench_model(file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True)]) -> None:
    """Measure FILE, a model that was exported, beside the same model without pruning."""
    from fedprune.results.bench_model import bench

    print_bench(file, *bench(file), _console())


@deploy.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", hidden=True)],
    scenario: Annotated[Path | None, typer.Argument(metavar="[SCENARIO]", hidden=True)] = None,
    settings: Settings = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The server's name or address, as devices reach it.  [default: localhost]",
            show_default=False,
        ),
    ] = "localhost",
    port: Annotated[
        int, typer.Option(metavar="N", help="The server's port.  [default: 8000]", show_default=False)
    ] = 8000,
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What flwr run calls the deployment.  [default: edge]", show_default=False
        ),
    ] = "edge",
    days: Annotated[
        int,
        typer.Option(
            metavar="N", help="How long certificates are valid.  [default: 825]", show_default=False
        ),
    ] = 825,
) -> None:
    """Write DIR, all that it takes to run SCENARIO, a YAML file, on real devices, one client each.

    Certificates, keys, start scripts, systemd units, Flower's configuration, and a README with the commands.
    Without SCENARIO, a small trial on three devices.
    """
    from fedprune.deployment import init as write
    from fedprune.deployment import trial

    plan = trial(parse_settings(settings or ())) if scenario is None else _load(scenario, settings)
    write(directory, plan, host=host, port=port, connection=name, days=days)
    devices = "1 device" if plan.clients.count == 1 else f"{plan.clients.count} devices"
    print(f"{directory}: {plan.name} for {devices} and {host}:{port}; what to do next: {directory}/README.md")


def describe(plan: Scenario) -> str:
    """Return one paragraph on what a scenario would run."""
    clients, training, data = plan.clients, plan.clients.training, plan.data
    options = ", ".join(f"{key} {value}" for key, value in plan.strategy.options.items())
    kinds = dict.fromkeys(
        device.profile or device.name or "a device of its own" for device in clients.devices
    )
    devices = f"the {len(kinds)} devices of the trace" if clients.trace else " and ".join(kinds)
    passes = "pass" if training.epochs == 1 else "passes"
    return (
        f"{plan.strategy.name}{f' ({options})' if options else ''} trains {plan.model.name} on {data.name}, "
        f"split {data.partition.scheme} over {clients.count} clients, for {plan.rounds} rounds with "
        f"{clients.per_round} clients each; a client makes {training.epochs} {passes} in batches of "
        f"{training.batch_size} with {training.optimizer.name} (lr {training.optimizer.lr:g})"
        f"{f', on {devices}' if devices else ''}. Seed {plan.seed}; values travel as {plan.wire.values}."
        f"{_faults(plan.faults)}"
    )


def _faults(spec: FaultsSpec) -> str:
    """Return a sentence on the faults that a scenario injects, or nothing where there are none."""
    shares = [f"{name} {share:g}" for name, share in spec.shares.items() if share]
    single = [f"{each.fault} for client {each.client} in round {each.round}" for each in spec.at]
    return f" Faults injected into training tasks: {', '.join(shares + single)}." if spec.any else ""


def print_summary(done: Run, console: Console) -> None:
    """Print what a run reached and what it cost, and where its folder is."""
    from fedprune.results.measures import known_measures

    relative = done.summary.get("relative")
    rows = {m.label: m.text(done.summary, relative) for m in known_measures([done.summary])}
    if faults := done.summary.get("faults"):
        rows["faults"] = ", ".join(f"{count} {kind}" for kind, count in faults.items())
    print_names(done.name, rows, console)
    if relative:
        console.print("In brackets: relative to dense FedAvg under the same scenario, by the cost model.")
    print_classes({done.name: done.summary}, console)
    console.print(f"run folder: {done.directory}", soft_wrap=True)


def print_names(title: str, names: Mapping[str, str], console: Console) -> None:
    """Print two columns under a title: framed on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=title, box=box.SIMPLE, show_header=False, title_justify="left")
        table.add_column(no_wrap=True)
        for name, text in names.items():
            table.add_row(escape(name), escape(text))
        console.print(table)
        return
    width = max(map(len, names), default=0)
    lines = [f"  {name:<{width}}  {text}".rstrip() for name, text in names.items()]
    console.print("\n".join([f"{title}:", *(lines or ["  (none)"])]), markup=False, soft_wrap=True)


def print_classes(summaries: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print a row for each class of device of each run, where there are several."""
    from fedprune.results.classes import NOTE, class_rows

    heads, rows = class_rows(summaries)
    if not rows:
        return
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", no_wrap=not place)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    console.print(NOTE, soft_wrap=True)


def print_measured(summaries: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print what real devices have measured beside what the cost model says, for runs in which any have."""
    measured = {
        (label, device): of
        for label, summary in summaries.items()
        for device, of in (summary.get("measured") or {}).items()
    }
    if not measured:
        return
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedprune.units import format_bytes, format_seconds

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("run", "device"):
        table.add_column(head, no_wrap=True)
    for head in ("tasks", "time, measured", "modelled", "peak memory, measured", "modelled"):
        table.add_column(head, justify="right")
    for names, of in measured.items():
        table.add_row(
            *map(escape, names),
            str(of["tasks"]),
            format_seconds(of["measured_seconds"]),
            format_seconds(of["device_seconds"]),
            format_bytes(of["measured_memory_bytes"]),
            format_bytes(of["peak_memory_bytes"]),
        )
    console.print(table)
    console.print(
        "Measured: computing alone; the memory of the whole process, Python and PyTorch included.\n"
        "Modelled: computing and the network; what training itself allocates.",
        soft_wrap=True,
    )


def describe_execution(plan: Scenario, asked: Sizing, found: Execution) -> str:
    """Return in a sentence or two what this process executes sparse, and what that saves."""
    import torch

    from fedprune.units import format_bytes

    way = f"clients.training.execution: {plan.clients.training.execution}"
    if found.memory is None:
        return f"In a process on this machine ({way}) all layers are executed dense."
    dense, here = asked.step.memory_of({}, asked.batch), found.memory
    states = (
        format_bytes(each.weights + each.gradients + each.optimizer + each.batch_norm)
        for each in (here, dense)
    )
    return (
        f"In a process on this machine ({torch.backends.cpu.get_cpu_capability()}, {way}) {found.sparse} of "
        f"{found.pruned} pruned layers are executed sparse: such a step takes at most "
        f"{format_bytes(here.total)}, by prediction, in place of {format_bytes(dense.total)} dense; of "
        f"these, model, gradients and optimizer {' in place of '.join(states)}."
    )


def print_devices(
    profiles: Sequence[DeviceProfile], console: Console, fits: Sequence[Fit] = (), most: int = 0
) -> None:
    """Print a row for each device and, where given, what fits it; batches were looked for up to ``most``."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedprune.units import floor_to, format_byte_rate, format_bytes, format_flop_rate

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("device", no_wrap=True)
    for head in ("memory", "compute", "down", "up", "online", "dropout"):
        table.add_column(head, justify="right")
    for head in ("peak memory", "fits", "largest density", "largest batch") if fits else ():
        table.add_column(head, justify="right")
    for place, profile in enumerate(profiles):
        row = [
            escape(profile.name),
            format_bytes(profile.memory),
            format_flop_rate(profile.compute),
            format_byte_rate(profile.downlink),
            format_byte_rate(profile.uplink),
            f"{profile.availability:.0%}",
            f"{profile.dropout:.0%}",
        ]
        if fits:
            fit = fits[place]
            row += [
                format_bytes(fit.peak),
                "yes" if fit.fits else "no",
                "none" if fit.density is None else f"{floor_to(fit.density, 4):g}",
                "none" if fit.batch is None else f"{fit.batch}{'+' if fit.batch == most else ''}",
            ]
        table.add_row(*row)
    console.print(table)


def print_bench(file: Path, ours: Cost, dense: Cost, console: Console) -> None:
    """Print what a model file costs beside its dense model."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedprune.units import format_bytes, format_seconds

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for head in (escape(file.name), "dense", "ratio"):
        table.add_column(head, justify="right")

    def add(name: str, of: float | None, than: float | None, text: Callable[[Any], str]) -> None:
        shown = ("-" if each is None else text(each) for each in (of, than))
        table.add_row(name, *shown, f"{of / than:.2f}x" if of is not None and than else "-")

    add("size", ours.size, dense.size, format_bytes)
    add("latency", ours.seconds, dense.seconds, format_seconds)
    add("peak memory", ours.memory, dense.memory, format_bytes)
    console.print(table)
    console.print(
        "One image, one thread, median; memory is what reading the file and the first inferences add.\n"
        "Dense is the same model with all its weights, in 32 bits. Both are computed with dense kernels:\n"
        "zeros make the file smaller, and no inference faster.",
        markup=False,
        soft_wrap=True,
    )


def _console() -> Console:
    """Return a console on standard output; a pipe or a file gets lines as long as they are."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 1000, highlight=False)


def _devices() -> dict[str, str]:
    """Return the built-in device profiles, with a line each."""
    from fedprune.costs.devices import profiles
    from fedprune.units import format_byte_rate, format_bytes, format_flop_rate

    return {
        name: f"{format_bytes(profile.memory)}, {format_flop_rate(profile.compute)}, "
        f"down {format_byte_rate(profile.downlink)}, up {format_byte_rate(profile.uplink)}"
        for name, profile in profiles().items()
    }


def _load(path: Path, settings: Sequence[str] | None, more: Mapping[str, Any] | None = None) -> Scenario:
    """Read a scenario with the values that were set on the command line."""
    from fedprune.scenario import load_scenario

    return load_scenario(path, {**parse_settings(settings or ()), **(more or {})})


def parse_settings(settings: Iterable[str]) -> dict[str, str]:
    """Return "KEY=VALUE" texts as a mapping; the last of two with the same key counts.

    Raises
    ------
    UserError
        Where one has no "=" or no key.
    """
    values = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key.strip():
            raise UserError(f"--set {setting}: write KEY=VALUE, such as --set strategy.density=0.1")
        values[key.strip()] = value
    return values
