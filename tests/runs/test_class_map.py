import json

import pytest

from limbeck.core.errors import SettingsError
from limbeck.runs.class_map import read_class_map

NAMES = ("ant", "bee", "cat")


def written(tmp_path, content):
    path = tmp_path / "map.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_numbers_stay_in_the_datas_order():
    assert read_class_map([9, 0, 4], NAMES) == (9, 0, 4)


def test_a_file_goes_by_name_whatever_its_order_and_may_know_more(tmp_path):
    path = written(tmp_path, {"cat": 4, "dog": 7, "ant": 9, "bee": 0})
    assert read_class_map(path, NAMES) == (9, 0, 4)


def test_names_beyond_ascii_are_read_as_utf_8(tmp_path):
    assert read_class_map(written(tmp_path, '{"Käfer": 3}'), ["Käfer"]) == (3,)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1, 2], "2 numbers, the data 3 classes \\(ant, bee, cat\\); give"),
        ([1, 2, 3, 4], "4 numbers, the data 3 classes"),
        ([1, -1, 2], "holds -1; classes are numbered from 0"),
        ([1, True, 2], "holds True"),
        ([5, 2, 5], "'ant' and 'cat' the same class 5"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(numbers, message):
    with pytest.raises(SettingsError, match=message):
        read_class_map(numbers, NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"ant": 1, "bee": 2, "dog": 3},
            "lacks 1 of the data's classes \\(cat\\); it has ant, bee",
        ),
        ({"ant": 1, "bee": 1, "cat": 3}, "'ant' and 'bee' the same class 1"),
        ({"ant": -1, "bee": 1, "cat": 3}, "holds -1"),
        ({"ant": True, "bee": 2, "cat": 3}, "holds True"),
        ({"ant": "1", "bee": 2, "cat": 3}, "should hold"),
        ({"ant": 1.0, "bee": 2, "cat": 3}, "should hold"),
        ([1, 2, 3], "should hold"),
        ('{"ant": 1, "bee": 2, "cat": 3, "ant": 4}', "'ant' stands there twice"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_file_that_does_not_say_is_refused(tmp_path, content, message):
    with pytest.raises(SettingsError, match=message):
        read_class_map(written(tmp_path, content), NAMES)


@pytest.mark.parametrize("name", ["no.json", "."])
def test_a_file_that_cannot_be_read_says_what_it_should_be(tmp_path, name):
    with pytest.raises(SettingsError, match=r"cannot be read: .*; give a JSON file of"):
        read_class_map(str(tmp_path / name), NAMES)


def test_many_missing_names_do_not_fill_the_screen(tmp_path):
    path = written(tmp_path, {"other": 0})
    with pytest.raises(SettingsError, match="lacks 100 of") as caught:
        read_class_map(path, [f"class {k}" for k in range(100)])
    assert len(str(caught.value)) < 400
