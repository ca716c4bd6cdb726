import io

import pytest
from rich.table import Table

from limbeck.cli.terminal import make_console, printable_lines


@pytest.mark.parametrize("text", ["[red]a[/red]", "[/a]", ":smile: [bold", "a\\", "[link=x]y[/]"])
def test_text_is_printed_as_it_stands(text, capsys):
    console = make_console()
    table = Table(text, box=None, show_header=False, pad_edge=False)
    table.add_row(text)
    console.print(text)
    console.print(table)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [text, text]


def test_only_line_breaks_pass_among_the_control_characters():
    assert printable_lines("a\x1b[31m\nb\r\x07\u202e") == "a\\x1b[31m\nb\\r\\x07\\u202e"


def test_a_pipe_gets_whole_lines_and_a_given_width_is_kept(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    console = make_console()
    console.file = io.StringIO()
    console.print("word " * 100)
    assert console.file.getvalue().count("\n") == 1
    monkeypatch.setenv("COLUMNS", "40")
    assert make_console().width == 40


def test_a_quiet_console_prints_nothing(capsys):
    make_console(quiet=True).print("a")
    assert capsys.readouterr().out == ""
