"""Texts against the tokens, windows and classes that are made of them."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedprune.data import SOURCES, Request, Source
from fedprune.data.text import PADDING, UNKNOWN, Characters, CharacterTokenizer
from fedprune.errors import DataError

WORDS = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. "


def read(path: Path, client: str | None = None, **options: object) -> Source:
    return SOURCES["text"](Request("text", path, client_column=client, options={"length": 10, **options}))


def alphabet(source: Source) -> CharacterTokenizer:
    assert isinstance(source.inputs, Characters)
    return CharacterTokenizer(source.inputs.characters)


@settings(max_examples=50)
@given(st.text(max_size=40), st.text(min_size=1, max_size=40))
def test_characters_come_back_where_they_are_known(text: str, training: str) -> None:
    tokenizer = CharacterTokenizer.of([training], most=1000)
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text)
    assert [token == UNKNOWN for token in tokens] == [character not in training for character in text]
    known = "".join(c if c in training else "\N{REPLACEMENT CHARACTER}" for c in text)
    assert tokenizer.decode(tokens) == known
    assert (tokens > PADDING).all()
    assert (tokens < tokenizer.inputs(5).vocabulary).all()


def test_only_the_most_frequent_characters_have_tokens() -> None:
    assert CharacterTokenizer.of(["aab", "bcc", "cd"], most=2).characters == "ac"


def test_windows_follow_each_other_and_cover_the_text(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text(WORDS * 3)
    made = read(tmp_path / "all.txt")
    assert made.task == "next_token"
    assert made.train.inputs.shape[1:] == (11,)
    assert made.inputs is not None
    assert made.inputs.shape == (10,)
    tokenizer = alphabet(made)
    texts = []
    for part in (made.train, made.test):
        rows = [tokenizer.decode(row) for row in part.inputs]
        assert all(after[0] == before[-1] for before, after in pairwise(rows))
        texts.append(rows[0] + "".join(row[1:] for row in rows[1:]))
    assert "".join(texts) == WORDS * 3
    assert len(texts[1]) == round(len(WORDS * 3) / 6)
    assert made.clients is None


def test_files_of_a_folder_are_clients(tmp_path: Path) -> None:
    for split, clients in (("train", ("ann", "bob")), ("test", ("eve",))):
        (tmp_path / split).mkdir()
        for name in clients:
            (tmp_path / split / f"{name}.txt").write_text(name * 20)
    made = read(tmp_path)
    assert made.clients is not None
    assert made.clients.tolist() == ["ann"] * 6 + ["bob"] * 6
    tokenizer = alphabet(made)
    assert tokenizer.decode(made.train.inputs[6]) == "bobbobbobbo"
    assert tokenizer.decode(made.test.inputs[0]) == "\ufffd" * 11  # no training text has an e or a v


def test_a_table_can_name_the_client(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "train.csv").write_text("text,who\nabcdefgh,1\nijklmnop,2\nqrstuvwx,1\n")
    (tmp_path / "test.csv").write_text("text,who\nabcdefgh,1\n")
    made = read(tmp_path, client="who", length=40)
    texts = [alphabet(made).decode(row) for row in made.train.inputs]
    assert texts == ["abcdefgh\nqrstuvwx", "ijklmnop"]
    assert made.clients is not None
    assert made.clients.tolist() == ["1", "2"]


def test_layout_of_leaf(tmp_path: Path) -> None:
    for split, users in (("train", ("HAMLET", "OPHELIA")), ("test", ("HAMLET",))):
        (tmp_path / split).mkdir()
        data = {user: {"x": ["to be or no", "o be or not"], "y": ["t", " "]} for user in users}
        held = {"users": list(users), "num_samples": [2] * len(users), "user_data": data}
        (tmp_path / split / "all.json").write_text(json.dumps(held))
    made = read(tmp_path, length=11)
    assert made.clients is not None
    assert alphabet(made).decode(made.train.inputs[0]) == "to be or not"
    assert made.clients.tolist()[0] == "HAMLET"
    (tmp_path / "train" / "all.json").write_text('{"users": ["a"]}')
    with pytest.raises(DataError, match="not as LEAF writes it"):
        read(tmp_path)


def test_texts_are_classified_where_a_column_has_classes(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "train.csv").write_text("text,stars\nbad,1\nvery good indeed,10\nfine,2\n")
    (tmp_path / "test.csv").write_text("text,stars\ngood,10\n")
    made = read(tmp_path, label="stars")
    assert (made.task, made.class_names) == ("classification", ("1", "2", "10"))
    assert made.train.targets.tolist() == [0, 2, 1]
    assert [alphabet(made).decode(row) for row in made.train.inputs] == ["bad", "very good ", "fine"]
    assert made.train.inputs[0].tolist()[3:] == [PADDING] * 7
    (tmp_path / "test.csv").write_text("text,stars\ngood,11\n")
    with pytest.raises(DataError, match="a label '11'"):
        read(tmp_path, label="stars")


def test_a_tokenizer_file_makes_the_tokens(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{word: n for n, word in enumerate(sorted(set(WORDS.split())), 2)}}
    (tmp_path / "all.txt").write_text(WORDS * 4)
    for words, shift in ((vocabulary, 0), ({w: n - 1 for w, n in vocabulary.items() if n}, 1)):
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        made = read(tmp_path / "all.txt", tokenizer="tokenizer.json")
        expected = [words[word] + shift for word in (WORDS * 4).split()][:11]
        assert made.train.inputs[0].tolist() == expected
        assert made.inputs is not None
        assert made.inputs.known() == {"vocabulary": len(words) + shift, "padding": 0}
    with pytest.raises(DataError, match="can't be read"):
        read(tmp_path / "all.txt", tokenizer="all.txt")
    with pytest.raises(DataError, match="a tokenizer and an alphabet"):
        read(tmp_path / "all.txt", tokenizer="tokenizer.json", alphabet="abc")


def test_an_alphabet_can_be_agreed_on(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("abcabd" * 10)
    made = read(tmp_path / "all.txt", alphabet="cab")
    assert alphabet(made).characters == "abc"
    assert made.train.inputs[0].tolist() == [2, 3, 4, 2, 3, 1, 2, 3, 4, 2, 3]


def test_what_holds_no_texts_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no such files"):
        read(tmp_path)
    (tmp_path / "all.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="is not UTF-8"):
        read(tmp_path / "all.txt")


@pytest.mark.slow
def test_docstrings_are_those_of_the_modules() -> None:
    made = SOURCES["docstrings"](Request("docstrings", options={"length": 60}))
    assert made.clients is not None
    import argparse

    modules, counts = np.unique(made.clients, return_counts=True)
    assert len(modules) == 30
    assert counts.min() > 50
    first = made.train.inputs[made.clients == "argparse"][0]
    assert argparse.__doc__ is not None
    assert argparse.__doc__.strip().startswith(alphabet(made).decode(first)[:60])


def test_a_byte_order_mark_is_no_character(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc" * 100, encoding="utf-8-sig")
    assert alphabet(read(tmp_path / "a.txt")).characters == "\nabc"
