"""What the losses of this family ignore, and what they stand: one table, one battery.

B batch, D features; float64 and 1e-9 unless a test says otherwise.
"""

import pytest
import torch

from limbeck.core.errors import ShapeError
from limbeck.losses import (
    cc_loss,
    irg_loss,
    kernel_correlation_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    sp_loss,
)

LOSSES = {
    "rkd_distance": rkd_distance_loss,
    "rkd_angle": rkd_angle_loss,
    "sp": sp_loss,
    "pkt": pkt_loss,
    "cc": cc_loss,
    "cc_kernel": kernel_correlation_loss,
    "irg": irg_loss,
}
# The invariance table of these methods: what changes nothing when done to the student's rows.
INVARIANT = {
    "rkd_distance": {"scale", "translation", "rotation"},
    "rkd_angle": {"scale", "translation", "rotation"},
    "sp": {"scale", "rotation"},
    "pkt": {"scale", "rotation", "row scale"},
    "cc": set(),
    "cc_kernel": {"scale", "rotation", "row scale"},
    "irg": {"scale", "translation", "rotation"},
}
TOLERANCE = {"pkt": 1e-6}  # it adds 1e-7 to each length and each probability
WITHOUT_ORDER = sorted(LOSSES.keys() - {"cc"})
AWKWARD = {
    "two equal": [[1.0, 2.0], [1.0, 2.0], [3.0, 5.0]],
    "all equal": [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]],
    "all zero": [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
    "one zero": [[0.0, 0.0], [1.0, 2.0], [3.0, 5.0]],
    "far apart": [[200.0, 0.0], [0.0, 200.0], [0.0, 0.0]],
    "opposite": [[1.0, 2.0], [-1.0, -2.0], [3.0, 5.0]],
    "nearly equal": [[1.0, 2.0], [1.0 + 1e-6, 2.0], [3.0, 5.0]],
}


@pytest.fixture
def rows(generator):
    """Student and teacher, 8 rows of 6."""
    return torch.randn(2, 8, 6, dtype=torch.float64, generator=generator)


def changed(rows, change, generator):
    match change:
        case "scale":
            return 7.5 * rows
        case "translation":
            return rows + torch.randn(6, dtype=rows.dtype, generator=generator)
        case "rotation":
            square = torch.randn(6, 6, dtype=rows.dtype, generator=generator)
            return rows @ torch.linalg.qr(square).Q
        case "row scale":
            return rows * (0.5 + torch.rand(8, 1, dtype=rows.dtype, generator=generator))


@pytest.mark.parametrize("change", ["scale", "translation", "rotation", "row scale"])
@pytest.mark.parametrize("name", LOSSES)
def test_it_ignores_what_the_table_says_and_nothing_else(name, change, rows, generator):
    loss, (student, teacher) = LOSSES[name], rows
    difference = loss(changed(student, change, generator), teacher) - loss(student, teacher)
    relative = abs(difference) / loss(student, teacher)
    if change in INVARIANT[name]:
        assert relative < TOLERANCE.get(name, 1e-9)
    else:
        assert relative > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_batch_matters_to_cc_alone(name, rows):
    loss, (student, teacher) = LOSSES[name], rows
    order = [3, 1, 0, 6, 7, 5, 2, 4]
    difference = loss(student[order], teacher[order]) - loss(student, teacher)
    assert (abs(difference) < 1e-9) == (name in WITHOUT_ORDER)
    assert abs(loss(student[order], teacher) - loss(student, teacher)) > 1e-6


@pytest.mark.parametrize("name", LOSSES)
def test_equal_embeddings_have_no_loss(name, rows):
    assert LOSSES[name](rows[0], rows[0].clone()).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_different_ones_have_some(name, rows):
    assert LOSSES[name](*rows) > 0


@pytest.mark.parametrize("name", WITHOUT_ORDER)
def test_lengths_of_the_embeddings_may_differ(name, rows):
    """Zeros appended to every row are in no relation."""
    loss, (student, teacher) = LOSSES[name], rows
    padded = torch.cat([teacher, torch.zeros(8, 3, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(loss(student, padded), loss(student, teacher), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"irg"}))  # its maximum is a constant
def test_gradients_are_those_of_finite_differences(name, rows):
    student = rows[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, rows[1]), (student,))


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_receives_a_gradient_from_cc_alone(name, rows):
    """Its embedding layer is trained."""
    student, teacher = (row.clone().requires_grad_() for row in rows)
    LOSSES[name](student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert (teacher.grad is not None) == (name == "cc")


@pytest.mark.parametrize("whose", ["student", "teacher", "both"])
@pytest.mark.parametrize("rows", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_awkward_rows_give_finite_values_and_bounded_gradients(name, rows, whose, dtype):
    """The divisions by lengths of 0 or of rounding errors, which official codes let explode."""
    awkward = torch.tensor(rows, dtype=dtype)
    plain = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]], dtype=dtype)
    student = (plain if whose == "teacher" else awkward).clone().requires_grad_()
    value = LOSSES[name](student, plain if whose == "student" else awkward)
    value.backward()
    assert torch.isfinite(value)
    # A direction's gradient is one over its length: at most 1e6 where two rows are 1e-6 apart,
    # and nothing where that is rounding.
    far = dtype == torch.float64 and rows == AWKWARD["nearly equal"]
    assert student.grad.abs().max() < (1e6 if far else 1e3)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_one_has_no_loss_and_no_gradient(name, rows):
    student = rows[0, :1].clone().requires_grad_()
    value = LOSSES[name](student, rows[1, :1])
    value.backward()
    assert abs(value.item()) < 1e-9
    assert student.grad.abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32_even_under_autocast(name, dtype, generator):
    loss = LOSSES[name]
    student, teacher = torch.randn(2, 4, 16, generator=generator).to(dtype)
    expected = loss(student.double(), teacher.double()).float()
    ours = [loss(student, teacher)]
    with torch.autocast("cpu", dtype=dtype):
        ours += [loss(student, teacher), loss(student.float(), teacher.float())]
    for value in ours:
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(("student", "teacher"), [((4, 3), (3, 3)), ((4,), (4,))])
def test_other_shapes_are_named(name, student, teacher):
    with pytest.raises(ShapeError, match=r"got student \(4"):
        LOSSES[name](torch.zeros(student), torch.zeros(teacher))
