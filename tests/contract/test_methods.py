"""What every method promises, checked for every row of the table and each of its stages."""

import dataclasses
import importlib
import inspect
import json

import pytest
import torch
from pydantic import ValidationError

from limbeck.core.errors import SettingsError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, LossTerms, Progress
from limbeck.engine.learner import NO_TEACHER
from limbeck.engine.probe import build_learner, freeze_idle
from limbeck.methods import METHODS, find_method
from limbeck.methods.combine import Combination
from limbeck.methods.output.multi_teacher import MultiTeacherConfig
from limbeck.models.digits_cnn import digits_cnn, digits_cnn_tiny
from limbeck.teacher import Teacher, TeacherEnsemble, state_hash

# With adapters, memory, a pass over the data, further views; what each method alone promises, a
# combination promises too.
COMBINATIONS = ("kd+at", "crd+kd", "wkd_logit+wkd_feature", "rkd+kd", "cat_kd+mlkd")
ENTRIES = {**METHODS, **{name: find_method(name) for name in COMBINATIONS}}
ROWS = [pytest.param(entry, id=name) for name, entry in ENTRIES.items()]
STAGES = [
    pytest.param(stage, id=f"{name}-{stage.name}")
    for name, entry in ENTRIES.items()
    for stage in entry.stages(entry.config())
]
# Whose adapters are off by default.
STAGES += [
    pytest.param(stage, id=f"multi_teacher-{stage.name}-ca_mkd")
    for stage in METHODS["multi_teacher"].stages(MultiTeacherConfig(fusion="ca_mkd"))
]
TAUGHT = [case for case in STAGES if case.values[0].method.needs(case.values[0].config).teacher]
# Its products are of consecutive images; tests/methods/relation/test_cc.py says so too.
ORDERED = {"limbeck.methods.relation.cc"}
# What it keeps of an untrained network's edges changes with the last digits of its probabilities.
SELECTING = {"limbeck.methods.relation.vrm"}
PROGRESS = Progress(seed=3, epoch=1, step=7, num_epochs=4, num_steps=20)


def make_batch(stage, size=8, *, seed=0, unlabelled=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(size, 1, 8, 8, generator=generator)
    label = torch.randint(10, (size,), generator=generator)
    label[:unlabelled] = -1
    views = {name: image.flip(3) for name in stage.method.needs(stage.config).views}
    return Batch(index=torch.arange(size), image=image, label=label, views=views)


class World:
    """One stage's learner on tiny digits networks, its teacher, and a batch."""

    def __init__(self, stage, *, seed=0):
        self.stage = stage
        needs = stage.method.needs(stage.config)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            student, networks = digits_cnn_tiny(), [digits_cnn()]
            if needs.members:
                networks.append(digits_cnn_tiny())
        self.teacher = None
        if needs.teacher:
            layers, classifier = needs.teacher_layers, needs.teacher_classifier
            teachers = [Teacher(n, layers=layers, classifier=classifier) for n in networks]
            self.teacher = TeacherEnsemble(teachers) if needs.members else teachers[0]
        self.batch = make_batch(stage)
        self.learner = build_learner(
            stage,
            student,
            self.teacher,
            self.batch,
            normalization=Normalization(mean=(0.5,), std=(0.3,)),
            num_images=len(self.batch),
            num_classes=10,
            labels=self.batch.label,
            seed=seed,
        )
        self.learner.train()

    def answers(self, batch):
        return NO_TEACHER if self.teacher is None else self.teacher(batch.image, batch.views)

    def terms(self, batch=None) -> LossTerms:
        """From the same state at every call: what the method remembers of a batch is put back."""
        batch = self.batch if batch is None else batch
        before = [(buffer, buffer.clone()) for buffer in self.learner.method.buffers()]
        terms = self.learner(batch, self.answers(batch), PROGRESS).terms
        for buffer, value in before:
            buffer.data.copy_(value)  # unseen by autograd, which may still need the buffer
        return terms

    def widen(self):
        """Everything in float64."""
        self.learner.double()
        if self.teacher is not None:
            self.teacher.double()
        self.batch = wide(self.batch)
        return self


def wide(batch, order=None):
    order = torch.arange(len(batch)) if order is None else order
    return Batch(
        index=batch.index[order],
        image=batch.image[order].double(),
        label=batch.label[order],
        views={name: view[order].double() for name, view in batch.views.items()},
    )


@pytest.fixture(params=STAGES)
def world(request):
    return World(request.param)


def gradients(learner):
    return {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


# -- the loss ------------------------------------------------------------------------------


def test_the_total_is_one_finite_number_that_can_be_differentiated(world):
    total = world.terms().total
    assert total.shape == ()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert total.requires_grad


def test_the_parts_are_detached_finite_scalars(world):
    parts = world.terms().parts
    assert parts
    for name, part in parts.items():
        assert part.shape == (), name
        assert not part.requires_grad, name
        assert torch.isfinite(part), name


def test_gradient_reaches_all_that_learns_and_nothing_of_the_teacher(world):
    idle = freeze_idle(
        world.learner, world.answers(world.batch), world.batch, num_epochs=4, num_steps=20, seed=0
    )
    # Without a stop there is a way from every parameter to the loss, but for the student's own
    # classifier where another is deployed.
    stops = world.stage.method.needs(world.stage.config).stop_student
    replaced = world.learner.method.deployed(world.learner.student) is not world.learner.student
    assert bool(idle) is (stops or replaced)
    if replaced:
        assert all(name.startswith("observed.network.fc.") for name in idle)
    world.terms().total.backward()
    reached = gradients(world.learner)
    learning = {name for name, p in world.learner.named_parameters() if p.requires_grad}
    assert reached.keys() == learning
    assert all(torch.isfinite(gradient).all() for gradient in reached.values())
    assert reached["observed.network.stage1.0.weight"].abs().sum() > 0
    if world.teacher is not None:
        assert all(p.grad is None for p in world.teacher.parameters())


@pytest.mark.parametrize("world", TAUGHT, indirect=True)
def test_the_teacher_stays_as_it_was(world):
    before = state_hash(world.teacher)
    world.terms().total.backward()
    assert state_hash(world.teacher) == before


def test_the_order_of_the_batch_does_not_matter(world, generator):
    if world.stage.method.__module__ in ORDERED:
        pytest.skip("its loss is of consecutive images")
    world.widen()
    order = torch.randperm(len(world.batch), generator=generator)
    there, reordered = world.terms(), world.terms(wide(world.batch, order))
    torch.testing.assert_close(reordered.total, there.total, rtol=1e-9, atol=1e-9)
    for name, part in there.parts.items():
        torch.testing.assert_close(reordered.parts[name], part, rtol=1e-9, atol=1e-9)


def test_twenty_steps_on_one_batch_lower_the_loss(world):
    optimizer = torch.optim.SGD(world.learner.parameters(), lr=0.01, momentum=0.9)
    before = world.terms().total.item()
    for _ in range(20):
        optimizer.zero_grad()
        world.terms().total.backward()
        optimizer.step()
    assert world.terms().total.item() < 0.95 * before


def test_its_only_randomness_is_the_progress(world):
    first = world.terms().total
    with torch.random.fork_rng():
        torch.manual_seed(99)
        stream = torch.get_rng_state()
        second = world.terms().total
        assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(first, second)


# -- awkward batches and precisions --------------------------------------------------------


def check_finite(world, batch):
    terms = world.terms(batch)
    terms.total.backward()
    assert torch.isfinite(terms.total)
    assert all(torch.isfinite(part) for part in terms.parts.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients(world.learner).values())
    return terms


def test_a_batch_of_one_is_finite(world):
    check_finite(world, make_batch(world.stage, 1))


@pytest.mark.parametrize("unlabelled", [3, 8], ids=["some", "all"])
def test_unlabelled_images_are_finite(world, unlabelled):
    terms = check_finite(world, make_batch(world.stage, 8, unlabelled=unlabelled))
    if unlabelled == 8 and "ce" in terms.parts:
        assert terms.parts["ce"] == 0


ONE_LABEL = {"CRD", "DKD", "NoiseLabel", "WKDLogit"}  # which read a label beside the cross-entropy


def test_mixed_images_are_taken_with_both_their_labels_or_refused(world):
    """Where they are taken, it does not matter which label is called the other."""
    method = world.learner.method
    name = type(method).__name__
    parts = method.methods.values() if isinstance(method, Combination) else [method]
    refused = any(
        type(part).__name__ in ONE_LABEL or getattr(part.config, "fusion", None) == "ca_mkd"
        for part in parts
    )
    assert method.takes_mixed is not refused
    share = torch.linspace(0, 1, 8)
    other = world.batch.label.roll(1)
    mixed = dataclasses.replace(world.batch, other_label=other, label_share=share)
    if refused:
        with pytest.raises(SettingsError, match=f"{name}' takes one label an image"):
            world.terms(mixed)
        return
    there = world.terms(mixed).total
    swapped = dataclasses.replace(
        world.batch, label=other, other_label=world.batch.label, label_share=1 - share
    )
    torch.testing.assert_close(world.terms(swapped).total, there)
    certain = dataclasses.replace(world.batch, other_label=world.batch.label, label_share=share)
    torch.testing.assert_close(world.terms(certain).total, world.terms().total)


def test_equal_images_in_a_batch_are_finite(world):
    batch = make_batch(world.stage, 6)
    twice = Batch(
        index=batch.index,
        image=batch.image[:1].repeat(6, 1, 1, 1),
        label=batch.label,
        views={name: view[:1].repeat(6, 1, 1, 1) for name, view in batch.views.items()},
    )
    check_finite(world, twice)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_the_loss_is_finite_in_float32_and_near(world, dtype):
    expected = world.terms().total
    with torch.autocast("cpu", dtype=dtype):
        terms = world.terms()
    assert terms.total.dtype == torch.float32
    assert all(part.dtype == torch.float32 for part in terms.parts.values())
    near = 1e-1 if world.stage.method.__module__ in SELECTING else 5e-2
    torch.testing.assert_close(terms.total, expected, rtol=near, atol=1e-2)
    terms.total.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(world.learner).values())


def test_the_method_follows_its_module_to_another_dtype(world):
    """As to another device: nothing is kept outside of parameters and buffers."""
    expected = world.terms().total.double()
    world.widen()
    total = world.terms().total
    assert total.dtype == torch.float64
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)
    held = [
        name
        for module in world.learner.method.modules()
        for name, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    ]
    assert held == []


# -- what it holds -------------------------------------------------------------------------


def test_the_method_holds_neither_network(world):
    networks = [world.learner.student] + ([] if world.teacher is None else [world.teacher])
    theirs = {
        id(value) for network in networks for value in network.state_dict(keep_vars=True).values()
    }
    theirs |= {id(module) for network in networks for module in network.modules()}
    method = world.learner.method
    own = [*method.state_dict(keep_vars=True).values(), *method.modules()]
    assert not any(id(value) in theirs for value in own)


def test_a_state_dict_brings_the_method_back(world):
    other = World(world.stage, seed=1)
    other.learner.load_state_dict(world.learner.state_dict())
    assert torch.equal(other.terms().total, world.terms().total)


def test_it_says_in_single_lines_to_which_layers_it_attached(world):
    lines = world.learner.method.describe()
    assert isinstance(lines, tuple)
    assert all(line.strip() == line and len(line.splitlines()) == 1 for line in lines)
    needs = world.stage.method.needs(world.stage.config)
    for whose, layers in (("student", needs.student_layers), ("teacher", needs.teacher_layers)):
        for layer in layers:  # "stage*" stands for "stage1" and on
            start = f"{whose} {layer} " if layer[-1] != "*" else f"{whose} {layer[:-1]}1 "
            assert any(start in line for line in lines), layer


# -- the table -----------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ROWS)
def test_the_card_names_source_defaults_and_departures(entry):
    card = inspect.getdoc(importlib.import_module(entry.card))
    title, _, rest = card.partition("\n\n")
    assert ": " in title
    assert title.endswith(".")
    assert ".. math::" in rest
    places = [
        rest.index(f"\n{part}: ") for part in ("Source", "Defaults", "Differs from the source")
    ]
    assert places == sorted(places)
    assert "https://" in rest[places[0] : places[1]]


@pytest.mark.parametrize("entry", ROWS)
def test_settings_are_frozen_keyword_only_and_known(entry):
    config = entry.config()
    with pytest.raises(ValidationError, match="frozen"):
        config.label_smoothing = 0.5
    with pytest.raises(TypeError):
        entry.config(0.5)
    with pytest.raises(SettingsError, match="label_smoothing"):
        entry.config(label_smoothin=0.5)


@pytest.mark.parametrize("entry", ROWS)
def test_settings_come_back_from_json(entry):
    config = entry.config()
    assert entry.config.read(json.loads(json.dumps(config.plain()))) == config


@pytest.mark.parametrize("entry", ROWS)
def test_every_setting_has_its_meaning(entry):
    docs = [cls.__doc__ for cls in entry.config.__mro__ if hasattr(cls, "model_fields")]
    for field in entry.config.model_fields:
        assert any(f"\n        {field}: " in (doc or "") for doc in docs), field


@pytest.mark.parametrize("entry", ROWS)
def test_the_stages_share_the_whole_run(entry):
    stages = entry.stages(entry.config())
    own = [stage for stage in stages if stage.student is None]
    assert abs(sum(stage.share for stage in own) - 1) < 1e-9
    assert stages[-1] in own
    assert all(0 < stage.share <= 1 for stage in stages)
    assert len({stage.name for stage in stages}) == len(stages)
    assert not stages[-1].method.needs(stages[-1].config).stop_student  # it ends with a classifier


def test_no_method_inherits_from_another():
    methods = {stage.values[0].method for stage in STAGES}
    assert not any(a is not b and issubclass(a, b) for a in methods for b in methods)
