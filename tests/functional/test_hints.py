import pytest
import torch
from torch import nn

from limbeck.core.errors import ShapeError
from limbeck.functional.hints import hint_loss, rescaling_convolution, valid_convolution


def test_it_is_the_mean_square_in_plain_loops(generator):
    student, teacher = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64, generator=generator)
    squares = [
        (s - t) ** 2
        for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    ]
    assert abs(hint_loss(student, teacher).item() - sum(squares) / 24) < 1e-9


def test_it_is_zero_for_equal_features_and_only_then(generator):
    feature = torch.randn(2, 3, 4, 4, generator=generator)
    assert hint_loss(feature, feature.clone()).item() == 0
    changed = feature.clone()
    changed[1, 2, 3, 3] += 1
    torch.testing.assert_close(hint_loss(feature, changed), torch.tensor(1 / 96))


def test_repeating_the_batch_changes_nothing(generator):
    student, teacher = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64, generator=generator)
    twice = hint_loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1))
    torch.testing.assert_close(twice, hint_loss(student, teacher), rtol=0, atol=1e-9)


def test_the_teacher_receives_no_gradient():
    student, teacher = (torch.full((1, 2), v, requires_grad=True) for v in (1.0, 3.0))
    hint_loss(student, teacher).backward()
    assert student.grad.tolist() == [[-2.0, -2.0]]
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_squares_beyond_half_precision_are_finite(dtype, expected):
    loss = hint_loss(torch.full((1, 2), 400.0, dtype=dtype), torch.zeros(1, 2, dtype=dtype))
    assert loss.dtype == expected
    assert loss.item() == 400.0**2  # float16 ends at 65504


def test_other_shapes_are_named():
    with pytest.raises(ShapeError, match=r"got student \(2, 3, 4, 4\), teacher \(2, 3, 1, 1\)"):
        hint_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 1, 1))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((4, 4), (4, 4)), ((8, 8), (4, 4)), ((7, 5), (4, 5)), ((5, 5), (1, 1))],
)
def test_the_convolution_gives_the_teachers_shape(student, teacher):
    features = torch.zeros(2, 3, *student), torch.zeros(2, 6, *teacher)
    convolution = valid_convolution(*features)
    assert convolution(features[0]).shape == features[1].shape
    assert convolution.kernel_size == tuple(
        s - t + 1 for s, t in zip(student, teacher, strict=True)
    )
    assert convolution.bias is not None


def test_a_smaller_student_map_is_refused():
    with pytest.raises(ShapeError, match=r"at least as large.*\(1, 2, 4, 2\).*earlier student"):
        valid_convolution(torch.zeros(1, 2, 4, 2), torch.zeros(1, 2, 4, 4))


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 4)])
def test_vectors_and_tokens_are_refused(shape):
    grid = torch.zeros(2, 8, 4, 4)
    for features in ((torch.zeros(shape), grid), (grid, torch.zeros(shape))):
        with pytest.raises(ShapeError, match=r"feature maps .*before the pooling"):
            valid_convolution(*features)


def test_the_convolution_is_plain():
    assert type(valid_convolution(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))) is nn.Conv2d


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        ((8, 6), (4, 3), nn.Conv2d),
        ((4, 3), (8, 6), nn.ConvTranspose2d),
        ((4, 4), (4, 4), type(None)),
        ((7, 7), (4, 4), type(None)),
        ((8, 4), (4, 4), type(None)),
        ((8,), (4,), type(None)),
    ],
)
def test_a_map_is_halved_or_doubled_where_that_gives_the_teachers_shape(student, teacher, kind):
    features = torch.zeros(2, 3, *student), torch.zeros(2, 6, *teacher)
    convolution = rescaling_convolution(*features)
    assert type(convolution) is kind
    if convolution is not None:
        assert convolution(features[0]).shape == features[1].shape
        assert convolution.bias is not None
        assert rescaling_convolution(*features, bias=False).bias is None
