"""Distillation of features alone; B batch, C channels, H W spatial, N tokens, K classes."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import cosine_distance
from limbeck.methods.base import Probe
from limbeck.methods.feature.foundation import Foundation, FoundationConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["foundation"]
AS_IT_IS = {"kind": "none", "resize": "smaller"}
PLAIN = {"pooled_projection": AS_IT_IS, "tokens_projection": AS_IT_IS, "standardize": False}


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


def outputs(pooled, tokens):
    return Outputs(
        torch.zeros(len(pooled), 4, dtype=pooled.dtype),
        features={"penultimate": pooled, "last": tokens},
    )


VECTORS = 0.4 * sines((2, 3), 0.9, 0.1), 0.4 * sines((2, 3), 0.5, 0.3)
TOKENS = 0.4 * sines((2, 4, 3), 0.7, 0.2), 0.4 * sines((2, 4, 3), 0.3, 0.6)
STUDENT, TEACHER = (outputs(VECTORS[k], TOKENS[k]) for k in (0, 1))
BATCH = Batch(index=torch.arange(2), image=torch.zeros(2, 1, 2, 2), label=torch.tensor([0, 1]))


def built(student=STUDENT, teacher=TEACHER, **settings):
    probe = Probe(student=student, teacher=teacher, num_classes=4, num_images=len(BATCH))
    return Foundation.from_probe(FoundationConfig(**settings), probe)


def terms(method, student=STUDENT, teacher=TEACHER):
    return method(BATCH, student, teacher, Progress())


# -- the loss ------------------------------------------------------------------------------


def part(name):
    return lambda: terms(built(**PLAIN)).parts[name]


COMPUTED = {
    "cosine of vectors": part("pooled_cosine"),
    "cosine of tokens": part("tokens_cosine"),
    "half squares of vectors": lambda: part("pooled_mse")() / 2,
    "half squares of tokens": lambda: part("tokens_mse")() / 2,
    "both, one teacher": lambda: terms(built(**PLAIN)).total,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


def test_the_cosine_distance_is_torchs_and_knows_known_angles(generator):
    one, other = torch.randn(2, 5, 7, 3, generator=generator, dtype=torch.float64)
    expected = F.cosine_embedding_loss(
        one.reshape(-1, 3), other.reshape(-1, 3), torch.ones(35, dtype=torch.float64)
    )
    torch.testing.assert_close(cosine_distance(one, other), expected, rtol=1e-9, atol=1e-9)
    axis = torch.tensor([[2.0, 0.0]])
    for vector, distance in (([1.0, 0.0], 0), ([0.0, 3.0], 1), ([-5.0, 0.0], 2), ([0.0, 0.0], 1)):
        assert cosine_distance(torch.tensor([vector]), axis) == distance


def test_cosines_of_other_shapes_are_refused():
    with pytest.raises(ShapeError, match=r"student \(2, 3\), teacher \(2, 4\)"):
        cosine_distance(torch.zeros(2, 3), torch.zeros(2, 4))


def test_class_tokens_are_no_places():
    """A transformer's first token changes nothing: neither the loss nor the statistics."""
    changed = torch.cat([torch.full((2, 1, 3), 9.0, dtype=torch.float64), TOKENS[1]], dim=1)
    teacher = outputs(VECTORS[1], changed)
    expected = terms(built(**PLAIN)).parts
    found = terms(built(teacher=teacher, **PLAIN), teacher=teacher).parts
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_the_larger_grid_is_pooled(generator):
    large = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    student = outputs(VECTORS[0], large)
    found = terms(built(student=student, **PLAIN), student=student).parts["tokens_mse"]
    pooled = F.avg_pool2d(large, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, F.mse_loss(pooled, TOKENS[1]))


@pytest.mark.parametrize("level", ["pooled", "tokens"])
def test_a_level_without_weight_is_not_read(level):
    other = "tokens" if level == "pooled" else "pooled"
    config = FoundationConfig(**{f"{level}_weight": 0})
    needs = Foundation.needs(config)
    assert needs.student_layers == ({"pooled": "penultimate", "tokens": "last"}[other],)
    method = built(**PLAIN, **{f"{level}_weight": 0})
    parts = terms(method).parts
    assert set(parts) == {"ce", f"{other}_cosine", f"{other}_mse"}
    expected = 0.5 * (0.5 * parts[f"{other}_cosine"] + 0.25 * parts[f"{other}_mse"])
    torch.testing.assert_close(terms(method).total, expected)


# -- statistics ----------------------------------------------------------------------------


def test_targets_have_mean_0_and_deviation_1_over_all_images(generator):
    """Whatever the batches: the oracle has all images at once."""
    batches = []
    for size in (3, 5, 1):
        pooled = 40 + 3 * torch.randn(size, 3, generator=generator, dtype=torch.float64)
        tokens = torch.randn(size, 4, 3, generator=generator, dtype=torch.float64)
        batches.append(outputs(pooled, tokens * torch.tensor([1.0, 10.0, 0.1])))
    method = built().double()
    given = iter(batches)
    method.prepare(lambda image: next(given), [BATCH] * 3)
    for level, layer in (("pooled", "penultimate"), ("tokens", "last")):
        rows = torch.cat([each.features[layer].reshape(-1, 3) for each in batches])
        torch.testing.assert_close(method.get_buffer(f"{level}_mean"), rows.mean(dim=0))
        deviation = rows.std(dim=0, correction=0)
        torch.testing.assert_close(method.get_buffer(f"{level}_deviation"), deviation)


def test_the_loss_is_of_the_standardised_target():
    method = built(**{**PLAIN, "standardize": True}).double()
    method.pooled_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    method.pooled_deviation.copy_(torch.tensor([2.0, 4.0, 0.5]))
    target = (VECTORS[1] - torch.tensor([1.0, 2.0, 3.0])) / torch.tensor([2.0, 4.0, 0.5])
    found = terms(method).parts["pooled_mse"]
    torch.testing.assert_close(found, F.mse_loss(VECTORS[0], target))


def test_flat_and_dead_channels_stay_small(generator):
    pooled = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    pooled[:, 1] = 7
    pooled[:, 2] *= 1e-9
    teacher = outputs(pooled, torch.zeros(64, 4, 3, dtype=torch.float64))
    method = built().double()
    method.prepare(lambda image: teacher, [BATCH])
    deviation = method.pooled_deviation
    assert (pooled - method.pooled_mean).div(deviation).abs()[:, 1:].max() < 1e-5
    assert torch.equal(method.tokens_deviation, torch.ones(3, dtype=torch.float64))


def test_without_standardising_there_is_no_pass_over_the_data():
    def refuse(image):
        raise AssertionError("called")

    built(**PLAIN).prepare(refuse, [BATCH])


# -- labels and scores ---------------------------------------------------------------------


def test_labels_cannot_matter_unless_they_have_a_weight():
    method = built(**PLAIN)
    other = Batch(index=BATCH.index, image=BATCH.image, label=torch.tensor([3, -1]))
    assert torch.equal(method(other, STUDENT, TEACHER, Progress()).total, terms(method).total)
    assert "no labels are used" in method.describe()[-1]
    with_labels = built(**PLAIN, ce_weight=2.0)
    expected = terms(method).total + 2 * F.cross_entropy(STUDENT.logits, BATCH.label)
    torch.testing.assert_close(terms(with_labels).total, expected)
    assert not any("no labels" in line for line in with_labels.describe())


def test_the_teacher_needs_no_class_scores():
    silent = Outputs(features=TEACHER.features, missing="there are none")
    method = built(teacher=silent, **PLAIN)
    assert torch.equal(terms(method, teacher=silent).total, terms(method).total)
    needs = Foundation.needs(FoundationConfig())
    assert (needs.teacher_scores, needs.student_scores, needs.embeds) == (False, False, True)
    assert Foundation.needs(FoundationConfig(ce_weight=1)).student_scores


def test_projections_are_dropped_with_the_method():
    method = built()
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"projections"}
    student = torch.nn.Linear(2, 2)
    assert method.deployed(student) is student


@pytest.mark.parametrize(
    "settings",
    [
        {"pooled_weight": 0, "tokens_weight": 0},
        {"cosine_weight": 0, "mse_weight": 0},
    ],
)
def test_settings_that_learn_nothing_are_refused(settings):
    with pytest.raises(SettingsError, match="nothing is learnt from the teacher"):
        FoundationConfig(**settings)


def test_a_vector_in_place_of_a_map_is_named():
    flat = Outputs(features={"penultimate": VECTORS[1], "last": VECTORS[1]})
    with pytest.raises(ShapeError, match="a vector has no places"):
        built(teacher=flat)
