import importlib

import pytest

from limbeck.core.errors import UnknownNameError
from limbeck.methods import METHODS, find_method


def test_the_table_is_in_alphabetical_order():
    assert list(METHODS) == sorted(METHODS)


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        METHODS["mine"] = METHODS["kd"]


@pytest.mark.parametrize("name", METHODS)
def test_a_name_finds_its_row(name):
    assert find_method(name) is METHODS[name]


def test_an_unknown_name_is_a_key_error_with_the_nearest():
    with pytest.raises(UnknownNameError, match="no method called 'fitnets'; did you mean 'fitnet'"):
        find_method("fitnets")
    with pytest.raises(KeyError):
        find_method("")


@pytest.mark.parametrize("name", METHODS)
def test_a_family_is_the_folder_of_its_file(name):
    entry = METHODS[name]
    folder = "" if entry.family == "none" else f"{entry.family}."
    assert entry.card.startswith(f"limbeck.methods.{folder}")
    module = importlib.import_module(entry.card)
    assert entry.config.__name__ in module.__all__


def test_only_the_baseline_its_control_and_mutual_learning_have_no_teacher():
    without = [
        name
        for name, entry in METHODS.items()
        if not any(s.method.needs(s.config).teacher for s in entry.stages(entry.config()))
    ]
    assert without == ["ce", "dml", "noise_label"]


def test_only_these_have_several_stages_or_call_theirs_otherwise():
    stages = {n: [s.name for s in e.stages(e.config())] for n, e in METHODS.items()}
    assert stages.pop("fitnet") == ["hint", "distil"]
    assert stages.pop("fsp") == ["init", "train"]
    assert stages.pop("born_again") == ["generation1", "generation2", "generation3"]
    assert stages.pop("takd") == stages.pop("dgkd") == ["student"]  # before them, the assistants
    assert all(names == ["train"] for names in stages.values())


def test_the_chains_alone_have_a_setting_that_must_be_given():
    assert {name for name, entry in METHODS.items() if entry.required} == {"dgkd", "takd"}
    for name in ("dgkd", "takd"):
        assert METHODS[name].required.keys() == {"assistants"}
        assert METHODS[name].config().assistants == ()
