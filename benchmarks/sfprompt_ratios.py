"""What SFPrompt saves at the size of its paper: client FLOPs and bytes beside full federated fine-tuning.

    python benchmarks/sfprompt_ratios.py [--examples N ...] [--prune SHARE ...] [--local-epochs E ...]
        [--prompts N] [--classes N] [--json FILE]

ViT-Base and ViT-Large with pictures of 224 pixels and patches of 16, cut in three ways. Nothing is trained,
and no data is needed. FLOPs are those of `fedprune.costs`, as every run counts them; bytes are those of
float32 values, without the few hundred around them. Of one client in one round:

- sfprompt computes head and tail, forward and backward, over its examples once in each local epoch and over
  those that are kept once more, and forward over all of them to score them. It gets and sends prompts and
  tail; of each kept example four times as many values travel as the body takes (activations to and fro, and
  their gradients). Its frozen head is sent once and is a column of its own.
- full fine-tuning computes the whole model in each local epoch, and gets and sends all of it.

The paper (Cao, Zhu, Gong: arXiv 2407.17533) has 0.46 % of the computation, and 0.47 times the bytes for
ViT-Base and 0.19 times for ViT-Large. The second table asks the other way round: with how many kept examples
a client and round, which decide over the bytes, are these reached?
"""

from __future__ import annotations

import argparse
import copy
import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from fedprune.costs.flops import ModelCost
from fedprune.models.cut import ClientPart, cut
from fedprune.models.vit import vit
from fedprune.sparsity.frozen import freeze
from fedprune.sparsity.masks import Masks
from fedprune.tasks import classification_of
from fedprune.units import format_bytes, format_flops

PICTURE = (3, 224, 224)
PROMPTS = "embedding.prompts"
BYTES = 4  # of a float32 value
CROSSINGS = 4  # activations to the body and from it, and the gradients of both

#: Name, size of a token, blocks, heads, and the paper's ratio of bytes.
MODELS = (("ViT-Base", 768, 12, 12, 0.47), ("ViT-Large", 1024, 24, 16, 0.19))


@dataclass(frozen=True)
class Parts:
    """What a model costs, whole and as a client of a cut holds it, by example or once."""

    model: str
    cut: str
    whole_training_flops: int
    client_training_flops: int
    client_forward_flops: int
    whole_bytes: int
    trained_bytes: int
    frozen_head_bytes: int
    smashed_bytes: int


@dataclass(frozen=True)
class Row:
    """One client in one round, sfprompt beside full fine-tuning."""

    model: str
    cut: str
    examples: int
    prune: float
    local_epochs: int
    flops: int
    flops_ratio: float
    bytes: int
    bytes_ratio: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables; write what they say as JSON where asked."""
    asked = _parser().parse_args(arguments)
    measured, rows = [], []
    for name, size, layers, heads, _ in MODELS:
        whole, split = (_vit(size, layers, heads, prompts, asked.classes) for prompts in (0, asked.prompts))
        for label, body, tail in _cuts(layers):
            found = parts(name, label, whole, split, PICTURE, body, tail)
            measured.append(found)
            rows += [
                row(found, examples, prune, epochs)
                for examples in asked.examples
                for prune in asked.prune
                for epochs in asked.local_epochs
            ]
    reached = [
        kept_for(found, ratio) for found in measured for name, *_, ratio in MODELS if name == found.model
    ]
    _print(measured, rows, reached)
    if asked.json:
        document = {
            "parts": [asdict(each) for each in measured],
            "rows": [asdict(each) for each in rows],
            "kept_examples_at_the_papers_bytes": dict(
                zip((f"{each.model}, {each.cut}" for each in measured), reached, strict=True)
            ),
        }
        asked.json.write_text(json.dumps(document, indent=2) + "\n")


def _cuts(layers: int) -> list[tuple[str, str, str]]:
    """Return (label, first stage of the body, first stage of the tail) of each cut."""
    last = f"blocks.{layers - 1}"
    return [
        ("norm and classifier", "blocks.0", "norm"),
        ("last block", "blocks.0", last),
        ("first and last block", "blocks.1", last),
    ]


def _vit(size: int, layers: int, heads: int, prompts: int, classes: int) -> nn.Module:
    """Return a vision transformer without memory for its values."""
    with torch.device("meta"):
        return vit(PICTURE, classes, patch=16, size=size, layers=layers, heads=heads, prompts=prompts)


def parts(
    model: str,
    label: str,
    whole: nn.Module,
    split: nn.Module,
    picture: tuple[int, int, int],
    body: str,
    tail: str,
) -> Parts:
    """Return what a model costs, whole and where it is cut.

    Parameters
    ----------
    model, label
        Its name, and that of the cut.
    whole, split
        What full fine-tuning trains, and what is cut: the same with prompts, say. Head and body are frozen.
    picture
        (C, H, W).
    body, tail
        The stages with which these begin.
    """
    task = classification_of(picture)
    split = copy.deepcopy(split)
    where = next(split.parameters()).device
    with where:
        client = ClientPart(split, cut(split, body, tail), torch.empty(2, *picture))
    freeze(client, [name for name in client.head_names() if name != PROMPTS])
    full, part = ModelCost.of(whole, task), ModelCost.of(client, task)
    return Parts(
        model=model,
        cut=label,
        whole_training_flops=full.training_flops(Masks(), 1),
        client_training_flops=part.training_flops(Masks(), 1),
        client_forward_flops=part.forward_flops(Masks(), 1),
        whole_bytes=BYTES * _values(whole, True),
        trained_bytes=BYTES * _values(client, True),
        frozen_head_bytes=BYTES * _values(client, False),
        smashed_bytes=BYTES * client.body_shapes[0].numel(),
    )


def _values(module: nn.Module, trained: bool) -> int:
    return sum(each.numel() for each in module.parameters() if each.requires_grad == trained)


def row(found: Parts, examples: int, prune: float, local_epochs: int) -> Row:
    """Return what a client computes and exchanges in one round, and the ratios to full fine-tuning."""
    kept = examples - int(prune * examples)
    flops = found.client_training_flops * (local_epochs * examples + kept)
    flops += found.client_forward_flops * examples if prune else 0
    moved = 2 * found.trained_bytes + CROSSINGS * found.smashed_bytes * kept
    return Row(
        model=found.model,
        cut=found.cut,
        examples=examples,
        prune=prune,
        local_epochs=local_epochs,
        flops=flops,
        flops_ratio=flops / (found.whole_training_flops * local_epochs * examples),
        bytes=moved,
        bytes_ratio=moved / (2 * found.whole_bytes),
    )


def kept_for(found: Parts, ratio: float) -> float:
    """Return the kept examples of a client and round with which bytes are ``ratio`` of full fine-tuning's."""
    return (ratio * 2 * found.whole_bytes - 2 * found.trained_bytes) / (CROSSINGS * found.smashed_bytes)


def _print(measured: Sequence[Parts], rows: Sequence[Row], reached: Sequence[float]) -> None:
    _table(
        ("model", "tail", "FLOPs, whole", "FLOPs, client", "share", "trained", "frozen head", "smashed"),
        (
            (
                each.model,
                each.cut,
                format_flops(each.whole_training_flops),
                format_flops(each.client_training_flops),
                f"{each.client_training_flops / each.whole_training_flops:.2%}",
                format_bytes(each.trained_bytes),
                format_bytes(each.frozen_head_bytes),
                format_bytes(each.smashed_bytes),
            )
            for each in measured
        ),
    )
    _table(
        ("model", "tail", "examples", "left out", "local epochs", "FLOPs", "of full", "bytes", "of full"),
        (
            (
                each.model,
                each.cut,
                str(each.examples),
                f"{each.prune:.0%}",
                str(each.local_epochs),
                format_flops(each.flops),
                f"{each.flops_ratio:.2%}",
                format_bytes(each.bytes),
                f"{each.bytes_ratio:.2f}x",
            )
            for each in rows
        ),
    )
    papers = {name: ratio for name, *_, ratio in MODELS}
    _table(
        ("model", "tail", "the paper's bytes", "reached with kept examples"),
        (
            (each.model, each.cut, f"{papers[each.model]}x", f"{kept:.0f}")
            for each, kept in zip(measured, reached, strict=True)
        ),
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as Markdown; the first two columns are words."""
    print("|", " | ".join(heads), "|")
    print("|" + "---|" * 2 + "--:|" * (len(heads) - 2))
    for each in rows:
        print("|", " | ".join(each), "|")
    print()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, nargs="+", default=[250, 1000], help="of a client")
    parser.add_argument("--prune", type=float, nargs="+", default=[0.5, 0.8], help="share left out")
    parser.add_argument("--local-epochs", type=int, nargs="+", default=[1, 10], help="without the body")
    parser.add_argument("--prompts", type=int, default=5, help="prompts before the patches")
    parser.add_argument("--classes", type=int, default=10, help="of the classifier")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser


if __name__ == "__main__":
    main()
