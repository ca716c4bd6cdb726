import pytest
import torch

from limbeck.core.errors import UnknownNameError
from limbeck.core.types import LossTerms, Outputs
from limbeck.methods.base import Probe
from limbeck.methods.embeddings import EmbeddingConfig, EmbeddingMethod


class Mean(EmbeddingMethod[EmbeddingConfig]):
    """The least that a method of this kind has to add."""

    def forward(self, batch, student, teacher, progress):
        gap = (self.embeddings(student, teacher).student.mean()) ** 2
        return LossTerms(gap, {"gap": gap})


def outputs(**features):
    return Outputs(torch.zeros(4, 3), features=features)


def built(config, student, teacher):
    probe = Probe(student=student, teacher=teacher, num_classes=3, num_images=4)
    return Mean.from_probe(config, probe)


def test_it_needs_one_layer_of_each_network_by_the_names_that_are_set():
    needs = Mean.needs(EmbeddingConfig(student_layer="a", teacher_layer="b:input"))
    assert (needs.student_layers, needs.teacher_layers) == (("a",), ("b:input",))
    assert Mean.needs(EmbeddingConfig()).student_layers == ("penultimate",)


def test_vectors_are_taken_as_they_are_and_maps_as_the_mean_of_their_places(generator):
    vector = torch.randn(4, 5, generator=generator)
    grid = torch.randn(4, 2, 3, 3, generator=generator)
    config = EmbeddingConfig(student_layer="v", teacher_layer="m")
    student, teacher = outputs(v=vector), outputs(m=grid)
    method = built(config, student, teacher)
    pair = method.embeddings(student, teacher)
    assert torch.equal(pair.student, vector)
    torch.testing.assert_close(pair.teacher, grid.sum(dim=(2, 3)) / 9)
    assert torch.equal(method.aligned(student, teacher).student, vector)


def test_it_says_which_two_layers_it_compares(generator):
    config = EmbeddingConfig(student_layer="v", teacher_layer="w")
    student = outputs(v=torch.randn(4, 5, generator=generator))
    teacher = outputs(w=torch.randn(4, 7, generator=generator))
    (line,) = built(config, student, teacher).describe()
    assert line.startswith("student v 5")
    assert "teacher w 7" in line


def test_a_layer_that_was_not_tapped_is_an_error():
    with pytest.raises(UnknownNameError, match="tapped student layer"):
        built(
            EmbeddingConfig(), outputs(v=torch.zeros(4, 5)), outputs(penultimate=torch.zeros(4, 2))
        )
