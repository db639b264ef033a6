"""What the site takes from the code: a hook of MkDocs, so that no page can differ from it.

Pages are markdown with marks such as ``<!-- made: options fedtiny -->``. When the site is built, each mark is
replaced by what the function of that name below makes of the code. Pages of methods, and the page of
shipped scenarios, are made whole.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from textwrap import indent
from typing import Any, get_type_hints

import typer
from griffe import Docstring, DocstringSectionKind
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from torch import Tensor

import fedprune
import fedprune.costs.clock
import fedprune.costs.memory
import fedprune.sparsity.criteria
import fedprune.sparsity.distributions
import fedprune.sparsity.schedules
from fedprune import compression, costs, registry, sparsity, wire
from fedprune.cli.app import app
from fedprune.compression import COMPRESSORS
from fedprune.costs import ledger
from fedprune.costs.devices import profiles
from fedprune.costs.flops import ModelCost
from fedprune.data import DataInfo
from fedprune.data.inputs import Inputs, Numbers, Tokens
from fedprune.data.sources import OPTIONS
from fedprune.errors import Fault
from fedprune.loggers import LOGGERS
from fedprune.models import build as build_model
from fedprune.scenario import json_schema
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity import execution
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable
from fedprune.studies import spec as studies
from fedprune.tasks import Accuracy, Task
from fedprune.units import format_byte_rate, format_bytes, format_flop_rate

#: What is documented whole, besides `fedprune` itself.
PACKAGES = (
    costs.memory,
    costs.clock,
    sparsity.criteria,
    sparsity.distributions,
    sparsity.schedules,
    execution,
    wire,
    compression,
)

ROOT = Path(__file__).resolve().parent.parent

_MARK = re.compile(r"<!-- made: (\w+)((?: [\w./-]+)*) -->")


# What MkDocs calls ------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made whole; refuse to build where the public API is not documented."""
    if faults := undocumented():
        raise PluginError("\n".join(faults))
    for name in registry.names("strategy"):
        files.append(File.generated(config, f"methods/{name}.md", content=method(name)))
    files.append(File.generated(config, "guides/shipped.md", content=shipped()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the marks of a page."""
    return filled(markdown)


def filled(markdown: str) -> str:
    """Return markdown with every mark replaced."""
    return _MARK.sub(lambda mark: MADE[mark[1]](*mark[2].split()), markdown)


def undocumented() -> list[str]:
    """Return what is missing: a public name without a docstring or a page."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, flags=re.MULTILINE))
    missing = []
    for name in (name for name in fedprune.__all__ if not name.startswith("__")):
        if f"fedprune.{name}" not in shown:
            missing.append(f"fedprune.{name} is on no page of docs/reference")
        if not (getattr(fedprune, name).__doc__ or "").strip():
            missing.append(f"fedprune.{name} has no docstring")
    for package in PACKAGES:
        if package.__name__ not in shown:
            missing.append(f"{package.__name__} is on no page of docs/reference")
        missing += [
            f"{package.__name__}.{name} has no docstring"
            for name, value in vars(package).items()
            if not name.startswith("_")
            and (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__.startswith(package.__name__)
            and not inspect.getdoc(value)
        ]
    return missing


# Pages ------------------------------------------------------------------------------------


def method(name: str) -> str:
    """Return the page of a strategy, from the docstring of its module and the options of its class."""
    found = registry.load("strategy", name)
    module = inspect.getmodule(found)
    assert module is not None
    title, _, text = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    idea, *rest = re.split(r"^([A-Z][^\n]+)\n-+\n", text, flags=re.MULTILINE)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    references = sections.pop("References")
    head, _, subtitle = title.rstrip(".").partition(": ")
    parts = [f"# {head}", f"*{subtitle[0].upper()}{subtitle[1:]}.*" if subtitle else "", _code(idea)]
    parts += [f"## {heading}\n\n{_code(body)}" for heading, body in sections.items()]
    parts.append(
        f"## Options\n\n```yaml\nstrategy:\n  name: {name}\n  ...\n```\n\n{options(name)}\n"
        "Options without a default have to be given."
    )
    parts.append(f"## References\n\n{_code(references)}")
    code = inspect.getsource(module).replace(module.__doc__ or "", "...").rstrip()
    block = indent(f"```python\n{code}\n```", "    ")
    parts.append("## Code\n\n[What the methods reach](../results.md) compares it with the others.")
    parts.append(f'??? note "strategies/{name}.py"\n\n{block}')
    return "\n\n".join(filter(None, parts)) + "\n"


def shipped() -> str:
    """Return the page of the scenarios that come with the repository."""
    parts = [
        "# Shipped scenarios\n\nThese files stand in `scenarios/` of the repository and run as they are: "
        "`fedprune run scenarios/quickstart.yaml`."
    ]
    for path in sorted((ROOT / "scenarios").glob("*.yaml"), key=lambda path: path.stem):
        parts.append(f"## {path.stem}\n\n```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


# Tables -----------------------------------------------------------------------------------


def methods() -> str:
    """Return the table of strategies."""
    rows = (
        (f"[`{name}`](../methods/{name}.md)", text) for name, text in registry.available("strategy").items()
    )
    return _table(("name", "what it does"), rows)


def named(kind: str) -> str:
    """Return the table of plug-ins of a kind."""
    return _table(
        ("name", "what it is"), ((f"`{name}`", text) for name, text in registry.available(kind).items())
    )


@cache
def models() -> str:
    """Return the table of what each built-in model holds and costs at the size for which it is known."""
    return _table(
        ("model", "inputs", "outputs", "parameters", "FLOPs of a forward pass", "prunable"),
        ((f"`{name}`", *_measured(name, *size)) for name, size in _SIZES.items()),
    )


def options(name: str) -> str:
    """Return the table of a strategy's options: its own first, then those that every one has."""
    found = registry.load("strategy", name)
    shared = PruningStrategy.Options.model_fields
    known: dict[str, FieldInfo] = found.Options.model_fields
    own = [key for key in known if key not in shared or known[key].default != shared[key].default]
    order = ["density", *(key for key in own if key != "density"), *(key for key in shared if key not in own)]
    return _model_table(found.Options, list(dict.fromkeys(order)))


def loggers() -> str:
    """Return the built-in loggers with their options."""
    parts = []
    for name in LOGGERS:
        kind = registry.load("logger", name)
        options = list(kind.Options.model_fields)
        parts.append(f"### {name}\n\n{inspect.cleandoc(kind.__doc__ or '')}\n")
        parts.append(_model_table(kind.Options, options) if options else "It has no options.\n")
    return "\n".join(parts)


def compressors() -> str:
    """Return the built-in compressors of updates, with their options, their differences and references."""
    parts = []
    for name in COMPRESSORS:
        kind = registry.load("compressor", name)
        module = inspect.getmodule(kind)
        _, _, text = inspect.cleandoc(getattr(module, "__doc__", "") or "").partition("\n\n")
        idea, *rest = re.split(r"^([A-Z][^\n]+)\n-+\n", text, flags=re.MULTILINE)
        parts.append(f"### {name}\n\n{inspect.cleandoc(kind.__doc__ or '')} {_code(idea)}\n")
        parts.append(_model_table(kind.Options, list(kind.Options.model_fields)))
        parts += [
            f"{heading}:\n\n{_code(body)}\n" for heading, body in zip(rest[::2], rest[1::2], strict=True)
        ]
    return "\n".join(parts)


def sources() -> str:
    """Return the built-in sources of data that have options, with these."""
    parts = []
    for name, kind in OPTIONS.items():
        parts.append(f"### {name}\n")
        parts.append(_model_table(kind, list(kind.model_fields)))
    return "\n".join(parts)


def section(name: str) -> str:
    """Return the table of one section of the scenario, by the name of its schema."""
    schema = json_schema()
    spec = schema if name == "Scenario" else schema["$defs"][name]
    required = spec.get("required", ())
    rows = []
    for key, value in spec["properties"].items():
        default = "required" if key in required else _default(value.get("default"))
        rows.append((f"`{key}`", _type(value, schema), default, _description(value, schema)))
    return _table(("key", "value", "default", "what it is"), rows)


def study(name: str, *keys: str) -> str:
    """Return the table of the keys of a part of a study file, all of them where none is named."""
    model: type[BaseModel] = getattr(studies, name)
    return _model_table(model, list(keys or model.model_fields))


def columns(name: str) -> str:
    """Return the table of the columns of a record of the ledger, from its docstring."""
    record = getattr(ledger, name)
    kinds = get_type_hints(record)
    described = _attributes(record)
    return _table(
        ("column", "type", "what it is"),
        ((f"`{key}`", _plain(kind), _code(described[key])) for key, kind in kinds.items()),
    )


def devices() -> str:
    """Return the table of the built-in device profiles."""
    rows = (
        (
            f"`{name}`",
            format_bytes(each.memory),
            format_flop_rate(each.compute),
            format_byte_rate(each.downlink),
            format_byte_rate(each.uplink),
            f"{each.availability:.0%}",
            f"{each.dropout:.0%}",
        )
        for name, each in profiles().items()
    )
    return _table(("profile", "memory", "compute", "down", "up", "online", "dropout"), rows)


def faults() -> str:
    """Return the table of kinds of faults, from the comments beside them."""
    lines = inspect.getsource(Fault).splitlines()
    rows = (re.fullmatch(r' +\w+ = "([\w-]+)"  #: (.+)', line) for line in lines)
    return _table(("kind", "what happened"), ((f"`{row[1]}`", row[2]) for row in rows if row))


def api() -> str:
    """Return the table of what is importable from `fedprune`."""
    rows = []
    for name in fedprune.__all__:
        if name.startswith("__"):
            continue
        line = inspect.cleandoc(getattr(fedprune, name).__doc__ or "").partition("\n")[0]
        rows.append((f"[`fedprune.{name}`][fedprune.{name}]", _code(line)))
    return _table(("name", "what it is"), rows)


def commands() -> str:
    """Return the reference of the command line, from the commands themselves."""
    return "\n".join(_command("fedprune", typer.main.get_command(app)))


_MAKERS = (
    methods,
    named,
    models,
    sources,
    options,
    loggers,
    compressors,
    section,
    study,
    columns,
    devices,
    faults,
    api,
    commands,
)
MADE: Mapping[str, Callable[..., str]] = {maker.__name__: maker for maker in _MAKERS}


# How --------------------------------------------------------------------------------------


def _measured(name: str, inputs: Inputs, outputs: int) -> Iterator[str]:
    model = build_model(name, inputs.shape, outputs, seed=0, known=inputs.known())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    pruned = sum(model.get_parameter(weight).numel() for weight in prunable(model))
    task = _Returned(DataInfo("", inputs))
    flops = ModelCost.of(model, task).forward_flops(Masks(), 1)
    yield "x".join(map(str, inputs.shape)) + (" tokens" if isinstance(inputs, Tokens) else "")
    yield str(outputs)
    yield f"{parameters:,}"
    yield f"{flops / 1e6:,.1f} million"
    yield f"{pruned / parameters:.1%}"


class _Returned(Task):
    """What a model returns, and no more: a task that costs next to nothing."""

    def losses(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        return outputs.flatten(1)[:, 0]

    def headline(self) -> Accuracy:
        return Accuracy()


#: The inputs and outputs for which each model is known, by its paper, MLPerf Tiny or LEAF.
_SIZES: Mapping[str, tuple[Inputs, int]] = {
    "resnet18": (Numbers((3, 32, 32)), 10),
    "vgg11": (Numbers((3, 32, 32)), 10),
    "cnn": (Numbers((3, 32, 32)), 10),
    "lenet5": (Numbers((1, 28, 28)), 10),
    "mlp": (Numbers((1, 28, 28)), 10),
    "resnet8": (Numbers((3, 32, 32)), 10),
    "mobilenet_v1": (Numbers((3, 96, 96)), 2),
    "mobilenet_v2": (Numbers((3, 224, 224)), 1000),
    "efficientnet_lite0": (Numbers((3, 224, 224)), 1000),
    "shufflenet_v2": (Numbers((3, 224, 224)), 1000),
    "ds_cnn": (Numbers((1, 49, 10)), 12),
    "cnn1d": (Numbers((9, 128)), 6),
    "gru": (Numbers((9, 128)), 6),
    "lstm": (Tokens((80,), vocabulary=80), 80),
    "transformer": (Tokens((80,), vocabulary=80), 80),
    "vit": (Numbers((3, 32, 32)), 10),
    "vit_tiny": (Numbers((3, 224, 224)), 1000),
    "vit_small": (Numbers((3, 224, 224)), 1000),
    "vit_base": (Numbers((3, 224, 224)), 1000),
    "autoencoder": (Numbers((640,)), 640),
    "unet": (Numbers((3, 64, 64)), 2),
}


def _command(path: str, command: Any) -> Iterator[str]:
    text = inspect.cleandoc(command.help or "").replace("\f", "")
    if subcommands := getattr(command, "commands", None):
        if path != "fedprune":
            yield f"## {path}\n\n{text}\n"
        for name, each in subcommands.items():
            yield from _command(f"{path} {name}", each)
        return
    known = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    metavars = [each.metavar or each.name for each in command.params if each.param_type_name == "argument"]
    yield f"## {path}\n\n{text}\n"
    usage = " ".join([path, *(["[OPTIONS]"] if known else []), *metavars])
    yield f"```text\n{usage}\n```\n"
    rows = []
    for each in known:
        flags = ", ".join([*each.opts, *each.secondary_opts])
        rows.append((f"`{flags}{f' {each.metavar}' if each.metavar else ''}`", each.help or ""))
    if rows:
        yield _table(("option", "what it does"), rows) + "\n"


def _model_table(model: type[BaseModel], keys: list[str]) -> str:
    schema = model.model_json_schema(by_alias=False)
    rows = []
    for key in keys:
        field, spec = model.model_fields[key], schema["properties"][key]
        if field.default is PydanticUndefined and field.default_factory is None:
            default = "required"
        else:
            default = _default(spec.get("default", field.get_default(call_default_factory=True)))
        rows.append((f"`{field.alias or key}`", _type(spec, schema), default, field.description or ""))
    return _table(("option", "value", "default", "what it does"), rows)


def _default(value: Any) -> str:
    """Return a default as YAML has it."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(_default(each).strip('`') for each in value)}]`"
    if isinstance(value, dict):
        parts = ", ".join(f"{key}: {_default(each).strip('`')}" for key, each in value.items())
        return "see there" if len(parts) > 60 else f"`{{{parts}}}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _type(spec: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return what values a schema takes, in words."""
    if name := spec.get("$ref", "").rpartition("/")[2]:
        of = schema["$defs"][name]
        if name.endswith("Spec") or name == "DeviceShare":
            return "section"
        if of.get("type") == "object":
            return "mapping: " + ", ".join(f"`{key}`" for key in of["properties"])
        return _type(of, schema)
    for key in ("anyOf", "oneOf"):
        if key in spec:
            kinds = dict.fromkeys(_type(each, schema) for each in spec[key] if each.get("type") != "null")
            return " or ".join(kinds)
    if "enum" in spec:
        return ", ".join(f"`{each}`" for each in spec["enum"])
    if "const" in spec:
        return f"`{spec['const']}`"
    kind = spec.get("type")
    if kind == "array":
        items = spec.get("items") or (spec.get("prefixItems") or [{}])[0]
        return f"list of {_type(items, schema)}"
    words = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
    return f"{words.get(kind or '', 'mapping')}{_range(spec)}"


def _description(spec: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return what a schema says of itself; pydantic leaves it to the section where both say the same."""
    of = schema["$defs"].get(spec.get("$ref", "").rpartition("/")[2], {})
    text: str = spec.get("description") or of.get("description", "")
    return text


def _range(spec: Mapping[str, Any]) -> str:
    """Return the range of a schema's numbers: "in (0, 1]", "≥ 1", or nothing; it is not broken over lines."""
    low = spec.get("minimum", spec.get("exclusiveMinimum"))
    high = spec.get("maximum", spec.get("exclusiveMaximum"))
    text = ""
    if low is not None and high is not None:
        text = f"in {'[' if 'minimum' in spec else '('}{low:g}, {high:g}{']' if 'maximum' in spec else ')'}"
    elif low is not None:
        text = f"{'≥' if 'minimum' in spec else '>'} {low:g}"
    elif high is not None:
        text = f"{'≤' if 'maximum' in spec else '<'} {high:g}"
    return f" {text.replace(' ', '&nbsp;')}" if text else ""


def _attributes(record: type) -> dict[str, str]:
    """Return what the docstring of a record says of each attribute."""
    sections = Docstring(inspect.cleandoc(record.__doc__ or "")).parse("numpy", warnings=False)
    described: dict[str, str] = {}
    for each in sections:
        if each.kind is DocstringSectionKind.attributes:
            for item in each.value:
                text = " ".join(item.description.split())
                described |= dict.fromkeys(item.name.split(", "), text)
    missing = get_type_hints(record).keys() - described.keys()
    if missing:
        raise ValueError(f"{record.__name__}: its docstring does not describe {', '.join(sorted(missing))}")
    return described


def _plain(kind: Any) -> str:
    """Return a Python type as JSON has it."""
    text = kind.__name__ if isinstance(kind, type) and "[" not in str(kind) else str(kind)
    for word, plain in (
        ("NoneType", "null"),
        ("None", "null"),
        ("int", "whole number"),
        ("float", "number"),
        ("str", "text"),
    ):
        text = re.sub(rf"\b{word}\b", plain, text)
    return "object" if "dict" in text else text.replace(" | ", " or ")


def _table(heads: tuple[str, ...], rows: Any) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        cells = (str(cell).replace("|", "\\|").replace("\n", " ") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Return a docstring's text as markdown: ``code`` as `code`."""
    return text.replace("``", "`").strip()
