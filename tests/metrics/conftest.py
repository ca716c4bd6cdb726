"""Logits and labels on which every metric has a value that is neither best nor worst."""

from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture
def card():
    """Twelve images, four classes: scores on a sine, the teacher's on a cosine.

    The values expected of them were computed with other codes: gnosis (Stanton et al. 2021) and
    torchmetrics where a test says so, the formula in plain loops elsewhere.
    """
    k = np.arange(48, dtype=np.float64).reshape(12, 4)
    return SimpleNamespace(
        student=2 * np.sin(1.7 * k + 0.3), teacher=2 * np.cos(1.1 * k), label=np.arange(12) // 3
    )


@pytest.fixture
def case():
    """200 images, seven classes, a student and a teacher that know something."""
    random = np.random.default_rng(0)
    label = random.integers(7, size=200)
    known = 2 * (np.arange(7) == label[:, None])
    return SimpleNamespace(
        student=known + 1.5 * random.standard_normal((200, 7)),
        teacher=known + random.standard_normal((200, 7)),
        label=label,
        order=random.permutation(200),
    )
