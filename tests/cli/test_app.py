import re

import pytest

from limbeck import __version__

COMMANDS = [
    "demo", "train", "distill", "cache", "compare", "report",
    "runs", "curves", "resume", "eval", "predict", "inspect",
    "convert", "methods", "recipes", "reproduce", "results", "analyse", "doctor",
]  # fmt: skip


def test_the_help_lists_every_command_on_a_line_of_its_own(limbeck):
    answer = limbeck("--help")
    assert answer.code == 0
    listed = answer.out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == COMMANDS
    assert not any(line.endswith("...") for line in listed)  # nothing cut off


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, limbeck):
    answer = limbeck(command, "-h")
    assert answer.code == 0
    assert answer.out.startswith("Usage: ")
    assert "--help" in answer.out


def test_without_arguments_the_help_is_shown(limbeck):
    answer = limbeck()
    assert "Commands:" in answer.out + answer.err


def test_the_version_is_the_packages(limbeck):
    assert limbeck("--version") == (0, f"limbeck {__version__}\n", "")


def test_the_options_stand_under_headings(limbeck):
    headings = re.findall(r"^(\w[\w ]*):$", limbeck("distill", "--help").out, re.MULTILINE)
    assert headings == [
        "Options", "Networks and method", "Data", "Schedule", "Optimiser", "Machine"
    ]  # fmt: skip


def test_train_offers_nothing_of_a_teacher(limbeck):
    text = limbeck("train", "--help").out
    assert "--student" in text
    assert "--teacher" not in text
    assert "--method" not in text
