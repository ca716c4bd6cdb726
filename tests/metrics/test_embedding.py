"""Linear probe and nearest neighbours of vectors."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy.optimize import minimize

from limbeck.core.errors import DataError, NonFiniteError, ShapeError
from limbeck.metrics.embedding import LabelledFeatures, judge_embedding


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def clouds(rng, count, *, spread=1.0, classes=3):
    """Points about the corners of a simplex."""
    label = np.arange(count) % classes
    return LabelledFeatures(np.eye(classes, 5)[label] + spread * rng.normal(size=(count, 5)), label)


def votes(known, vector):
    """The formula in plain loops: the class with the most of 20 votes."""
    cosines = []
    for other, label in zip(known.features, known.label, strict=True):
        lengths = math.dist(other, [0] * 5) * math.dist(vector, [0] * 5)
        cosines.append((float(np.dot(other, vector)) / lengths, int(label)))
    polled = Counter()
    for cosine, label in sorted(cosines, reverse=True)[:20]:
        polled[label] += math.exp(cosine / 0.07)
    return polled.most_common(1)[0][0]


def test_neighbours_vote_by_their_cosine(rng):
    known, judged = clouds(rng, 90), clouds(rng, 60)
    expected = np.mean([votes(known, v) == y for v, y in zip(*judged, strict=True)])
    assert 0.4 < expected < 1
    assert judge_embedding(known, {"test": judged})["test"].knn_top1 == expected


def test_the_probe_is_logistic_regression_on_standardised_vectors(rng):
    """The oracle: its objective, by scipy, for two classes."""
    known, judged = clouds(rng, 80, classes=2), clouds(rng, 200, classes=2)
    mean, deviation = known.features.mean(axis=0), known.features.std(axis=0)
    x, sign = (known.features - mean) / deviation, 2 * known.label - 1

    def objective(w):
        return np.logaddexp(0, -sign * (x @ w[:5] + w[5])).sum() + w[:5] @ w[:5] / 2

    w = minimize(objective, np.zeros(6), tol=1e-10).x
    scores = (judged.features - mean) / deviation @ w[:5] + w[5]
    expected = np.mean((scores > 0) == judged.label)
    assert 0.6 < expected < 1
    found = judge_embedding(known, {"test": judged})["test"]
    assert abs(found.linear_top1 - expected) <= 1 / 200  # one vector on the border
    assert found.converged


def test_every_split_is_judged_by_the_same_fit(rng):
    known, one, other = (clouds(rng, 60, spread=s) for s in (0.1, 1.0, 0.1))
    both = judge_embedding(known, {"val": one, "test": other})
    assert both["val"] == judge_embedding(known, {"val": one})["val"]
    assert both["test"].linear_top1 == both["test"].knn_top1 == 1


def test_fewer_known_vectors_than_neighbours_and_zero_vectors_are_judged():
    known = LabelledFeatures([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]], [0, 1, 1])
    found = judge_embedding(known, {"test": LabelledFeatures([[0.0, 0.0]], [1])})["test"]
    assert found.knn_top1 in (0, 1)


def test_a_probe_that_was_stopped_says_so(rng, monkeypatch):
    monkeypatch.setattr("limbeck.metrics.embedding._MOST_ITERATIONS", 2)
    known = clouds(rng, 60)
    assert not judge_embedding(known, {"test": known})["test"].converged


GOOD = LabelledFeatures(np.eye(4), [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("known", "judged", "error", "message"),
    [
        (LabelledFeatures(np.eye(2), [1, 1]), GOOD, DataError, "images have 1. Label images"),
        (LabelledFeatures(np.eye(2), [0, 1]), GOOD, ShapeError, "those of 'test' have 4"),
        (GOOD, LabelledFeatures(np.empty((0, 4)), []), ShapeError, "one image at least"),
        (GOOD, LabelledFeatures(np.zeros(4), [0]), ShapeError, "must be vectors"),
        (GOOD, LabelledFeatures(np.eye(4), [0, 1]), ShapeError, r"\(4, 4\) and \(2,\)"),
        (LabelledFeatures(np.eye(2) * np.nan, [0, 1]), GOOD, NonFiniteError, "has diverged"),
    ],
)
def test_what_cannot_be_judged_is_named(known, judged, error, message):
    with pytest.raises(error, match=message):
        judge_embedding(known, {"test": judged})
