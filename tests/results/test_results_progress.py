"""Progress is a line a round in a log, and a bar with the same numbers on a terminal."""

from __future__ import annotations

from io import StringIO

from fedprune.results.progress import Progress

from .made_runs import round_of, task


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def show(stream: StringIO) -> str:
    with Progress(2, stream) as progress:
        for number in range(3):
            progress.on_task(task(round=number))
            progress.on_round(round_of(number, bytes_down=2**20, bytes_up=2**19))
    return stream.getvalue()


def test_a_line_a_round_where_there_is_no_terminal():
    lines = show(StringIO()).splitlines()
    assert len(lines) == 3
    assert lines[1] == (
        "round 1/2: accuracy 60%, density 25%, down 1 MiB, up 512 KiB, 4 tasks, 1 failed, 500 ms"
    )


def test_a_round_without_evaluation_says_no_accuracy():
    stream = StringIO()
    Progress(2, stream).on_round(round_of(1, accuracy=None, clients_failed=0))
    assert "accuracy" not in stream.getvalue()
    assert "failed" not in stream.getvalue()


def test_a_line_says_personal_accuracy_where_there_is_one():
    stream = StringIO()
    Progress(2, stream).on_round(round_of(1, personal_accuracy=0.625))
    assert "accuracy 60%, personal 62.5%, density 25%" in stream.getvalue()


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    shown = show(Terminal())
    for text in ("2/2", "accuracy 70%", "density 25%", "traffic 4.5 MiB"):
        assert text in shown, text
    assert "round 1/2:" not in shown


def test_a_note_stays_in_sight():
    for stream in (StringIO(), Terminal()):
        with Progress(1, stream) as progress:
            progress.note("left dense: head.weight [keep: 'last']")
        assert "left dense: head.weight [keep: 'last']" in stream.getvalue()


def test_steps_are_lines_of_their_own_before_a_round_ends():
    stream = StringIO()
    with Progress(2, stream) as progress:
        progress.on_step("starting 2 workers")
        progress.on_round(round_of(0))
    first, second = stream.getvalue().splitlines()
    assert first == "starting 2 workers"
    assert second.startswith("round 0/2:")


def test_a_step_stands_beside_the_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    with Progress(2, stream) as progress:
        progress.on_step("starting 2 workers")
    assert "0/2" in stream.getvalue()
    assert "starting 2 workers" in stream.getvalue()
