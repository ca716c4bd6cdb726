"""One dry batch before training: builds the method, settles the taps, finds idle parameters.

Nothing it does is left behind: batch-norm statistics, gradients and random streams are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.errors import LimbeckError, ModelError
from limbeck.core.normalization import Normalization
from limbeck.core.types import Batch, Outputs, Progress, keyed_generator
from limbeck.engine.freezing import rest_parts
from limbeck.engine.learner import NO_TEACHER, Learner
from limbeck.engine.norms import find_batch_norms
from limbeck.features import ObservedNetwork
from limbeck.methods.base import Method, Needs, Probe, Stage, several_refused
from limbeck.teacher import Teacher, TeacherEnsemble
from limbeck.teacher_cache import CachedTeacher

__all__ = ["build_learner", "check_fit", "dry_forward", "freeze_idle", "make_probe"]


@contextmanager
def _untouched(*modules: nn.Module, seed: int) -> Iterator[None]:
    """Put buffers, gradients, modes and the global generator back afterwards."""
    # Only buffers: no optimiser runs here, so parameters stay as they are.
    buffers = [(b, b.detach().clone()) for module in modules for b in module.buffers()]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for module in modules:
                module.zero_grad(set_to_none=True)
            for part, training in modes:
                part.training = training


def check_fit(student: Outputs, teacher: Outputs, *, num_classes: int) -> None:
    """Compare class counts of student, teacher and data.

    Raises:
        ModelError: naming the counts that differ.
    """
    counts = {
        name: outputs.logits.shape[1]
        for name, outputs in (("student", student), ("teacher", teacher))
        if outputs.has_logits
    }
    wrong = {name: count for name, count in counts.items() if count != num_classes}
    if wrong:
        listed = " and ".join(f"the {name} gives {count}" for name, count in wrong.items())
        more = ""
        if wrong.get("teacher", 0) > num_classes:
            more = ", or say which of the teacher's classes are the data's (teacher.class_map)"
        raise ModelError(
            f"the data has {num_classes} classes, {listed}; use networks made for "
            f"{num_classes} classes{more}"
        )


def build_learner(
    stage: Stage,
    student: nn.Module,
    teacher: Teacher | TeacherEnsemble | CachedTeacher | None,
    batch: Batch,
    *,
    normalization: Normalization,
    num_images: int,
    num_classes: int,
    seed: int,
    prepare: Callable[[Method[Any]], None] | None = None,
    frozen: Sequence[str] = (),
    labels: Tensor | None = None,
    peers: Sequence[Learner] = (),
) -> Learner:
    """The method built for both networks by one dry batch, and the learner it makes.

    Args:
        stage: method and settings.
        student: on the batch's device.
        teacher: tapped as the method needs it, each of several; None where there is none.
        batch: a few training images, two at least.
        normalization: the student's own.
        num_images: in the training set.
        num_classes: of the data.
        seed: the method's own weights are drawn from it.
        prepare: called with the fresh method, for its one pass over the data.
        frozen: names of the student's parts that do not train.
        labels: ``(N,)``, of the training images, for methods that need all of them.
        peers: learners that learn beside the student.

    Raises:
        ModelError: if the class counts differ, the networks cannot take the images, or the
            method reads one teacher's layers and there are several.
    """
    needs = stage.method.needs(stage.config)
    if isinstance(teacher, TeacherEnsemble) and needs.one_teacher:
        raise ModelError(several_refused(stage.method.__name__, len(teacher.each)))
    key = keyed_generator(seed, stage.name, "method").initial_seed()
    probe = make_probe(
        needs,
        student,
        teacher,
        batch,
        normalization=normalization,
        num_images=num_images,
        num_classes=num_classes,
        seed=key,
        frozen=frozen,
        labels=labels,
        stage=stage.name,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(key)
        method = stage.method.from_probe(stage.config, probe).to(batch.image.device)
    if prepare is not None:
        prepare(method)
    learner = Learner(student, method, normalization=normalization, frozen=frozen, peers=peers)
    return learner.to(batch.image.device)


def make_probe(
    needs: Needs,
    student: nn.Module,
    teacher: Teacher | TeacherEnsemble | CachedTeacher | None,
    batch: Batch,
    *,
    normalization: Normalization,
    num_images: int,
    num_classes: int,
    seed: int,
    frozen: Sequence[str] = (),
    labels: Tensor | None = None,
    stage: str = "",
) -> Probe:
    """What one dry batch shows of both networks, as far as a method needs it.

    Args:
        needs: of the method.
        student: in training mode for this batch; it stays as it is.
        teacher: tapped as ``needs`` says; None where there is none.
        batch: as for :func:`build_learner`, and so are the others.
        normalization: the student's own.
        num_images: in the training set.
        num_classes: of the data.
        seed: of what the student draws, as for its dropout.
        frozen: names of the student's parts that do not train.
        labels: ``(N,)``, of the training images.
        stage: the name that a cache knows its answers by.

    Raises:
        ModelError: if the class counts differ, or the networks cannot take the images.
    """
    observed = ObservedNetwork(
        student,
        normalization=normalization,
        layers=needs.student_layers,
        classifier=needs.student_classifier,
        stop=needs.stop_student,
    )
    try:
        with _untouched(student, seed=seed), torch.no_grad():
            student.train()
            rest_parts(student, frozen)
            student_outputs = dry_forward("student", observed, batch)
            if isinstance(teacher, CachedTeacher):
                teacher_outputs = teacher.before_training(batch, stage)
            elif isinstance(teacher, TeacherEnsemble):  # of whom each has been tried alone
                teacher_outputs = teacher.answer(batch, 0)
            else:
                teacher_outputs = (
                    NO_TEACHER if teacher is None else dry_forward("teacher", teacher, batch)
                )
            scored = teacher_outputs if needs.teacher_scores else Outputs()
            check_fit(student_outputs, scored, num_classes=num_classes)
            batch_norms = {}
            if isinstance(teacher, Teacher) and needs.teacher_batch_norms:
                addresses = teacher.observed.tap.addresses
                image = batch.image if batch.teacher_image is None else batch.teacher_image
                seen = teacher.observed.normalize(image)
                batch_norms = find_batch_norms(teacher.network, addresses, seen)
            return Probe(
                student=student_outputs,
                teacher=teacher_outputs,
                num_classes=num_classes,
                num_images=num_images,
                labels=labels,
                student_addresses=dict(observed.tap.addresses),
                student_classifier_name=observed.classifier_name,
                teacher_batch_norms=batch_norms,
            )
    finally:
        observed.tap.close()


def dry_forward(whose: str, network: nn.Module, batch: Batch) -> Outputs:
    """Forward one batch, and say whose network failed where it fails.

    Raises:
        ModelError: if the network cannot take the images.
    """
    image = batch.image
    if whose == "teacher" and batch.teacher_image is not None:
        image = batch.teacher_image
    try:
        outputs: Outputs = network(image, batch.views)
    except LimbeckError:
        raise
    except Exception as error:  # networks refuse a size by an assertion, or by anything else
        said = str(error).strip().splitlines()
        first = ": ".join([type(error).__name__, *said[:1]])
        raise ModelError(
            f"the {whose} failed on images of shape {tuple(image.shape[1:])} (channels, height, "
            f"width): {first}. If it is made for another size or other channels, set "
            f"{whose}.img_size or {whose}.in_chans: its images are then converted for it"
        ) from error
    return outputs


def freeze_idle(
    learner: Learner, teacher: Outputs, batch: Batch, *, num_epochs: int, num_steps: int, seed: int
) -> list[str]:
    """One dry forward and backward; parameters that receive no gradient stop taking one.

    So the optimiser leaves them alone (weight decay too) and DDP does not wait for them.

    Returns:
        Their names.
    """
    with _untouched(learner, seed=seed):
        learner.train()
        progress = Progress(seed=seed, num_epochs=num_epochs, num_steps=num_steps)
        learner(batch, teacher, progress).terms.total.backward()
        idle = [
            name
            for name, parameter in learner.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
    for name in idle:
        learner.get_parameter(name).requires_grad_(False)
    return idle
