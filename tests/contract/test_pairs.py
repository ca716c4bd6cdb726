"""Every method on pairs of networks of every kind: two real steps, or a message that says why not.

``python tests/contract/test_pairs.py`` prints the table, one row a method.
"""

import copy
import functools
import sys

import pytest
import torch

from limbeck.core.errors import LimbeckError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, Progress
from limbeck.engine.learner import NO_TEACHER
from limbeck.engine.probe import build_learner, freeze_idle
from limbeck.methods import METHODS, find_method
from limbeck.models import open_model
from limbeck.teacher import Teacher, TeacherEnsemble

CLASSES = 4
SIDE = 32
NAMES = (*METHODS, "kd+at", "wkd_logit+wkd_feature")

# Small forms of the transformers, so that a step takes milliseconds.
VIT = ("timm/vit_tiny_patch16_224", {"patch_size": 4, "depth": 4, "embed_dim": 24})
DEIT = ("timm/deit_tiny_patch16_224", {"patch_size": 8, "depth": 4, "embed_dim": 24})
SWIN = (
    "timm/swin_tiny_patch4_window7_224",
    {"embed_dim": 24, "depths": (1, 1, 2, 1), "window_size": 2},
)
PAIRS = {  # teacher, student
    "resnet56-resnet20": ("resnet56", "resnet20"),
    "wrn_40_2-wrn_16_2": ("wrn_40_2", "wrn_16_2"),  # whose features have a sign
    "vgg13-vgg8": ("vgg13", "vgg8"),
    "vgg8-MobileNetV2": ("vgg8", "MobileNetV2"),
    "resnet20-ShuffleV1": ("resnet20", "ShuffleV1"),
    "wrn_16_2-ShuffleV2": ("wrn_16_2", "ShuffleV2"),
    "vit-resnet8x4": (VIT, "resnet8x4"),
    "resnet20-vit": ("resnet20", VIT),
    "vit-deit": (VIT, DEIT),
    "swin-timm_mobilenetv3": (SWIN, "timm/mobilenetv3_small_050"),
    "torchvision_resnet18-timm_resnet10t": ("torchvision/resnet18", "timm/resnet10t"),
    "torchvision_vit-torchvision_shufflenet": (
        "torchvision/vit_b_16",
        "torchvision/shufflenet_v2_x0_5",
    ),
}


@functools.cache
def network(given):
    """A network with random weights, and the side of the images that it takes."""
    name, kwargs = (given, {}) if isinstance(given, str) else (given[0], dict(given[1]))
    fixed = SIDE if "vit" in name or "deit" in name else 2 * SIDE if "swin" in name else None
    opened = open_model(
        name,
        num_classes=CLASSES,
        data_size=(SIDE, SIDE),
        img_size=None if fixed is None else (fixed, fixed),
        model_kwargs=kwargs,
    )
    return opened.network.eval(), opened.image_size


def normalization(given):
    return Normalization(mean=(0.5,) * 3, std=(0.3,) * 3, image_size=network(frozen(given))[1])


def frozen(given):
    """A hashable form, for the cache."""
    return given if isinstance(given, str) else (given[0], tuple(given[1].items()))


def make_batch(views):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(8, 3, SIDE, SIDE, generator=generator)
    label = torch.arange(8) % CLASSES
    return Batch(
        index=torch.arange(8), image=image, label=label, views=dict.fromkeys(views, image.flip(3))
    )


def two_steps(name, pair):
    """Train two steps of every stage of a method; each stage goes on with the student as it is."""
    teacher_given, student_given = PAIRS[pair]
    student = copy.deepcopy(network(frozen(student_given))[0])
    entry = find_method(name)
    for stage in entry.stages(entry.config()):
        needs = stage.method.needs(stage.config)
        batch = make_batch(needs.views)
        one = teacher = None
        if needs.teacher:
            one = teacher = Teacher(
                network(frozen(teacher_given))[0],
                normalization=normalization(teacher_given),
                layers=needs.teacher_layers,
                classifier=needs.teacher_classifier,
                scores=needs.teacher_scores,
            )
            if needs.members:
                teacher = TeacherEnsemble([one, one])
        try:
            _train(stage, student, teacher, batch, normalization(student_given))
        finally:
            if one is not None:
                one.observed.tap.close()


def _train(stage, student, teacher, batch, own):
    answers = NO_TEACHER if teacher is None else teacher(batch.image, batch.views)
    learner = build_learner(
        stage,
        student.requires_grad_(True),
        teacher,
        batch,
        normalization=own,
        num_images=len(batch),
        num_classes=CLASSES,
        labels=batch.label,
        seed=0,
        prepare=lambda method: None if teacher is None else method.prepare(teacher, [batch]),
    )
    try:
        freeze_idle(learner, answers, batch, num_epochs=1, num_steps=2, seed=0)
        learner.train()
        learning = [p for p in learner.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=1e-3)
        before = [p.detach().clone() for p in learning]
        for step in range(2):
            terms = learner(batch, answers, Progress(step=step, num_steps=2)).terms
            optimizer.zero_grad()
            terms.total.backward()
            assert torch.isfinite(terms.total)
            assert all(torch.isfinite(p.grad).all() for p in learning)
            optimizer.step()
        assert any(not torch.equal(p, old) for p, old in zip(learning, before, strict=True))
        if not stage.method.needs(stage.config).stop_student:
            deployed = learner.method.deployed(student.eval())
            with torch.no_grad():
                assert deployed(learner.observed.normalize(batch.image)).shape == (8, CLASSES)
    finally:
        learner.observed.tap.close()


def outcome(name, pair):
    """ "" where it trains; else what it says."""
    try:
        two_steps(name, pair)
    except LimbeckError as error:
        return str(error)
    return ""


# Margins and class maps that some networks do not have; the words of the message that says so.
NO_MARGINS = "no batch-norm gives the teacher's layer 'pre_activation:stage"
REFUSED = {
    (pair, name): NO_MARGINS
    for pair in (
        "vit-resnet8x4",
        "vit-deit",
        "swin-timm_mobilenetv3",
        "torchvision_vit-torchvision_shufflenet",
    )
    for name in ("london", "ofd")
} | {("swin-timm_mobilenetv3", "cat_kd"): "class maps need the student's classifier to take"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_method_trains_any_pair_or_says_why_not(pair, name):
    expected = REFUSED.get((pair, name), "")
    found = outcome(name, pair)
    assert expected in found if expected else found == ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    messages = []
    sys.stdout.write(f"{'':<24}{' '.join(f'{k:>2}' for k in range(1, len(PAIRS) + 1))}\n")
    for each in NAMES:
        found = [outcome(each, pair) for pair in PAIRS]
        marks = []
        for text in found:
            messages += [text] if text and text not in messages else []
            marks.append(f"m{messages.index(text) + 1}" if text else "ok")
        sys.stdout.write(f"{each:<24}{' '.join(marks)}\n")
        sys.stdout.flush()
    for k, pair in enumerate(PAIRS, 1):
        sys.stdout.write(f"{k:>2}: {pair.replace('-', ' -> ')}\n")
    for k, text in enumerate(messages, 1):
        sys.stdout.write(f"m{k}: {text}\n")
