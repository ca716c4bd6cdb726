import numpy as np
import pytest
import torch
from torch import nn

from limbeck.analysis.agreement import FIDELITY
from limbeck.analysis.base import Case, NotApplicableError, Subject
from limbeck.core.normalization import Normalization

# The inputs of the golden numbers: n = 12, C = 4, k = 4 i + j.
K = np.arange(48.0).reshape(12, 4)
STUDENT, TEACHER = 2 * np.sin(1.7 * K + 0.3), 2 * np.cos(1.1 * K)
LABEL = np.arange(12) // 3


class Answers(nn.Module):
    """Given logits, image by image: the image's one pixel is its number."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, image):
        return self.logits[(image.flatten() * 255).round().long()]


def subject(logits):
    plain = Normalization(mean=(0.0,), std=(1.0,))
    return Subject(name="given", network=Answers(logits), normalization=plain)


def case(*, teacher=TEACHER, distilled=STUDENT, independent=STUDENT):
    return Case(
        teacher=subject(teacher),
        distilled={0: subject(distilled)},
        independent={0: subject(independent)},
        images=torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1, 1),
        labels=torch.as_tensor(LABEL),
        class_names=("a", "b", "c", "d"),
        method="kd",
    )


def test_agreement_and_divergence_are_the_golden_numbers():
    agreement, divergence, _ = FIDELITY.measure(case()).readings
    # gnosis (Stanton et al.) and the formula: agreement 0.25, KL(t || s) 1.2500460279
    assert agreement.distilled[0].mean() == 0.25
    assert divergence.distilled[0].mean() == pytest.approx(1.2500460279, abs=1e-6)
    assert divergence.nearer == "lower"


def test_repeated_errors_are_counted_among_the_teachers_errors():
    *_, repeated = FIDELITY.measure(case(independent=TEACHER)).readings
    theirs, ours = TEACHER.argmax(axis=1), STUDENT.argmax(axis=1)
    errors = [i for i in range(12) if theirs[i] != LABEL[i]]
    assert list(repeated.distilled[0]) == [ours[i] == theirs[i] for i in errors]
    assert repeated.independent[0].all()


def test_a_teacher_without_an_error_leaves_no_errors_to_repeat():
    perfect = np.eye(4)[LABEL]
    found = FIDELITY.measure(case(teacher=perfect))
    assert len(found.readings) == 2
    assert found.notes == ("The teacher makes no error on these images.",)


def test_a_teacher_of_one_answer_says_nothing():
    with pytest.raises(NotApplicableError, match="every image the answer 'c'"):
        FIDELITY.measure(case(teacher=np.eye(4)[np.full(12, 2)]))


def test_the_same_wrong_class_is_counted_where_both_are_wrong():
    (table,) = FIDELITY.measure(case(independent=TEACHER)).tables.values()
    ours, theirs = STUDENT.argmax(axis=1), TEACHER.argmax(axis=1)
    both = [i for i in range(12) if ours[i] != LABEL[i] and theirs[i] != LABEL[i]]
    same = sum(ours[i] == theirs[i] for i in both)
    errors = sum(theirs != LABEL)
    assert table[1:] == (
        ("distilled", "0", str(len(both)), str(same), f"{same / len(both):.1%}"),
        ("independent", "0", str(errors), str(errors), "100.0%"),
    )
