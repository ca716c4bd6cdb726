import pytest
import torch
from torch import nn

from limbeck.core.types import Classifier, Outputs
from limbeck.methods.heads import classifier_misfit


@pytest.fixture
def head():
    return nn.Linear(6, 4)


@torch.no_grad()
def outputs(head, vector, *, shift=0.0):
    return Outputs(head(vector) + shift, classifier=Classifier(head.weight, head.bias))


def test_the_vectors_that_the_classifier_takes_fit(head, generator):
    vector = torch.randn(5, 6, generator=generator)
    assert classifier_misfit(vector, outputs(head, vector)) is None


def test_scores_from_something_else_are_measured(head, generator):
    vector = torch.randn(5, 6, generator=generator)
    assert "off by 0.5" in classifier_misfit(vector, outputs(head, vector, shift=0.5))


def test_another_width_is_named(head, generator):
    vector = torch.randn(5, 6, generator=generator)
    assert (
        classifier_misfit(vector[:, :4], outputs(head, vector)) == "has 4 channels, and it takes 6"
    )
