"""One hop against the authors' numbers; the chain of stages that a run makes of them."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import SettingsError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.methods.base import RUN_TEACHER, OwnNetwork
from limbeck.methods.output.takd import TAKD, TAKDConfig, reduced_kd, takd_stages

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "methods.json").read_text("utf-8"))[
    "takd"
]

ZS = torch.tensor(
    [[1.0, -0.5, 2.0, 0.3, -1.2], [0.1, 0.4, -0.9, 1.5, 0.0], [-2.0, 0.7, 0.7, 0.2, 1.1]],
    dtype=torch.float64,
)
ZT = torch.tensor(
    [[2.5, -1.0, 3.0, 0.0, -2.0], [0.0, 1.0, -1.5, 4.0, 0.5], [-1.0, 2.2, 0.1, -0.3, 0.6]],
    dtype=torch.float64,
)
Y = torch.tensor([2, 3, 4])


def terms(label=Y, student=ZS, **settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=label)
    return TAKD(TAKDConfig(**settings))(batch, Outputs(student), Outputs(ZT), Progress())


COMPUTED = {
    "code T=5 lambda=1": {"kd_share": 1, "reduction": "mean"},
    "T=5 lambda=1": {"kd_share": 1},
    "code T=4 lambda=.5": {"temperature": 4, "kd_share": 0.5, "reduction": "mean"},
    "T=4 lambda=.5": {"temperature": 4, "kd_share": 0.5},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    found = terms(**COMPUTED[name]).total.item()
    assert abs(found - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_the_two_reductions_are_those_of_torch(reduction):
    """Torch's "mean" is over all entries: the paper's sum over classes, over their number."""
    log_p, p = F.log_softmax(ZS / 3, dim=1), F.softmax(ZT / 3, dim=1)
    expected = 3**2 * (p * (p.log() - log_p))
    expected = expected.mean() if reduction == "mean" else expected.sum() / 3
    found = reduced_kd(ZS, ZT, temperature=3, reduction=reduction)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_another_reduction_is_refused_by_name():
    with pytest.raises(ValueError, match="'batchmean' or 'mean', got 'sum'"):
        reduced_kd(ZS, ZT, temperature=1, reduction="sum")
    with pytest.raises(SettingsError, match="reduction"):
        TAKDConfig(reduction="sum")


def test_the_two_weights_add_up_to_one():
    part = terms(kd_share=0.3)
    expected = 0.7 * F.cross_entropy(ZS, Y) + 0.3 * part.parts["kd"]
    torch.testing.assert_close(part.total, expected, rtol=0, atol=1e-12)


def test_with_a_share_of_one_labels_have_no_effect():
    student = ZS.clone().requires_grad_()
    gradients = []
    for label in (Y, Y.flip(0)):
        terms(label, student, kd_share=1).total.backward()
        gradients.append(student.grad.clone())
        student.grad = None
    assert torch.equal(*gradients)
    assert torch.equal(terms(Y, kd_share=1).total, terms(Y.flip(0), kd_share=1).total)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_of_its_range_is_refused(share):
    with pytest.raises(SettingsError, match="kd_share"):
        TAKDConfig(kd_share=share)


# -- stages ----------------------------------------------------------------------------------


def test_each_network_of_the_chain_is_taught_by_the_one_before_it():
    config = TAKDConfig(assistants=["resnet56", {"model": "resnet20"}], assistant_epochs=7)
    stages = takd_stages(config)
    assert [stage.name for stage in stages] == ["assistant1", "assistant2", "student"]
    assert [stage.teachers for stage in stages] == [
        (RUN_TEACHER,),
        ("assistant1",),
        ("assistant2",),
    ]
    assert [stage.student for stage in stages] == [
        OwnNetwork(model="resnet56"),
        OwnNetwork(model="resnet20"),
        None,
    ]
    assert [stage.epochs for stage in stages] == [7, 7, None]


def test_without_assistants_the_chain_is_one_hop_from_the_teacher():
    (stage,) = takd_stages(TAKDConfig())
    assert (stage.name, stage.teachers, stage.student) == ("student", (RUN_TEACHER,), None)
