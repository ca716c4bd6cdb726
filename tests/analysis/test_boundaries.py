import numpy as np
import pytest
import torch

from limbeck.analysis.base import NotApplicableError
from limbeck.analysis.boundaries import BOUNDARIES, plane_through


def test_the_corners_of_a_plane_are_its_three_images(generator):
    images = torch.rand(3, 2, 3, 3, generator=generator, dtype=torch.float64)
    plane = plane_through(images, side=11)
    grid = plane.points.reshape(11, 11, -1)
    # the plane is affine in its coordinates, so between grid points it interpolates
    step_u, step_v = grid[0, 1] - grid[0, 0], grid[1, 0] - grid[0, 0]
    for (column, row), image in zip(plane.corners, images, strict=True):
        torch.testing.assert_close(grid[0, 0] + column * step_u + row * step_v, image.flatten())
    assert step_u @ step_v == pytest.approx(0, abs=1e-12)


def test_a_plane_reaches_a_tenth_beyond_its_images(generator):
    plane = plane_through(torch.rand(3, 1, 2, 2, generator=generator), side=13)
    # the box around the three has a width of 1 / 1.2 of the grid's
    span = plane.corners.max(axis=0) - plane.corners.min(axis=0)
    np.testing.assert_allclose(span, 12 / 1.2, rtol=1e-5)
    np.testing.assert_allclose(plane.corners.min(axis=0), 12 * 0.1 / 1.2, rtol=1e-5)


def test_images_on_a_line_span_no_plane(generator):
    first = torch.rand(1, 2, 2, generator=generator)
    step = torch.rand(1, 2, 2, generator=generator)
    with pytest.raises(NotApplicableError, match="lie on a line"):
        plane_through(torch.stack([first, first + step, first + 2 * step]), side=5)


def test_a_linear_student_of_enough_logits_has_the_teachers_boundaries(
    make_case, linear, images, labels, generator
):
    """The card's identity: logits at d + 1 points in general position give weight and bias."""
    weight = torch.randn(3, 16, generator=generator, dtype=torch.float64)
    bias = torch.randn(3, generator=generator, dtype=torch.float64)
    points = torch.rand(17, 16, generator=generator, dtype=torch.float64)
    ones = torch.cat([points, torch.ones(17, 1, dtype=torch.float64)], dim=1)
    solved = torch.linalg.lstsq(ones, points @ weight.T + bias).solution
    other = torch.randn(3, 16, generator=generator)
    found = BOUNDARIES.measure(
        make_case(
            linear(weight, bias),
            linear(solved[:16].T, solved[16]),
            linear(other, bias),
            images,
            labels,
        )
    )
    (reading,) = found.readings
    assert reading.distilled[0].shape == (50,)
    assert reading.distilled[0].min() > 0.999  # float32 at a boundary may differ
    assert reading.independent[0].mean() < 0.8


def test_equal_decisions_are_those_of_plain_loops(make_case, linear, images, labels, generator):
    networks = [linear(torch.randn(3, 16, generator=generator), torch.zeros(3)) for _ in range(3)]
    case = make_case(*networks, images, labels, quick=True)
    found = BOUNDARIES.measure(case)
    (picture,) = found.pictures
    assert picture.png.startswith(b"\x89PNG")
    assert found.settings["points"] == 400
    expected = []
    drawn = case.generator("boundaries")
    members = {c: np.flatnonzero(labels.numpy() == c) for c in range(3)}
    for _ in range(50):
        chosen = [
            int(drawn.choice(members[int(c)])) for c in drawn.choice([0, 1, 2], 3, replace=False)
        ]
        same = 0
        for point in plane_through(images[chosen].float() / 255, side=20).points:
            decided = [network(point[None]).argmax().item() for network in networks[:2]]
            same += decided[0] == decided[1]
        expected.append(same / 400)
    np.testing.assert_allclose(found.readings[0].distilled[0], expected)


def test_two_classes_span_no_plane_of_three(make_case, linear, images):
    network = linear(torch.ones(3, 16), torch.zeros(3))
    with pytest.raises(NotApplicableError, match="images of three classes; the images are of 2"):
        BOUNDARIES.measure(make_case(network, network, network, images, torch.arange(30) % 2))
