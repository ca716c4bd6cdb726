import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import hard_label_loss, kd_loss
from limbeck.methods.output.hard_label import HardLabel, HardLabelConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["hard_label"]
EXACT = {"rtol": 0.0, "atol": 1e-9}

ZS = torch.tensor(
    [[1.0, -0.5, 2.0, 0.3, -1.2], [0.1, 0.4, -0.9, 1.5, 0.0], [-2.0, 0.7, 0.7, 0.2, 1.1]],
    dtype=torch.float64,
)
ZT = torch.tensor(
    [[2.5, -1.0, 3.0, 0.0, -2.0], [0.0, 1.0, -1.5, 4.0, 0.5], [-1.0, 2.2, 0.1, -0.3, 0.6]],
    dtype=torch.float64,
)
Y = torch.tensor([2, 3, 4])


def terms(label=Y, **settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=label)
    return HardLabel(HardLabelConfig(**settings))(batch, Outputs(ZS), Outputs(ZT), Progress())


COMPUTED = {
    "hard": lambda: hard_label_loss(ZS, ZT),
    "CE / 2 + hard / 2": lambda: terms().total,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_number_of_the_source(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_it_is_cross_entropy_with_the_teachers_choice():
    expected = F.cross_entropy(ZS, torch.tensor([2, 3, 1]))
    torch.testing.assert_close(hard_label_loss(ZS, ZT), expected, **EXACT)


def test_only_the_order_of_the_teachers_scores_counts():
    assert hard_label_loss(ZS, 0.01 * ZT + 5) == hard_label_loss(ZS, ZT)


def test_it_is_kd_from_a_teacher_that_is_certain():
    expected = kd_loss(ZS, 1000 * ZT, temperature=1)
    torch.testing.assert_close(hard_label_loss(ZS, ZT), expected, **EXACT)


def test_a_teacher_that_is_right_makes_it_plain_cross_entropy():
    found = terms(label=torch.tensor([2, 3, 1]))
    torch.testing.assert_close(found.total, found.parts["ce"], **EXACT)


def test_labels_are_smoothed_and_the_teachers_choice_is_not():
    found = terms(label_smoothing=0.1)
    expected = F.cross_entropy(ZS, Y, label_smoothing=0.1)
    torch.testing.assert_close(found.parts["ce"], expected, **EXACT)
    assert found.parts["hard"] == hard_label_loss(ZS, ZT)


def test_unlabelled_images_learn_the_teachers_choice():
    found = terms(label=torch.full((3,), -1))
    assert found.parts["ce"] == 0
    torch.testing.assert_close(found.total, 0.5 * hard_label_loss(ZS, ZT), **EXACT)


def test_other_shapes_are_named():
    with pytest.raises(ShapeError, match=r"got student \(3, 5\), teacher \(3, 4\)"):
        hard_label_loss(ZS, ZT[:, :4])
