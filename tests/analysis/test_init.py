import pytest

from limbeck.analysis import EXPERIMENTS


@pytest.mark.parametrize("key", EXPERIMENTS)
def test_every_experiment_asks_a_question_and_names_its_source(key):
    experiment = EXPERIMENTS[key]
    assert experiment.key == key
    assert experiment.question.endswith("?")
    assert "http" in experiment.source
    assert experiment.title


def test_the_quick_selection_is_some_of_them():
    assert any(experiment.quick for experiment in EXPERIMENTS.values())
