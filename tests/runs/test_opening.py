import pytest
import torch
from torch import nn

from limbeck.core.errors import ModelError, SettingsError, UnknownNameError
from limbeck.runs.networks import build_student
from limbeck.runs.opening import open_network, open_pair

OWN = """
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))

def half(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes)).half()
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize(
    ("model", "options", "shape", "classes"),
    [
        ("digits_cnn", {}, (1, 8, 8), 10),
        ("resnet8", {}, (3, 32, 32), 100),
        ("resnet8", {"img_size": 16, "in_chans": 1, "num_classes": 7}, (1, 16, 16), 7),
        ("timm/resnet10t", {}, (3, 176, 176), 1000),  # what its weights were trained with
        ("torchvision/squeezenet1_1", {"img_size": 64, "num_classes": 7}, (3, 64, 64), 7),
    ],
)
def test_a_network_by_itself_is_fed_what_it_is_made_for(model, options, shape, classes):
    opened = open_network(model, **options)
    assert (opened.image_shape, opened.num_classes) == (shape, classes)
    assert not opened.network.training
    assert opened.network(torch.zeros(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize(
    ("teacher", "student", "shape", "classes", "fed"),
    [
        ("digits_cnn", "digits_cnn_tiny", (1, 8, 8), 10, ((1, 8, 8), (1, 8, 8))),
        ("resnet14", "digits_cnn", (1, 8, 8), 10, ((1, 8, 8), (1, 8, 8))),
        ("resnet14", "timm/resnet10t", (3, 32, 32), 100, ((3, 32, 32), (3, 32, 32))),
        # A teacher of theirs keeps the size of its weights, a student takes what there is.
        (
            "torchvision/squeezenet1_1",
            "resnet8",
            (3, 32, 32),
            100,
            ((3, 224, 224), (3, 32, 32)),
        ),
        (
            "torchvision/squeezenet1_1",
            "timm/resnet10t",
            (3, 224, 224),
            1000,
            ((3, 224, 224), (3, 224, 224)),
        ),
    ],
)
def test_both_networks_are_made_for_the_same_images(teacher, student, shape, classes, fed):
    pair = open_pair(teacher, student)
    assert (pair.image_shape, pair.num_classes) == (shape, classes)
    for named, name, size in ((pair.teacher, teacher, fed[0]), (pair.student, student, fed[1])):
        assert named.name == name
        assert named.normalization.input_shape(shape) == size
        with torch.no_grad():
            answer = named.answering()(torch.zeros(2, *shape))
        assert answer.shape == (2, classes)


def test_images_that_are_asked_for_go_before_the_usual_ones():
    pair = open_pair("resnet14", "resnet8", num_classes=7, in_chans=1, img_size=16)
    assert (pair.image_shape, pair.num_classes) == ((1, 16, 16), 7)


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_a_run_brings_its_images_and_classes_to_the_other(small, whose):
    other = "student" if whose == "teacher" else "teacher"
    pair = open_pair(**{whose: small.teacher, other: "resnet8"})
    assert (pair.image_shape, pair.num_classes) == ((1, 8, 8), 10)
    with torch.no_grad():
        assert getattr(pair, other).answering()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("options", [{"num_classes": 10}, {"in_chans": 1}, {"img_size": 8}])
def test_a_runs_images_are_not_for_options_to_change(small, options):
    with pytest.raises(SettingsError, match="is a run, whose classes and images are known"):
        open_network(small.teacher, **options)
    with pytest.raises(SettingsError, match="is a run, whose classes and images are known"):
        open_pair(small.teacher, "resnet8", **options)


def test_a_student_is_made_as_a_run_makes_it(small):
    """Shapes of all weights, for a network that takes images as they come."""
    config = small.config("ce", student="timm/resnet10t").student
    made = build_student(config, small.parts(small.config()).data, seed=0).network
    pair = open_pair(small.teacher, "timm/resnet10t")
    shapes = {name: value.shape for name, value in made.state_dict().items()}
    assert {n: v.shape for n, v in pair.student.network.state_dict().items()} == shapes


def test_ones_own_file_is_either_side_and_what_was_done_to_it_is_told(own):
    pair = open_pair(f"{own}:half", f"{own}:make")
    assert (pair.image_shape, pair.num_classes) == ((3, 32, 32), 100)
    assert pair.teacher.notes == ("Sequential: its float16 weights are float32 now",)
    assert "lazy weights" in pair.student.notes[0]
    assert next(pair.teacher.network.parameters()).dtype is torch.float32
    assert isinstance(pair.student.network[3], nn.Linear)
    assert pair.student.network[3].in_features == 4 * 30 * 30


@pytest.mark.parametrize(
    ("teacher", "student"), [("resnet8", "resnt18"), ("resnt18", "resnet8"), ("resnt18", "resnt18")]
)
def test_an_unknown_name_is_answered_with_the_nearest_of_all_libraries(teacher, student):
    with pytest.raises(UnknownNameError) as caught:
        open_pair(teacher, student)
    for near in ("'ResNet18'", "'torchvision/resnet18'", "'timm/resnet18'"):
        assert near in str(caught.value)


def test_code_in_a_run_is_run_only_if_it_was_typed(small, tmp_path):
    small.run(small.config("ce", epochs=1), tmp_path / "code")
    with pytest.raises(ModelError, match="is code, and is not run"):
        open_network(str(tmp_path / "code"))
    assert open_network(str(tmp_path / "code"), typed=small.typed).num_classes == 10
    assert open_pair(str(tmp_path / "code"), small.student).num_classes == 10
