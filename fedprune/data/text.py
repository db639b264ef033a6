"""Texts as tokens: for predicting the next one, or the class of a text.

Characters are the built-in tokens, those of the training texts or of an alphabet that the scenario gives; a
``tokenizer.json`` is read by the package tokenizers, which the extra ``fedprune[text]`` installs. To predict
the next token, a client's texts are cut, one after the other, into windows of L + 1 tokens; to classify, each
text is one example. Token 0 fills up what is shorter.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedprune.data import columns
from fedprune.data.dataset import Examples, Indices
from fedprune.data.inputs import Tokens
from fedprune.data.partition import TEST_PART, choose, split_without_test
from fedprune.data.source import Request, Source, SourceOptions
from fedprune.errors import DataError

#: Tokens of every vocabulary of characters: what fills up, and what is not known.
PADDING, UNKNOWN = 0, 1

_EXPECTED = (
    "expected a .txt, .csv or .parquet file, LEAF's .json, or a folder of .txt files (one a client) or of "
    "train/ and test/ with such"
)


class Tokenizer(Protocol):
    """Makes tokens of a text."""

    def encode(self, text: str) -> Indices:
        """Return the tokens of a text."""

    def inputs(self, length: int) -> Tokens:
        """Return how sequences of so many tokens become a model's inputs."""


@dataclass(frozen=True)
class Characters(Tokens):
    """Sequences of characters: token 2 is the first of ``characters``, 1 any other one, 0 fills up."""

    characters: str = ""

    def settings(self) -> dict[str, object]:
        """Return the characters in the order of their tokens."""
        return {"characters": self.characters}


@dataclass(frozen=True)
class CharacterTokenizer:
    """Makes a token of each character.

    Attributes
    ----------
    characters
        Those that have a token of their own, in ascending order.
    """

    characters: str

    @classmethod
    def of(cls, texts: Iterable[str], most: int) -> CharacterTokenizer:
        """Return one for the most frequent characters of texts, ``most`` of them."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        frequent = sorted(counts, key=lambda character: (-counts[character], character))
        return cls("".join(sorted(frequent[:most])))

    def encode(self, text: str) -> Indices:
        """Return the tokens of a text, int64 (characters,)."""
        known = _code_points(self.characters)
        given = _code_points(text)
        places = np.searchsorted(known, given).clip(max=len(known) - 1)
        return np.where(known[places] == given, places + UNKNOWN + 1, UNKNOWN).astype(np.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; what is not known is the replacement character, and padding nothing."""
        signs = ["", "\N{REPLACEMENT CHARACTER}", *self.characters]
        return "".join(signs[token] for token in tokens)

    def inputs(self, length: int) -> Tokens:
        """Return how sequences of so many characters become a model's inputs."""
        return Characters((length,), len(self.characters) + 2, PADDING, self.characters)


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


@dataclass(frozen=True)
class FileTokenizer:
    """A tokenizer of the package tokenizers; ``path`` is its ``tokenizer.json``."""

    path: Path
    tokenizer: Any

    @classmethod
    def of(cls, path: Path) -> FileTokenizer:
        """Read a file.

        Raises
        ------
        DataError
            Where it can't be read, or the package is not installed.
        """
        try:
            from tokenizers import Tokenizer as Reader
        except ImportError as error:
            raise DataError(
                f'data.options.tokenizer {path} needs tokenizers: pip install "fedprune[text]"'
            ) from error
        try:
            return cls(path, Reader.from_file(str(path)))
        except Exception as error:  # tokenizers raises mere exceptions
            raise DataError(f"data.options.tokenizer {path} can't be read: {error}") from error

    def encode(self, text: str) -> Indices:
        """Return the tokens of a text, int64 (tokens,), without those that a model adds around it."""
        found = np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        return found + 1 if self._shifted else found

    def inputs(self, length: int) -> Tokens:
        """Return how sequences of so many tokens become a model's inputs."""
        return Tokens((length,), self.tokenizer.get_vocab_size() + self._shifted, PADDING)

    @property
    def _shifted(self) -> bool:
        """Whether tokens are counted from 1, since the file's token 0 is none that fills up."""
        return not any(self.tokenizer.token_to_id(name) == PADDING for name in ("[PAD]", "<pad>", "<PAD>"))


class TokenOptions(SourceOptions):
    """What ``data.options`` may say of tokens."""

    length: int = Field(default=80, ge=1, le=2**16, description="Tokens that a model sees.")
    tokenizer: Path | None = Field(
        default=None,
        description="A tokenizer.json, relative to data.path or absolute; without it, characters are tokens.",
    )
    alphabet: str | None = Field(
        default=None,
        min_length=1,
        description="The characters that have a token of their own; by default the most frequent of the "
        "training texts.",
    )
    most_characters: int = Field(default=254, ge=1, description="How many of those at the most.")


class TextOptions(TokenOptions):
    """What ``data.options`` may say of texts."""

    column: str = Field(default="text", description="The column with the texts of a table.")
    label: str | None = Field(
        default=None,
        description="The column with their classes; without it, or data.label_column, the next token is "
        "predicted.",
    )
    hub: str | None = Field(
        default=None, description="Where the Hugging Face hub has the texts, without data.path."
    )


@dataclass(frozen=True)
class _Document:
    """A text, whose it is ("" where nobody says so), and its class where it has one."""

    text: str
    client: str = ""
    label: str | None = None


def text(request: Request) -> Source:
    """Texts: files, a column of a table, or LEAF's JSON; predict the next character, or a text's class."""
    options = request.read_options(TextOptions)
    label = options.label or request.label_column
    if label is not None:
        options = options.model_copy(update={"label": label})
    train, test = _read(request, options)
    return _source(request, train, test, options, classify=label is not None)


def own_texts(path: Path, inputs: Characters, names: Sequence[str], options: TextOptions) -> list[Examples]:
    """Return a device's own texts, for training and, if it has some apart, for testing.

    Parameters
    ----------
    path
        What `text` reads.
    inputs
        What the model takes.
    names
        The classes; () where the next character is predicted.
    options
        Those of the scenario's data set; ``label`` is the column with the classes.

    Raises
    ------
    DataError
        Where it can't be read, lacks a column, or has a label of no class.
    """
    tokenizer, (length,) = CharacterTokenizer(inputs.characters), inputs.shape
    made = []
    for documents in _read(Request("own", path), options):
        if documents is None:
            continue
        if names:
            number_of = {name: number for number, name in enumerate(names)}
            if unknown := [document.label for document in documents if document.label not in number_of]:
                raise DataError(
                    f"{path}: a text has the label {unknown[0]!r}, none of the classes {', '.join(names)}"
                )
            targets = np.array([number_of[document.label or ""] for document in documents], dtype=np.int64)
            rows = [tokenizer.encode(document.text)[:length] for document in documents]
            made.append(Examples(_filled(rows, length), targets))
        else:
            streams = _streams(documents, tokenizer).values()
            rows = [row for stream in streams for row in _windows(stream, length)]
            made.append(Examples(_filled(rows, length + 1), np.zeros(len(rows), dtype=np.int64)))
    return made


def docstrings(request: Request) -> Source:
    """Docstrings of Python's standard library, 30 modules, which are the clients: predict the next character.

    They differ between versions of Python, and so do results.
    """
    options = request.read_options(TokenOptions)
    root = Path(sysconfig.get_path("stdlib"))
    documents = [_Document("\n\n".join(_docstrings(root, module)), module) for module in _MODULES]
    if missing := [document.client for document in documents if not document.text]:
        raise DataError(
            f"data set {request.name!r} needs the source of Python's standard library, and {root} has no "
            f"docstrings of {', '.join(missing)}"
        )
    return _source(request, documents, None, options, classify=False)


#: Modules with many docstrings that Python 3.11 and later have, without those that a system may leave out.
_MODULES = (
    *("argparse", "asyncio", "codecs", "collections", "concurrent", "configparser", "ctypes", "difflib"),
    *("doctest", "email", "http", "importlib", "inspect", "ipaddress", "json", "logging", "multiprocessing"),
    *("optparse", "pdb", "shutil", "smtplib", "statistics", "subprocess", "tarfile", "threading", "typing"),
    *("unittest", "urllib", "xml", "xmlrpc"),
)


@lru_cache(maxsize=len(_MODULES))
def _docstrings(root: Path, module: str) -> tuple[str, ...]:
    """Return the docstrings of a module of the standard library; nothing is imported."""
    single = root / f"{module}.py"
    files = [single] if single.is_file() else sorted((root / module).rglob("*.py"))
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.append(ast.get_docstring(node) or "")
    return tuple(each for each in found if each)


def _read(request: Request, options: TextOptions) -> tuple[list[_Document], list[_Document] | None]:
    """Return the texts for training and, where there are some, those for testing."""
    path = request.path
    if path is not None and not path.exists():
        raise DataError(f"data.path {path} does not exist: {_EXPECTED}")
    if path is not None and path.is_dir() and (path / "train").is_dir():
        test = _plain(path / "test") if (path / "test").is_dir() else None
        return _plain(path / "train") or _nothing(path / "train"), test
    if path is not None and (found := _plain(path)):
        return found, None
    train, held = columns.read(request, options.hub)
    return _rows(train, request, options), None if held is None else _rows(held, request, options)


def _nothing(path: Path) -> list[_Document]:
    raise DataError(f"{path} has no texts: {_EXPECTED}")


def _plain(path: Path) -> list[_Document]:
    """Return the texts of a .txt or .json file, or of a folder of such; [] where it is something else."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    try:
        if files and all(file.suffix == ".json" for file in files):
            return [document for file in files for document in _leaf(file)]
        texts = [file for file in files if file.suffix == ".txt"]
        named = len(texts) > 1 or path.is_dir()
        return [_Document(file.read_text(encoding="utf-8-sig"), file.stem if named else "") for file in texts]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}): convert it before") from error


def _leaf(file: Path) -> list[_Document]:
    """Return the texts of a file of LEAF (Caldas et al. 2018), {"users", "user_data": {user: {"x", "y"}}}.

    What is to be predicted there, one more character, is put at the end of its text.
    """
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            (user, before, after)
            for user in held["users"]
            for before, after in zip(held["user_data"][user]["x"], held["user_data"][user]["y"], strict=True)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file} is not as LEAF writes it, {{"users", "user_data"}}: {error!r}') from error
    if wrong := [row for row in rows if not (isinstance(row[1], str) and isinstance(row[2], str))]:
        raise DataError(f"{file}: user {wrong[0][0]!r} has {wrong[0][1:]!r}: expected texts and what follows")
    return [_Document(before + after, user) for user, before, after in rows]


def _rows(table: Any, request: Request, options: TextOptions) -> list[_Document]:
    names = {"data.options.column": options.column}
    if options.label is not None:
        names["data.options.label"] = options.label
    if request.client_column is not None:
        names["data.partition.column"] = request.client_column
    for setting, name in names.items():
        columns.check(table, [name], setting)
    parts = [columns.texts(table, name) for name in names.values()]
    labels: Sequence[str | None] = parts[1] if options.label is not None else [None] * len(table)
    clients = parts[-1] if request.client_column is not None else [""] * len(table)
    if options.label is not None and None in labels:
        raise DataError(f"column {options.label!r}: row {labels.index(None)} has no label: leave it out")
    return [
        _Document(words or "", client or "", label)
        for words, client, label in zip(parts[0], clients, labels, strict=True)
    ]


def _source(
    request: Request,
    train: list[_Document],
    test: list[_Document] | None,
    options: TokenOptions,
    *,
    classify: bool,
) -> Source:
    if not classify:
        # What `_streams` puts between a client's texts has a token too.
        tokenizer = _tokenizer(request, [*(document.text for document in train), "\n"], options)
        return _next_token(request, train, test, tokenizer, options.length)
    tokenizer = _tokenizer(request, (document.text for document in train), options)
    names = tuple(sorted({document.label or "" for document in train}, key=_by_number))
    number_of = {name: number for number, name in enumerate(names)}
    if test is None:
        chosen = split_without_test(len(train))
        train, test = ([train[place] for place in places] for places in chosen)
    parts = []
    for documents in (train, test):
        if unknown := [d.label for d in documents if d.label not in number_of]:
            raise DataError(f"the test texts have a label {unknown[0]!r}, which the training texts have not")
        targets = np.array([number_of[document.label or ""] for document in documents], dtype=np.int64)
        rows = [tokenizer.encode(document.text)[: options.length] for document in documents]
        parts.append((_filled(rows, options.length), targets))
    inputs = tokenizer.inputs(options.length)
    return _chosen(request, parts[0], parts[1], inputs, _clients(train), class_names=names)


def _by_number(name: str) -> tuple[int, str]:
    """Sort labels that are numbers by their value."""
    return (int(name) if name.isdecimal() else -1, name)


def _tokenizer(request: Request, texts: Iterable[str], options: TokenOptions) -> Tokenizer:
    if options.tokenizer is not None:
        if options.alphabet is not None:
            raise DataError("data.options has a tokenizer and an alphabet: give one of the two")
        beside = request.path if request.path is None or request.path.is_dir() else request.path.parent
        return FileTokenizer.of(options.tokenizer if beside is None else beside / options.tokenizer)
    if options.alphabet is not None:
        return CharacterTokenizer("".join(sorted(set(options.alphabet))))
    return CharacterTokenizer.of(texts, options.most_characters)


def _next_token(
    request: Request,
    train: Sequence[_Document],
    test: Sequence[_Document] | None,
    tokenizer: Tokenizer,
    length: int,
) -> Source:
    """Return windows of ``length + 1`` tokens; the last token of one is the first of the next."""
    kept, held = _streams(train, tokenizer), _streams(test or (), tokenizer)
    if test is None:
        # The last of what each client wrote is for testing.
        cuts = {client: len(stream) - round(len(stream) * TEST_PART) for client, stream in kept.items()}
        held = {client: stream[cuts[client] :] for client, stream in kept.items()}
        kept = {client: stream[: cuts[client]] for client, stream in kept.items()}
    parts, owners = [], []
    for streams in (kept, held):
        windows = {client: _windows(stream, length) for client, stream in streams.items()}
        rows = [row for cut in windows.values() for row in cut]
        parts.append((_filled(rows, length + 1), np.zeros(len(rows), dtype=np.int64)))
        owners.append([client for client, cut in windows.items() for _ in cut])
    clients = np.array(owners[0], dtype=np.str_) if all(kept) else None
    return _chosen(request, parts[0], parts[1], tokenizer.inputs(length), clients, task="next_token")


def _streams(documents: Iterable[_Document], tokenizer: Tokenizer) -> dict[str, Indices]:
    """Return what each client wrote as one sequence, its texts by lines."""
    texts: dict[str, list[str]] = {}
    for document in documents:
        texts.setdefault(document.client, []).append(document.text)
    return {client: tokenizer.encode("\n".join(written)) for client, written in texts.items()}


def _windows(stream: Indices, length: int) -> list[Indices]:
    """Return the windows of a sequence; a single token left over predicts nothing."""
    starts = range(0, len(stream) - 1, length)
    return [stream[start : start + length + 1] for start in starts]


def _filled(rows: Sequence[Indices], length: int) -> NDArray[Any]:
    """Return rows as one array, (N, length), filled up, in the smallest whole numbers that hold them."""
    highest = max((int(row.max()) for row in rows if len(row)), default=0)
    filled = np.full((len(rows), length), PADDING, dtype=np.uint8 if highest < 256 else np.int32)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
    return filled


def _clients(documents: Sequence[_Document]) -> NDArray[Any] | None:
    names = [document.client for document in documents]
    return np.array(names, dtype=np.str_) if all(names) else None


def _chosen(
    request: Request,
    train: tuple[NDArray[Any], NDArray[Any]],
    test: tuple[NDArray[Any], NDArray[Any]],
    inputs: Tokens,
    clients: NDArray[Any] | None,
    **described: Any,
) -> Source:
    kept = choose(np.arange(len(train[1])), request.train_examples, request.seed, "train")
    held = choose(np.arange(len(test[1])), request.test_examples, request.seed, "test")
    return Source(
        Examples(train[0][kept], train[1][kept]),
        Examples(test[0][held], test[1][held]),
        inputs=inputs,
        clients=None if clients is None else clients[kept],
        **described,
    )
