import dataclasses

import pytest
import torch

from limbeck.core.errors import SettingsError
from limbeck.core.types import UNLABELLED
from limbeck.data import TrainLoader, build_data
from limbeck.engine.optim import ScheduleConfig
from limbeck.methods import METHODS
from limbeck.recipes.demo import (
    DEMO_METHODS,
    NUM_LABELS,
    SEEDS,
    TASK,
    demo_comparison,
    demo_student,
    demo_teacher,
)
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import execute, prepare_parts
from limbeck.teacher import state_hash

TEACHER = "runs/teacher"


def baseline(seed=0):
    return demo_student("ce", seed, None)


def but_for(config, *names):
    """Plain settings without some fields, ``a.b`` being one within ``a``."""
    plain = config.plain()
    for name in names:
        *path, last = name.split(".")
        place = plain
        for part in path:
            place = place[part]
        del place[last]
    return plain


# -- a fair comparison --------------------------------------------------------------------------


@pytest.mark.parametrize("method", DEMO_METHODS)
def test_a_method_differs_from_the_baseline_in_method_and_teacher_alone(method):
    """So optimiser, schedule, batch, augmentation, data, split, labels and network are one."""
    taught = demo_student(method, 1, TEACHER)
    assert but_for(taught, "method", "teacher") == but_for(baseline(1), "method", "teacher")
    assert taught.teacher.run == TEACHER
    assert taught.method_name == method


@pytest.mark.parametrize("method", ["ce", *DEMO_METHODS])
def test_every_student_trains_for_as_many_epochs_and_steps(method):
    """A method of several stages shares them out and gets none on top."""
    config = demo_student(method, 0, None if method == "ce" else TEACHER)
    assert sum(config.stage_epochs()) == config.schedule.epochs == baseline().schedule.epochs
    data = build_data(config.data, seed=config.seed)
    loader = TrainLoader(
        data.train,
        batch_size=config.train.batch_size,
        seed=config.seed,
        augment=config.data.augment,
    )
    assert loader.num_steps == 19  # 1,213 images by 64; the baseline does not stop at 100
    assert config.train.grad_accum_steps == 1


@pytest.mark.parametrize("method", ["ce", *DEMO_METHODS])
def test_every_method_has_its_published_defaults(method):
    config = demo_student(method, 0, None if method == "ce" else TEACHER)
    assert config.method_config == METHODS[method].config()


def test_seeds_differ_in_the_seed_alone():
    """One split for all: they differ in weights, order and augmentation."""
    assert len(set(SEEDS)) == len(SEEDS) >= 3
    configs = [demo_student("kd", seed, TEACHER) for seed in SEEDS]
    assert [config.seed for config in configs] == list(SEEDS)
    assert len({str(but_for(config, "seed")) for config in configs}) == 1
    prints = {build_data(config.data, seed=config.seed).fingerprint() for config in configs}
    assert len(prints) == 1


def test_there_is_a_method_of_every_kind_of_knowledge():
    families = {METHODS[method].family for method in DEMO_METHODS}
    assert families == {"output", "feature", "relation"}


def test_the_ceiling_is_the_baseline_with_every_label():
    ceiling = demo_student("ce", 0, None, num_labels=None)
    assert but_for(ceiling, "data.num_labels") == but_for(baseline(), "data.num_labels")
    assert ceiling.data.num_labels is None


def test_a_student_can_be_kept_to_its_labelled_images():
    config = demo_student("ce", 0, None, labelled_only=True)
    assert but_for(config, "data.labelled_only") == but_for(baseline(), "data.labelled_only")
    assert len(build_data(config.data, seed=0).train) == NUM_LABELS


def test_the_comparisons_runs_are_those_of_the_recipe():
    config = demo_comparison().resolved()
    assert config.seeds == SEEDS
    assert list(config.contenders) == ["ce", *DEMO_METHODS, "ceiling"]
    for label in ("ce", *DEMO_METHODS):
        teacher = None if label == "ce" else TEACHER
        assert config.run_config(label, 1, teacher_run=TEACHER) == demo_student(label, 1, teacher)
    ceiling = demo_student("ce", 2, None, num_labels=None)
    assert config.run_config("ceiling", 2) == ceiling
    assert config.teacher_training == demo_teacher()
    assert config.contenders["ceiling"].role == "reference"
    assert config.threads == 1


# -- teacher and labels -------------------------------------------------------------------------


def test_teacher_and_students_share_images_and_the_teacher_has_every_label():
    teacher = build_data(demo_teacher().data, seed=demo_teacher().seed)
    student = build_data(baseline(2).data, seed=2)
    assert torch.equal(student.train.images, teacher.train.images)
    assert (teacher.train.labels != UNLABELLED).all()
    kept = student.train.labels != UNLABELLED
    assert int(kept.sum()) == NUM_LABELS == 100
    assert torch.equal(student.train.labels[kept], teacher.train.labels[kept])
    assert torch.bincount(student.train.labels[kept], minlength=10).min() >= 9
    for split in ("val", "test"):
        assert student.splits[split].fingerprint() == teacher.splits[split].fingerprint()
    assert student.normalization == teacher.normalization


def test_the_teacher_trains_like_its_students_and_is_larger():
    teacher = demo_teacher()
    differing = ("data.num_labels", "student.name", "seed")
    assert but_for(teacher, *differing) == but_for(baseline(), *differing)
    sizes = [
        sum(weight.numel() for weight in prepare_parts(config).student.network.parameters())
        for config in (teacher, baseline())
    ]
    assert sizes[0] > 10 * sizes[1]


def test_a_method_without_its_teacher_is_refused():
    with pytest.raises(SettingsError, match="needs a teacher"):
        demo_student("kd", 0, None)


@pytest.mark.parametrize("config", [demo_teacher(), demo_student("fitnet", 1, TEACHER)])
def test_settings_come_back_from_plain_values(config):
    assert RunConfig.read(config.plain()) == config


def test_the_demo_runs_on_any_machine():
    assert {demo_teacher().train.device, baseline().train.device} == {"cpu"}
    assert baseline().data.dataset == "digits"
    assert str(NUM_LABELS) in TASK


# -- the test split -----------------------------------------------------------------------------


def test_nothing_that_is_learnt_or_chosen_depends_on_the_test_images(tmp_path):
    """Other test images and labels: the same student, the same best epoch, another test score."""
    config = baseline().changed(schedule=ScheduleConfig(epochs=2, sched="onecycle"))
    found = []
    for name in ("as it is", "changed"):
        parts = prepare_parts(config)
        if name == "changed":
            test = parts.data.test
            wrong = dataclasses.replace(
                test, images=test.images.flip(3), labels=(test.labels + 1) % 10
            )
            parts = dataclasses.replace(parts, data=dataclasses.replace(parts.data, test=wrong))
        summary = execute(config, tmp_path / name, parts)
        found.append((state_hash(parts.student.network), summary))
    (state, summary), (other_state, other) = found
    assert state == other_state
    assert summary.last == other.last
    assert summary.best_on_validation == other.best_on_validation
    assert summary.test.last != other.test.last
