"""The contract of a method: what it needs, what it owns, and the loss it gives.

A method is an ``nn.Module`` that holds its own adapters and buffers and neither network, so
``method.parameters()`` is what to optimise beside the student and ``method.state_dict()`` what
to save beside it. It knows layer *names*, never model classes.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from limbeck.core.errors import ModelError, UnknownNameError
from limbeck.core.settings import Settings
from limbeck.core.types import UNLABELLED, Batch, LossTerms, Outputs, Progress
from limbeck.functional.precision import widened

__all__ = [
    "RUN_TEACHER",
    "BatchNormInfo",
    "Method",
    "MethodConfig",
    "MethodEntry",
    "Needs",
    "OwnNetwork",
    "Probe",
    "Stage",
    "cross_entropy",
    "several_refused",
]

RUN_TEACHER = "teacher"  # among a stage's teachers: the run's own


def several_refused(method: str, count: int) -> str:
    """Why a method that reads one teacher's layers cannot learn from several, and what can."""
    return (
        f"{method} reads layers of one teacher, and got {count} teachers, which share no layer. "
        "Give it one of them; or choose multi_teacher, which reads each by itself, or a method "
        "that reads outputs alone (`limbeck methods` tells)"
    )


class MethodConfig(Settings):
    """Settings every method has.

    Attributes:
        label_smoothing: share of each label's mass spread evenly over all classes, in [0, 1).
    """

    label_smoothing: float = Field(0.0, ge=0, lt=1)


C = TypeVar("C", bound=MethodConfig)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method asks the engine to make for it.

    Attributes:
        teacher: whether there must be one.
        teacher_scores: whether its class scores mean anything to the method. A teacher that is
            not asked for them may give whatever its features are, and is not judged by them.
        student_scores: whether the student's class scores are taught; where no method teaches
            them, they stay as chance made them.
        members: whether it reads what each of several teachers says by itself, layers and
            classifier among it: ``Outputs.members``. Other methods take several for one.
        student_layers: names tapped on the student; ``Outputs.features`` answers to these names,
            and for ``stage*`` to those of the network's stages (:meth:`Probe.layers` lists them).
        teacher_layers: the same on the teacher.
        student_classifier: whether ``Outputs.classifier`` of the student is filled.
        teacher_classifier: the same of the teacher.
        teacher_batch_norms: whether :meth:`Probe.batch_norm` knows what stands before the
            teacher's layers.
        before_training: where the teacher's layers and classifier serve
            :meth:`Method.from_probe` and :meth:`Method.prepare` alone, and steps read its logits:
            the settings that decide what these two find.
        views: names of further views the batch must hold.
        stop_student: end the student's forward pass once its last layer was tapped, so that
            nothing behind it runs, learns, or moves a batch-norm statistic.
        embeds: whether the student is taught an embedding ("penultimate"), by which it is judged
            at the end, beside its class scores.
    """

    teacher: bool = True
    teacher_scores: bool = True
    student_scores: bool = True
    members: bool = False
    student_layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    student_classifier: bool = False
    teacher_classifier: bool = False
    teacher_batch_norms: bool = False
    before_training: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    stop_student: bool = False
    embeds: bool = False

    @property
    def logits_suffice(self) -> bool:
        """Whether a step asks nothing of the teacher but its logits, which can be stored."""
        features = self.teacher_layers or self.teacher_classifier or self.teacher_batch_norms
        return not features or bool(self.before_training)

    @property
    def one_teacher(self) -> bool:
        """Whether it reads what one network has and several together have not."""
        reads = self.teacher_layers or self.teacher_classifier or self.teacher_batch_norms
        return bool(reads) and not self.members


@dataclass(frozen=True, kw_only=True)
class BatchNormInfo:
    """The batch-norm that gives a layer its values, or the last to add to them.

    Attributes:
        name: of the module in its network.
        weight: ``(C,)``, gamma.
        bias: ``(C,)``, beta.
    """

    name: str
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One dry batch seen from outside; exists while a method is built and no longer.

    A method copies what it needs into parameters or buffers.

    Attributes:
        student: the student's outputs on the dry batch.
        teacher: the teacher's.
        num_classes: of the data.
        num_images: in the training set.
        labels: ``(N,)`` int64, of the training images in their order, -1 where unknown; None where
            nobody gave them.
        student_addresses: of the student's tapped layers, by name, as its modules are called.
        student_classifier_name: of the module that ``student.classifier`` is of; None where that
            was not asked for.
        teacher_batch_norms: by tapped teacher layer; a layer without one is not among them.
    """

    student: Outputs
    teacher: Outputs
    num_classes: int
    num_images: int
    labels: Tensor | None = None
    student_addresses: Mapping[str, str] = field(default_factory=dict)
    student_classifier_name: str | None = None
    teacher_batch_norms: Mapping[str, BatchNormInfo] = field(default_factory=dict)

    def feature(self, whose: str, layer: str) -> Tensor:
        """The dry batch's tensor of one tapped layer; ``whose`` is "student" or "teacher"."""
        features = (self.student if whose == "student" else self.teacher).features
        if layer not in features:
            raise UnknownNameError(f"tapped {whose} layer", layer, features)
        return features[layer]

    def layers(self, whose: str, asked: Iterable[str]) -> tuple[str, ...]:
        """Names of tapped layers: what was asked for, with ``stage*`` as the stages there are."""
        features = (self.student if whose == "student" else self.teacher).features
        names: list[str] = []
        for name in asked:
            prefix, every, rest = name.rpartition("stage*")
            if not every or rest:
                names.append(name)
                continue
            stage = re.compile(re.escape(prefix) + r"stage(\d+)")
            found = [match for known in features if (match := stage.fullmatch(known))]
            names += [match[0] for match in sorted(found, key=lambda match: int(match[1]))]
        return tuple(dict.fromkeys(names))

    def batch_norm(self, layer: str) -> BatchNormInfo:
        """What stands before a tapped layer of the teacher.

        Raises:
            ModelError: if no batch-norm does.
        """
        if layer not in self.teacher_batch_norms:
            raise ModelError(
                f"no batch-norm gives the teacher's layer {layer!r} its values, as many channels "
                "as it has; name a layer that is the output of one, or the input of the ReLU "
                "behind it ('pre_activation:stage1'), use a teacher with batch-norm, or switch off "
                "the term that needs it (`limbeck methods NAME` lists the settings)"
            )
        return self.teacher_batch_norms[layer]


class Method(nn.Module, Generic[C]):
    """Base of all methods. Final classes only: no method inherits from another.

    Attributes:
        buffers_kept_equal: names of buffers that the method itself keeps equal in all processes,
            which DDP need not send from the first one in every step.
        takes_mixed: whether its loss is right for mixed images, which have two labels: it takes
            them through :meth:`label_loss` alone, or reads none.
    """

    buffers_kept_equal: tuple[str, ...] = ()
    takes_mixed: bool = False

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def needs(cls, config: C) -> Needs:
        """What must be tapped and made; the default is logits alone."""
        del config
        return Needs()

    @classmethod
    def from_probe(cls, config: C, probe: Probe) -> Self:
        """Build the method for the networks that one dry batch went through."""
        del probe
        return cls(config)

    def prepare(self, teacher: Callable[[Tensor], Outputs], batches: Iterable[Batch]) -> None:
        """Once, before the first epoch: a pass over the data, for methods that need one.

        The batches hold every training image once, in order and without augmentation, and can be
        gone through more than once. What it finds goes into buffers, so that it is in the
        checkpoint.

        Where :attr:`Needs.before_training` names the settings that it depends on, beside teacher
        and images, later runs with the same ones read its buffers from a file and make no pass.
        """
        del teacher, batches

    def describe(self) -> tuple[str, ...]:
        """Where the method attached to the two networks, for people to read before training.

        One line for each pair of layers, with their names as in :meth:`needs`, their shapes and
        what stands between them; empty for a method that reads outputs alone.
        """
        return ()

    @abstractmethod
    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """The loss of one batch."""
        raise NotImplementedError

    def deployed(self, student: nn.Module) -> nn.Module:
        """What is evaluated and exported; the student itself unless a method says otherwise."""
        return student

    def cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        """:func:`cross_entropy` with this method's label smoothing."""
        return cross_entropy(logits, label, label_smoothing=self.config.label_smoothing)

    def label_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        r"""Cross-entropy with the labels of a batch; of mixed images, with both by their shares.

        .. math:: \frac{\sum_b \lambda_b \, CE(z_b, y_b) + (1 - \lambda_b) \, CE(z_b, y'_b)}
            {\sum_b \lambda_b + (1 - \lambda_b)}

        Both sums are over the labels that are known; zero where none is.

        Args:
            logits: ``(B, K)``, raw.
            batch: whose labels.

        Returns:
            Scalar in nats, float32 or wider, ``>= 0``.
        """
        if batch.other_label is None or batch.label_share is None:
            return self.cross_entropy(logits, batch.label)
        wide = widened(logits)
        share = batch.label_share.to(wide.dtype)
        total, weight = share.new_zeros(()), share.new_zeros(())
        for label, part in ((batch.label, share), (batch.other_label, 1 - share)):
            losses = F.cross_entropy(
                wide,
                label,
                ignore_index=UNLABELLED,
                label_smoothing=self.config.label_smoothing,
                reduction="none",
            )
            total = total + (part * losses).sum()
            weight = weight + (part * (label != UNLABELLED)).sum()
        # With no known label the sum is 0, whatever it is divided by.
        return total / torch.where(weight > 0, weight, 1.0)


class OwnNetwork(Settings):
    """A network that a method brings beside the run's two: an assistant, a generation, a peer.

    In place of these fields a text may stand: the folder of a finished run, where there is such a
    folder, and a model's name elsewhere.

    Attributes:
        model: its name; the network is made anew and trained in this run.
        run: a folder that holds a trained student, such as a finished run's; it is used as it is.
            With neither, the network is made anew as the run's student is, from another seed.
    """

    model: str | None = None
    run: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_is_either(cls, value: Any) -> Any:  # noqa: ANN401  (not yet checked)
        if not isinstance(value, str | Mapping | OwnNetwork):
            raise ValueError("give a model's name or a finished run's folder")  # noqa: TRY004
        if not isinstance(value, str):
            return value
        is_run = value != "" and Path(value).is_dir()
        return {"run" if is_run else "model": value}

    @model_serializer(mode="wrap")
    def _given_alone(self, write: SerializerFunctionWrapHandler) -> dict[str, str]:
        return {name: value for name, value in write(self).items() if value is not None}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.model is not None and self.run is not None:
            raise ValueError("give either model, which is then trained, or run, which is not")
        return self


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One leg of a run, which trains one network, or one and its peers.

    The last stage's is the run's own student: what is evaluated, exported and summarised. Stages
    that train the run's student go on from where the one before left it.

    Attributes:
        name: unique within the run; the log and the checkpoint use it.
        method: its class.
        config: its settings.
        share: of the run's epochs, in (0, 1]; the shares of the stages that train the run's own
            student add up to 1. Not used where ``student`` is another.
        schedule: "run" follows the run's learning-rate schedule, squeezed into this stage;
            "constant" stays at the run's base rate.
        student: a network of this stage alone; None for the run's own.
        epochs: of a stage with its own student; None for as many as the run has.
        teachers: :data:`RUN_TEACHER`, and names of earlier stages whose students teach.
        peers: networks that learn beside the student, each from all others; the run calls them
            "peer1" and so on. One stage of a run at most has them.
        in_turn: whether student and peers are updated one after the other, each from what the
            others say after their own updates, and not all at once.
        ensemble: earlier stages and peers, together with which the student is also judged at the
            end.
    """

    name: str
    method: type[Method[Any]]
    config: MethodConfig
    share: float = 1.0
    schedule: Literal["run", "constant"] = "run"
    student: OwnNetwork | None = None
    epochs: int | None = None
    teachers: tuple[str, ...] = (RUN_TEACHER,)
    peers: tuple[OwnNetwork, ...] = ()
    in_turn: bool = False
    ensemble: tuple[str, ...] = ()

    @property
    def is_finished(self) -> bool:
        """Whether its student is trained already."""
        return self.student is not None and self.student.run is not None

    @property
    def uses_run_teacher(self) -> bool:
        """Whether the run's teacher teaches in it, or has taught its finished student."""
        needs: Needs = self.method.needs(self.config)
        return needs.teacher and RUN_TEACHER in self.teachers

    def own_networks(self) -> dict[str, OwnNetwork]:
        """Its student and peers, by the names that the run gives them; not the run's student."""
        found = {} if self.student is None else {self.name: self.student}
        return found | {f"peer{n}": peer for n, peer in enumerate(self.peers, start=1)}


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """A row of the table of methods: a method of one stage, or a plan of several.

    Attributes:
        family: where the knowledge lies: the field's own taxonomy; "combined" of several methods.
        config: the settings' class; its defaults are the method's.
        stages: from those settings to the run's stages, in order.
        card: the module whose docstring is the method's card.
        required: settings that are empty by default and may not be in a run, each with what it
            wants.
    """

    family: Literal["none", "output", "feature", "relation", "combined"]
    config: type[MethodConfig]
    stages: Callable[[Any], tuple[Stage, ...]]
    card: str
    required: Mapping[str, str] = field(default_factory=dict)


def cross_entropy(logits: Tensor, label: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    r"""Cross-entropy, mean over the labelled images; zero where there are none.

    .. math:: \frac{1}{|\{b : y_b \ge 0\}|} \sum_{b : y_b \ge 0} -\log \mathrm{softmax}(z_b)_{y_b}

    Args:
        logits: ``(B, K)``, raw.
        label: ``(B,)`` int64 in [0, K), or -1 for "unknown".
        label_smoothing: in [0, 1).

    Returns:
        Scalar in nats, float32 or wider, ``>= 0``.

    Example:
        >>> import torch
        >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, -1])).exp().round().item()
        4.0
    """
    summed = F.cross_entropy(
        widened(logits),
        label,
        ignore_index=UNLABELLED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    # A clamp and not a branch: counting on the host would make a GPU wait.
    return summed / (label != UNLABELLED).sum().clamp(min=1)
