import json
from typing import Literal

import pytest
from pydantic import Field, PositiveInt, model_validator

from limbeck.core.errors import SettingsError
from limbeck.core.settings import Settings, apply_overrides, parse_override


class Crop(Settings):
    padding: PositiveInt = 4
    mode: Literal["zero", "mirror"] = "zero"


class Train(Settings):
    epochs: PositiveInt = 10
    decay: tuple[int, ...] = ()
    rate: float = Field(0.1, gt=0)
    crop: Crop = Crop()
    other: Crop | None = None

    @model_validator(mode="after")
    def _decays_are_reached(self):
        if any(epoch >= self.epochs for epoch in self.decay):
            raise ValueError(f"decay {self.decay} is never reached")
        return self


class Run(Settings):
    train: Train = Train()
    extra: dict[str, float] | None = None

    @model_validator(mode="after")
    def _extra_is_a_crop(self):
        if self.extra is not None:
            Crop.read(self.extra)
        return self


class Named(Settings):
    name: str


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Train().epochs = 3


def test_every_fault_is_reported_at_once_by_field():
    with pytest.raises(SettingsError) as caught:
        Train(epochs=0, rate="fast", crop={"padding": -1})
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epochs", "rate", "crop.padding"]
    assert lines[0].endswith("; got 0")
    assert "got 'fast'" in lines[1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "epoch: no such setting; did you mean 'epochs'?"),
        ({"crop": {"paddin": 3}}, "crop.paddin: no such setting; did you mean 'padding'?"),
        ({"other": {"paddin": 3}}, "other.paddin: no such setting; did you mean 'padding'?"),
        ({"crop": {"zzz": 3}}, "crop.zzz: no such setting; known: mode, padding"),
        ({"crop": {"mode": "mirrr"}}, "crop.mode: Input should be 'zero' or 'mirror'"),
        ({"epochs": 3, "decay": [4]}, "Train: decay (4,) is never reached"),
        ({"rate": float("nan")}, "rate: "),
        ({"rate": None}, "rate: "),
    ],
)
def test_a_fault_says_what_came_and_what_is_near(values, message):
    with pytest.raises(SettingsError) as caught:
        Train.read(values)
    assert str(caught.value).startswith(message)
    assert "pydantic" not in str(caught.value)


def test_faults_inside_are_listed_by_their_whole_path():
    inner = {"epochs": 0, "crop": {"padding": 0, "mod": 1}, "other": {"padding": 0, "mode": 2}}
    with pytest.raises(SettingsError) as caught:
        Run.read({"train": inner})
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "train.epochs",
        "train.crop.padding",
        "train.crop.mod",
        "train.other.padding",
        "train.other.mode",
    ]
    with pytest.raises(SettingsError, match=r"^train: decay \(9,\) is never reached$"):
        Run.read({"train": {"epochs": 3, "decay": [9]}})


def test_settings_that_a_check_makes_are_listed_too():
    """As a run's method, whose class depends on its name."""
    with pytest.raises(SettingsError, match=r"^padding: .*; got 0\.5$"):
        Run.read({"extra": {"padding": 0.5}})


def test_what_is_missing_is_named():
    with pytest.raises(SettingsError, match=r"^name: required, and not given$"):
        Named.read({})


def test_a_long_value_is_shortened_in_the_message():
    with pytest.raises(SettingsError) as caught:
        Train(epochs="x" * 1000)
    assert len(str(caught.value)) < 250


def test_settings_survive_json():
    settings = Train(decay=(3, 7), other=Crop(padding=2))
    again = Train.read(json.loads(json.dumps(settings.plain())))
    assert again == settings
    assert again.decay == (3, 7)


def test_a_changed_copy_is_checked_and_the_original_stays():
    settings = Train(decay=(3, 7))
    assert settings.changed(epochs=8) == Train(epochs=8, decay=(3, 7))
    assert settings.epochs == 10
    with pytest.raises(SettingsError, match="never reached"):
        settings.changed(epochs=5)
    with pytest.raises(SettingsError, match="did you mean 'epochs'"):
        settings.changed(epoch=5)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("a=1", ("a",), 1),
        ("a.b = 1e-3", ("a", "b"), 0.001),
        ("a=true", ("a",), True),
        ("a=True", ("a",), True),
        ("a=null", ("a",), None),
        ("a=None", ("a",), None),
        ("a=[1, 2]", ("a",), [1, 2]),
        ("a=cifar100", ("a",), "cifar100"),
        ('a="1"', ("a",), "1"),
        ("a=b=c", ("a",), "b=c"),
        ("a=", ("a",), ""),
    ],
)
def test_an_override_is_json_or_else_text(text, path, value):
    found = parse_override(text)
    assert found == (path, value)
    assert type(found[1]) is type(value)


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", ".a=1", ""])
def test_what_is_no_override_is_refused(text):
    with pytest.raises(SettingsError, match=r"reads 'a\.b=value'"):
        parse_override(text)


def test_overrides_reach_inside_in_order_and_leave_the_values_alone():
    values = {"crop": {"padding": 2}, "epochs": 3}
    changed = apply_overrides(values, ["crop.padding=5", "other.padding=1", "crop.padding=6"])
    assert changed == {"crop": {"padding": 6}, "epochs": 3, "other": {"padding": 1}}
    assert values == {"crop": {"padding": 2}, "epochs": 3}


def test_a_null_is_filled_where_an_override_goes_inside():
    assert apply_overrides({"other": None}, ["other.padding=1"]) == {"other": {"padding": 1}}


def test_a_single_value_has_no_fields():
    with pytest.raises(SettingsError, match="'epochs' is a single value and has no fields"):
        apply_overrides({"epochs": 3}, ["epochs.first=1"])
