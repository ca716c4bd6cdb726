"""What every method of the output family promises of extreme scores, and of never waiting."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.core.types import Batch, Classifier, Outputs, Progress
from limbeck.methods import METHODS
from limbeck.methods.base import Probe, Stage

GAP = 200.0
CLASSES = 10
PROGRESS = Progress(seed=3, epoch=30, step=7, num_epochs=40, num_steps=200)

# The switches that change the arithmetic, beside every method's defaults.
VARIANTS = {
    "kd": [{"standardize": "population"}],
    "dkd": [{"standardize": True}, {"standardize": "population"}, {"alpha": 0}],
    "mlkd": [{"mode": "masked"}, {"standardize": True}, {"standardize": "population"}],
    "ctkd": [{"standardize": True}, {"standardize": "population"}],
    "dist": [{"temperature": 1}],
    "multi_teacher": [
        *({"fusion": fusion} for fusion in ("average_probability", "average_logit", "ebkd")),
        *(
            {"fusion": "ca_mkd", "hint_weight": 0, switch: True}
            for switch in ("official_scale", "soft_cross_entropy")
        ),
        *({"fusion": "aekd", "unit_gradients": switch} for switch in (False, True)),
    ],
    "takd": [{"reduction": "mean"}],
    "dgkd": [
        {"drop_count": 0},
        {"drop_count": 0, "keep_probability": 0.5},
        {"reduction": "mean", "kd_share": 0.5},
    ],
    "dml": [{"target": "mean"}],
    "born_again": [{"target": "confidence"}, {"target": "permuted"}],
    "wkd_logit": [{"temperature": 1}, {"cost": "logits"}, {"cost": "classifier"}],
    "sinkhorn_logit": [{"temperature": 1}],
}


def cases():
    for name, entry in METHODS.items():
        if entry.family != "output":
            continue
        for settings in ({}, *VARIANTS.get(name, ())):
            for stage in entry.stages(entry.config(**settings)):
                changes = "".join(f"-{key}={value}" for key, value in settings.items())
                yield pytest.param(stage, id=f"{name}-{stage.name}{changes}")


CASES = list(cases())


def rows(student_class, teacher_class, *, constant=False):
    """Scores ``(6, 10)`` of both networks: 200 at one class each, or all alike for the student."""
    scores = []
    for shift, classes in enumerate((student_class, teacher_class)):
        wave = torch.sin(torch.arange(6 * CLASSES) + shift).reshape(6, CLASSES)
        scores.append(wave.scatter(1, torch.tensor(classes)[:, None], GAP))
    if constant:
        scores[0] = torch.full_like(scores[0], 2.5)
    return scores


SIX, OTHER = [0, 1, 2, 3, 4, 5], [1, 1, 7, 3, 5, 0]
SCORES = {
    "apart": rows(SIX, OTHER),
    "against": [rows(SIX, OTHER)[0], -rows(SIX, OTHER)[0]],
    "agreeing": [rows(SIX, SIX)[0], rows(SIX, SIX)[0]],
    "one class for all": rows([4] * 6, [4] * 6),
    "student alike": rows(SIX, OTHER, constant=True),
    "a batch of one": [z[:1] for z in rows(SIX, OTHER)],
}


def outputs(logits, layers=()):
    """What a network gives, whatever else of it a method may ask for."""
    feature = torch.linspace(-1, 1, 4 * len(logits) * 4).reshape(len(logits), 4, 2, 2)
    return Outputs(
        logits,
        features=dict.fromkeys(layers, feature),
        classifier=Classifier(torch.linspace(-1, 1, 4 * CLASSES).reshape(CLASSES, 4)),
        views={"strong": Outputs(logits.flip(0)), "second": Outputs(logits.flip(0))},
        members=(Outputs(logits), Outputs(logits.flip(1))),
    )


def build(stage: Stage, student, teacher):
    needs = stage.method.needs(stage.config)
    probe = Probe(
        student=outputs(student.detach(), needs.student_layers),
        teacher=outputs(teacher, needs.teacher_layers),
        num_classes=CLASSES,
        num_images=100,
        labels=torch.arange(100) % CLASSES,
    )
    return stage.method.from_probe(stage.config, probe)


def step(method, student, teacher, label, *, half=None):
    """Loss and gradient with respect to the student's scores; forward under autocast to half."""
    batch = Batch(
        index=torch.arange(len(student)),
        image=torch.zeros(len(student), 1, 2, 2),
        label=label,
        views={"strong": torch.zeros(1), "second": torch.zeros(1)},
    )
    leaf = student.clone().requires_grad_()
    with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
        terms = method(batch, outputs(leaf), outputs(teacher), PROGRESS)
    terms.total.backward()
    return terms, leaf.grad


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stage", CASES)
def test_at_a_gap_of_200_loss_and_gradient_are_finite(stage, dtype, scores):
    student, teacher = (z.to(dtype) for z in SCORES[scores])
    label = torch.tensor([0, 9, 2, 8, -1, 5])[: len(student)]
    half = None if dtype == torch.float32 else dtype
    method = build(stage, student, teacher)
    terms, gradient = step(method, student, teacher, label, half=half)
    assert terms.total.dtype == torch.float32
    assert torch.isfinite(terms.total)
    for name, part in terms.parts.items():
        assert torch.isfinite(part), name
    assert torch.isfinite(gradient).all()


class NoWaiting(TorchDispatchMode):
    """Refuses what makes an accelerator wait for the host, or the host for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1] if i is not None
        )
        assert not masked, "a boolean mask as index"
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", CASES)
def test_no_step_waits_for_the_host(stage):
    student, teacher = SCORES["apart"]
    label = torch.tensor([0, 9, 2, 8, -1, 5])
    method = build(stage, student, teacher)
    with NoWaiting():
        step(method, student, teacher, label)


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
    ],
)
def test_waiting_is_noticed(waits):
    with NoWaiting(), pytest.raises(AssertionError):
        waits(torch.ones(3))
