import inspect
import json
from importlib import import_module

import pytest

from limbeck.cli.methods import formula_text
from limbeck.methods import METHODS


def test_the_list_has_every_method_on_a_line(limbeck):
    answer = limbeck("methods")
    names = [line.split()[0] for line in answer.out.split("\n\n")[0].splitlines()[1:]]
    assert names == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_card_has_formula_source_departures_and_every_default(name, limbeck):
    answer = limbeck("methods", name)
    assert answer.code == 0
    for heading in ("Source: ", "Defaults: ", "Differs from the source: "):
        assert f"\n{heading}" in answer.out
    assert ".. math" not in answer.out
    assert "``" not in answer.out
    config = METHODS[name].config()
    for field, value in config.plain().items():
        row = next(line for line in answer.out.splitlines() if line.startswith(f" {field} "))
        shown = row.split(maxsplit=1)[1]
        assert shown.startswith(f"{json.dumps(value)} ")
        assert shown.removeprefix(json.dumps(value)).strip()  # and what it means


def test_a_combinations_card_lists_what_can_be_set_of_each_method(limbeck):
    out = limbeck("methods", "kd+at").out
    rows = [line.split() for line in out.splitlines() if line.startswith(" ")]
    values = {row[0]: row[1] for row in rows}
    assert values["kd.temperature"] == "4.0"
    assert (values["kd.ce_weight"], values["at.ce_weight"]) == ("0.1", "0.0")
    assert "label_smoothing" in values
    assert "kd.label_smoothing" not in values
    assert "reads student stage*, teacher stage*" in out
    assert "--method kd+at" in out


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("width", [80, 120])
def test_a_card_keeps_its_words_and_fits_the_terminal(name, width, limbeck, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    out = limbeck("methods", name).out
    assert all(len(line) <= width for line in out.splitlines())
    card = inspect.getdoc(import_module(METHODS[name].card))
    prose = card.partition("Source: ")[2].replace("``", "")
    assert " ".join(prose.split()) in " ".join(out.split())


def test_rows_of_a_card_stay_rows(limbeck):
    out = limbeck("methods", "relation").out
    assert "\n- sp: samples, inner_product, unit_rows, squared, mean.\n- pkt: samples, " in out


def test_a_card_says_what_the_method_reads(limbeck):
    out = limbeck("methods", "fitnet").out
    assert "Stage hint: 12.5% of the epochs; reads student stage2, teacher stage2" in out
    assert "Stage distil: 87.5% of the epochs; reads outputs alone" in out


def test_a_card_says_how_many_teachers_its_command_takes(limbeck):
    assert "--method kd --teacher RUN --student" in limbeck("methods", "kd").out
    several = limbeck("methods", "multi_teacher").out
    assert "--method multi_teacher --teacher RUN --teacher RUN --student" in several
    assert "--teacher" not in limbeck("methods", "ce").out


@pytest.mark.parametrize(
    ("name", "stages", "command"),
    [
        ("ce", "", "train --student MODEL --output RUN"),
        ("kd", "", "distill --method kd --teacher RUN --student MODEL --output RUN"),
        (
            "dgkd",
            "",
            "distill --method dgkd --teacher RUN --assistants A,B --student MODEL --output RUN",
        ),
        ("dml", "", "distill --method dml --peers A,B --student MODEL --output RUN"),
        (
            "born_again",
            "Stage generation2: as many epochs as the run; reads outputs alone",
            "distill --method born_again --teacher RUN --student MODEL --output RUN",
        ),
    ],
)
def test_a_card_says_how_the_method_is_used(limbeck, name, stages, command):
    out = limbeck("methods", name).out
    assert stages in out
    assert out.endswith(f"\nUse it: limbeck {command}\n")


def test_a_machine_reads_the_defaults_and_the_card_as_it_stands(limbeck):
    listed = json.loads(limbeck("methods", "--json").out)
    assert {name: facts["defaults"] for name, facts in listed.items()} == {
        name: entry.config().plain() for name, entry in METHODS.items()
    }
    card = json.loads(limbeck("methods", "kd", "--json").out)["card"]
    assert card == inspect.getdoc(import_module(METHODS["kd"].card))


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\mathcal{L} = CE(z^s, y)", "L = CE(z^s, y)"),
        (r"w_{kd} \, T^2 \, KL(p^t_T \,\|\, p^s_T)", "w_kd T^2 KL(p^t_T || p^s_T)"),
        (r"\frac{d^s_{ij}}{\mu^s}", "d^s_ij/μ^s"),
        (r"\frac{a + b}{BCHW}", "(a + b)/(BCHW)"),
        (r"\frac{1}{\frac{a}{b}}", "1/(a/b)"),
        (r"h\Big(\frac{1}{2}\Big)", "h(1/2)"),
        (r"\lambda \text{ falling}, \cos \angle^s_{ijk}", "λ falling, cos ∠^s_ijk"),
        (r"x_{i+1} \oplus y", r"x_{i+1} \oplus y"),  # what has no plain form stays
    ],
)
def test_a_formula_in_plain_characters(latex, text):
    assert formula_text(latex) == text
