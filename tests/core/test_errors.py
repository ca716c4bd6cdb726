import builtins
import inspect

import pytest

from limbeck.core import errors
from limbeck.core.errors import LimbeckError, ModelError, UnknownNameError, nearest_names

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, LimbeckError) and value is not LimbeckError
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_ours_and_a_builtin_that_callers_expect(kind):
    known = {value for value in vars(builtins).values() if inspect.isclass(value)}
    assert any(base in known - {Exception, BaseException, object} for base in kind.__mro__)
    assert kind.__name__ in errors.__all__


def test_a_message_is_printed_as_it_was_written():
    assert str(ModelError("wanted 3, got 4")) == "wanted 3, got 4"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "no model called 'resnet18'; did you mean 'resnet8'?"),
        ("RESNET8", "no model called 'RESNET8'; did you mean 'resnet8'?"),
        ("vgg", "no model called 'vgg'; known: resnet8, wrn_16_2"),
    ],
)
def test_an_unknown_name_is_answered_with_what_there_is(name, message):
    error = UnknownNameError("model", name, ["resnet8", "wrn_16_2"])
    assert str(error) == message  # and not the repr that KeyError prints
    assert isinstance(error, KeyError)
    assert (error.kind, error.name, error.known) == ("model", name, ("resnet8", "wrn_16_2"))


def test_the_hint_comes_last():
    error = UnknownNameError("layer", "x", [], hint="`limbeck inspect` lists them.")
    assert str(error) == "no layer called 'x'. `limbeck inspect` lists them."


def test_a_long_list_of_known_names_is_cut():
    known = [f"layer{number}" for number in range(100)]
    message = str(UnknownNameError("layer", "zzz", known))
    assert message.endswith("layer23, ...")


def test_the_nearest_names_come_best_first_and_no_more_than_asked_for():
    known = ["conv1", "conv2", "conv3", "conv11", "fc"]
    assert nearest_names("conv11", known, count=2)[0] == "conv11"
    assert len(nearest_names("conv11", known, count=2)) == 2
    assert nearest_names("attention", known) == []


def test_names_are_compared_without_case_and_given_with_it():
    assert nearest_names("LAYER1", ["Layer1", "fc"]) == ["Layer1"]
