import io
import json

import pytest
from rich.console import Console

from limbeck.cli.observer import JsonObserver, TextObserver, observing
from limbeck.engine.recorder import SilentObserver

ROW = {
    "stage": "train",
    "epoch": 1,
    "step": 20,
    "lr": 0.05,
    "train": {"loss": 0.5},
    "val": {"top1": 0.75, "loss": 0.4},
    "seconds": 2.0,
    "images_per_second": 1234.5,
}
PLAIN = {"markup": False, "emoji": False, "highlight": False}  # as make_console has it
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=80, **PLAIN)


@pytest.fixture
def log():
    return Console(file=io.StringIO(), width=200, **PLAIN)


def test_a_log_has_one_line_an_epoch(log):
    observer = TextObserver(log)
    for done in range(1, 21):
        observer.step("train", done, 50)
    observer.epoch(ROW)
    assert log.file.getvalue() == (
        "train  epoch 2/5  loss 0.5000  val 75.00%  lr 0.05  1,234 images/s\n"
    )


def test_an_epoch_without_validation_says_nothing_of_it(log):
    observer = TextObserver(log)
    observer.step("hint", 20, 20)
    observer.epoch(ROW | {"val": None, "stage": "hint"})
    assert log.file.getvalue().startswith("hint  epoch 2/2  loss 0.5000  lr")


def test_a_terminal_has_a_bar_with_the_last_epoch_beside_it(terminal):
    observer = TextObserver(terminal)
    observer.step("train", 1, 50)
    observer.epoch(ROW)
    observer.step("train", 50, 50)
    observer.stop()
    text = terminal.file.getvalue()
    assert "50/50" in text
    assert "epoch 2/5  loss 0.5000" in text


def test_each_stage_has_a_bar_of_its_own(terminal):
    observer = TextObserver(terminal)
    observer.step("hint", 10, 10)
    observer.step("distil", 1, 40)
    observer.stop()
    text = terminal.file.getvalue()
    assert "hint" in text
    assert "distil" in text
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 2


def test_the_bar_is_taken_away_when_a_run_fails(terminal, monkeypatch):
    monkeypatch.setattr("limbeck.cli.observer.make_console", lambda stderr: terminal)

    def interrupted_run():
        with observing(quiet=False, as_json=False) as observer:
            observer.step("train", 1, 50)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert terminal.file.getvalue().rstrip().rfind(SHOW_CURSOR) > (
        terminal.file.getvalue().rfind(HIDE_CURSOR)
    )


@pytest.mark.parametrize("kind", ["terminal", "log"])
def test_a_note_cannot_steer_the_terminal(kind, request):
    console = request.getfixturevalue(kind)
    TextObserver(console).note("[red]a\x1b[2J :smile:\nb")
    assert console.file.getvalue() == "[red]a\\x1b[2J :smile:\nb\n"


def test_a_machine_reads_one_object_a_line(capsys):
    observer = JsonObserver()
    observer.note("a\nb")
    observer.step("train", 1, 50)
    observer.epoch(ROW)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [
        {"event": "note", "message": "a\nb"},
        {"event": "epoch", **ROW},
    ]


def test_quiet_is_silent_and_json_goes_before_it():
    with observing(quiet=True, as_json=False) as observer:
        assert isinstance(observer, SilentObserver)
    with observing(quiet=True, as_json=True) as observer:
        assert isinstance(observer, JsonObserver)
