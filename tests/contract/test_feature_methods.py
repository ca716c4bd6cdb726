"""What every method of the feature family promises of dead and flat features, and of never waiting.

B batch, C channels, H W spatial, K classes.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.core.errors import LimbeckError, ModelError, SettingsError, ShapeError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, Classifier, Outputs, Progress
from limbeck.engine.probe import build_learner
from limbeck.methods import METHODS
from limbeck.methods.base import BatchNormInfo, Probe, Stage
from limbeck.teacher import Teacher

CLASSES = 5
LABELS = torch.arange(40) % CLASSES
PROGRESS = Progress(seed=3, epoch=30, step=7, num_epochs=40, num_steps=200)
CHANNELS = {"student": 6, "teacher": 8}

# The switches that change the arithmetic, beside every method's defaults.
VARIANTS = {
    "at": [{"p": 1}, {"p": 3.5}, {"distance": "norm"}],
    "cat_kd": [
        {"normalize": True},
        {"binarize": True, "normalize": True},
        {"num_kept_classes": 2, "kept_classes": "lowest"},
        {"ce_weight": 0},
    ],
    "cka": [{"kernel": "debiased"}, {"kernel": "rbf"}],
    "crd": [{"kd_weight": 1}],
    "foundation": [{"ce_weight": 1}, {"tokens_weight": 0}],
    "wkd_feature": [{"grid": 2}, {"covariance": "full"}, {"projector": "bottleneck"}],
}


def cases():
    for name, entry in METHODS.items():
        if entry.family != "feature":
            continue
        for settings in ({}, *VARIANTS.get(name, ())):
            for stage in entry.stages(entry.config(**settings)):
                changes = "".join(f"-{key}={value}" for key, value in settings.items())
                yield pytest.param(stage, id=f"{name}-{stage.name}{changes}")


CASES = list(cases())
DEFAULTS = [case for case in CASES if "=" not in case.id]


def features_of(whose, kind, *, size=4):
    """Three stages and a vector of one network, of one kind of awkwardness."""
    generator = torch.Generator().manual_seed(len(whose))
    channels, sides = CHANNELS[whose], (1, 1, 1) if kind == "one place" else (8, 4, 2)
    found = {}
    for k, side in enumerate(sides, 1):
        feature = torch.randn(size, channels, side, side, generator=generator)
        if kind == "dead":
            feature = torch.zeros_like(feature)
        elif kind == "flat":
            feature = torch.full_like(feature, 100.1)
        elif kind == "dead channels":
            feature[:, ::2] = 0
        elif kind == "gap":
            feature = 200 * feature.sign()
        elif kind == "equal images":
            feature = feature[:1].expand(size, -1, -1, -1)
        found[f"stage{k}"] = found[f"pre_activation:stage{k}"] = feature
    found["last"] = found["stage3"]
    found["penultimate"] = found["stage3"].mean(dim=(2, 3))
    return found


def outputs(whose, features, needs):
    weight = torch.linspace(-1, 1, CLASSES * CHANNELS[whose]).reshape(CLASSES, -1)
    asked = needs.student_layers if whose == "student" else needs.teacher_layers
    wanted = [
        name
        for name in features
        for layer in asked
        if name == layer or (layer.endswith("*") and name[:-1] == layer[:-1])
    ]
    return Outputs(
        F.linear(features["penultimate"].float(), weight),
        features={name: features[name] for name in wanted},
        classifier=Classifier(weight),
    )


class World:
    """One stage's method on made-up features of both networks."""

    def __init__(self, stage: Stage, student="plain", teacher="plain", *, size=4, replaced=()):
        self.needs = stage.method.needs(stage.config)
        self.given = {
            "student": features_of("student", student, size=size),
            "teacher": features_of("teacher", teacher, size=size),
        }
        for whose, name, feature in replaced:
            self.given[whose][name] = feature
        probe = Probe(
            student=outputs("student", self.given["student"], self.needs),
            teacher=outputs("teacher", self.given["teacher"], self.needs),
            num_classes=CLASSES,
            num_images=len(LABELS),
            labels=LABELS,
            student_addresses={"last": "stage3"},
            student_classifier_name="fc",
            teacher_batch_norms={
                f"pre_activation:stage{k}": BatchNormInfo(
                    name="bn", weight=torch.ones(8), bias=torch.zeros(8)
                )
                for k in (1, 2, 3)
            },
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.method = stage.method.from_probe(stage.config, probe).train()
        self.size = size

    def step(self, dtype=torch.float32):
        """The loss's terms and its gradients; under autocast where half as precise."""
        given = {
            whose: {name: feature.to(dtype) for name, feature in features.items()}
            for whose, features in self.given.items()
        }
        leaves = {
            name: feature.clone().requires_grad_() for name, feature in given["student"].items()
        }
        batch = Batch(
            index=torch.arange(self.size),
            image=torch.zeros(self.size, 1, 2, 2),
            label=LABELS[: self.size],
        )
        with torch.autocast(
            "cpu",
            dtype=torch.bfloat16 if dtype == torch.float32 else dtype,
            enabled=dtype != torch.float32,
        ):
            terms = self.method(
                batch,
                outputs("student", leaves, self.needs),
                outputs("teacher", given["teacher"], self.needs),
                PROGRESS,
            )
        # In float16 a scaler has lowered the loss by then: constant maps have a steep slope.
        (terms.total * (2.0**-8 if dtype == torch.float16 else 1.0)).backward()
        tensors = [*leaves.values(), *self.method.parameters()]
        return terms, [tensor.grad for tensor in tensors if tensor.grad is not None]


KINDS = ("plain", "dead", "flat", "dead channels", "gap", "equal images", "one place")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("whose", ["student", "teacher", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stage", CASES)
def test_awkward_features_give_a_finite_loss_and_gradient(stage, dtype, whose, kind):
    kinds = {other: kind if whose in (other, "both") else "plain" for other in CHANNELS}
    try:
        world = World(stage, **kinds)
    except LimbeckError:
        assert kind == "one place"  # a grid finer than the map, a map that no convolution enlarges
        return
    terms, gradients = world.step(dtype)
    assert terms.total.dtype == torch.float32
    assert torch.isfinite(terms.total)
    for name, part in terms.parts.items():
        assert torch.isfinite(part), name
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", CASES)
def test_so_does_a_batch_of_one(stage, kind):
    try:
        world = World(stage, kind, kind, size=1)
    except LimbeckError:
        assert kind == "one place"
        return
    terms, gradients = world.step()
    assert torch.isfinite(terms.total)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


# Layers that do not fit, as (shape behind the batch, C channels) and the words that say so.
C = 6
MISFITS = {
    "tokens of no square": ((7, C), "none of .* leaves a square grid. Set {whose}_layout"),
    "a map that may lie in two ways": ((C, 2, 9), "where the channels of the {whose}'s feature"),
    "a video": ((C, 2, 2, 2), "a map of 4 axes, tokens of 3 or a vector of 2.* the {whose}'s is"),
    "one vector": ((C,), "compared place by place, and a vector has no places; got student"),
}
# Which compare sets of images, vectors or class scores, and so take a layer of any shape; SimKD
# then reads the teacher's vector in the place of its map.
TAKES_ANY = {"CKA", "CRD", "FitNetDistil"}


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("whose", CHANNELS)
@pytest.mark.parametrize("stage", DEFAULTS)
def test_a_layer_that_cannot_be_matched_is_told_before_training(stage, whose, misfit):
    shape, words = MISFITS[misfit]
    feature = torch.linspace(-1, 1, 4 * torch.Size(shape).numel()).reshape(4, *shape)
    names = [name for name in features_of(whose, "plain") if name != "penultimate"]
    replaced = [(whose, name, feature) for name in names]
    method = stage.method.__name__
    takes = method in TAKES_ANY or (method, whose) == ("SimKD", "teacher")
    if takes or (method, misfit) == ("SimKD", "one vector"):
        terms, _ = World(stage, replaced=replaced).step()
        assert torch.isfinite(terms.total)
        return
    with pytest.raises(ShapeError, match=words.format(whose=whose)):
        World(stage, replaced=replaced)


@pytest.mark.parametrize("layers", [(("stage1",), ("stage1", "stage2")), ((), ())], ids=str)
@pytest.mark.parametrize("name", ["at", "cka", "ofd", "reviewkd", "vid"])
def test_lists_of_layers_that_are_not_equally_long_are_refused(name, layers):
    entry = METHODS[name]
    (stage,) = entry.stages(entry.config(student_layers=layers[0], teacher_layers=layers[1]))
    with pytest.raises(SettingsError, match="must name equally many layers"):
        World(stage)


class Bare(nn.Module):
    """Two stages without a batch-norm, and a classifier that is a linear layer or none."""

    def __init__(self, width, *, linear=True):
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(2 * width, 4) if linear else nn.Conv2d(2 * width, 4, 1)
        self.layer_aliases = {"stage1": "stage1", "stage2": "stage2", "last": "stage2"}

    def forward(self, image):
        pooled = self.stage2(self.stage1(image)).mean((2, 3), keepdim=True)
        linear = isinstance(self.head, nn.Linear)
        return self.head(pooled.flatten(1) if linear else pooled).flatten(1)


@pytest.mark.parametrize("without", ["batch-norm", "student's classifier", "teacher's classifier"])
@pytest.mark.parametrize("stage", DEFAULTS)
def test_what_a_network_lacks_is_told_by_the_methods_that_need_it(stage, without, generator):
    refused = {"OFD": "no batch-norm gives the teacher's layer 'pre_activation:stage1'"}
    if without != "batch-norm":
        words = "is a Conv2d and no nn.Linear; this method needs .*: choose another method"
        refused |= dict.fromkeys(("CATKD", "SimKD"), words)
    needs = stage.method.needs(stage.config)
    image = torch.rand(4, 1, 8, 8, generator=generator)
    batch = Batch(index=torch.arange(4), image=image, label=torch.arange(4))

    def step():
        teacher = Teacher(
            Bare(5, linear=without != "teacher's classifier"),
            layers=needs.teacher_layers,
            classifier=needs.teacher_classifier,
        )
        student = Bare(3, linear=without != "student's classifier")
        learner = build_learner(
            stage,
            student,
            teacher,
            batch,
            normalization=Normalization(mean=(0.5,), std=(0.3,)),
            num_images=4,
            num_classes=4,
            labels=batch.label,
            seed=0,
        )
        total = learner(batch, teacher(image), PROGRESS).terms.total
        total.backward()
        assert torch.isfinite(total)

    words = refused.get(stage.method.__name__)
    if words is None:
        step()
        return
    with pytest.raises(ModelError, match=words):
        step()


class NoWaiting(TorchDispatchMode):
    """Refuses what makes an accelerator wait for the host, or the host for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1] if i is not None
        )
        assert not masked, "a boolean mask as index"
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "_linalg_svd")
        assert name not in waits, name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", CASES)
def test_no_step_waits_for_the_host(stage, request):
    world = World(stage)
    waits = "covariance=full" in request.node.callspec.id
    with NoWaiting():
        if waits:
            with pytest.raises(AssertionError, match="_linalg_svd"):
                world.step()
        else:
            world.step()


@pytest.mark.parametrize("name", ["cat_kd", "simkd"])
def test_a_teacher_whose_classifier_takes_something_else_is_named(name):
    (stage,) = METHODS[name].stages(METHODS[name].config())
    world = World(stage)
    teacher = Outputs(
        torch.ones(4, CLASSES),
        features=outputs("teacher", world.given["teacher"], world.needs).features,
        classifier=Classifier(torch.ones(CLASSES, 9)),
    )
    probe = Probe(
        student=outputs("student", world.given["student"], world.needs),
        teacher=teacher,
        num_classes=CLASSES,
        num_images=40,
        student_addresses={"last": "stage3"},
        student_classifier_name="fc",
    )
    with pytest.raises(ModelError, match="takes 9"):
        stage.method.from_probe(stage.config, probe)
