r"""Multi-teacher: KD from several teachers at once, fused by one of six rules.

.. math:: \mathcal{L} = w_{ce} \, CE(z^s, y) + w_{kd} \, \mathcal{L}_{fused}
    + w_{hint} \, \frac{1}{B} \sum_b \sum_k v_{bk} \, \frac{1}{D_k} \| g_k(f^s_b) - f^k_b \|^2

For K teachers, with KD_bk = T^2 KL(p^k_T || p^s_T) of image b, the setting ``fusion`` chooses
L_fused:

- "average_loss": the mean of KD_bk over images and teachers.
- "average_probability": KD from the mean of the teachers' softened probabilities; the same
  gradient, a lower value.
- "average_logit": KD from the mean of their logits.
- "ebkd": (1/B) sum_bk w_bk KD_bk, w_bk = (1 - H_bk / sum_j H_bj) / (K - 1) by the entropies of the
  teachers' probabilities at T = 1.
- "ca_mkd": the same with w_bk = (1 - softmax_k CE(z^k_b, y_b)) / (K - 1). The third term is its
  own: g_k takes the student's last map to teacher k's, by a 1x1 convolution, batch norm and ReLU,
  and v is as w, from what teacher k's classifier says of g_k's output.
- "aekd": sum_k a_k KD_k, where the a_k, at most ``max_weight`` each and of sum 1, make the sum of
  the teachers' gradients by the logits as short as it can be.

Teachers that agree give KD under every rule. Labels serve the cross-entropy and "ca_mkd", which
weighs all teachers alike where an image has none.

Source: averages: Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531; You, Xu, Xu, Tao,
    "Learning from Multiple Teacher Networks", KDD 2017. "ebkd": Kwon, Na, Lee, Kim, "Adaptive
    Knowledge Distillation Based on Entropy", ICASSP 2020. "ca_mkd": Zhang, Chen, Wang,
    "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022,
    https://arxiv.org/abs/2201.00007. "aekd": Du, You, Li, Wu, Wang, Qian, Zhang, "Agree to
    Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", NeurIPS 2020. The last
    three also by their code in CA-MKD's repository.
Defaults: those of that repository for CIFAR-100: T = 4, weights 1 and 1; "ca_mkd" has 50 for its
    maps, "aekd" 0.9 for its divergence and at most 0.6 for a teacher.
Differs from the source: the weights of "ebkd" and "ca_mkd" have a sum of 1. The code divides both
    terms of "ca_mkd" by K once more, and has a sum of (K - 1) / K in "ebkd"
    (``official_scale=true``); the weights 1 and 50 are the authors' with that. "ca_mkd" has KL
    times T squared, as the code; the cross-entropy with softened probabilities, which we take to be
    the paper's, is ``soft_cross_entropy=true``. A student's map that was averaged for a smaller
    teacher is not handed on to the next, as it is in the code; the last batch of an epoch is not
    skipped. "aekd" has its exact solution in place of an SVM's, each process its own; its weights
    for hints are left out, and so are FitNets' for several teachers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator
from torch import Tensor, nn

from limbeck.core.errors import ModelError, SettingsError, ShapeError
from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.divergences import softened_kl
from limbeck.functional.logits import check_logits, check_temperature
from limbeck.functional.precision import widened
from limbeck.functional.teacher_weights import (
    agreement_weights,
    check_max_weight,
    confidence_weights,
    entropy_weights,
)
from limbeck.methods.adapters import Adapter, AdapterConfig, make_adapter
from limbeck.methods.base import Method, MethodConfig, Needs, Probe
from limbeck.methods.heads import classifier_misfit

__all__ = [
    "Fusion",
    "MultiTeacher",
    "MultiTeacherConfig",
    "confidence_hint_loss",
    "fused_kd_loss",
]

Fusion: TypeAlias = Literal[
    "average_loss", "average_probability", "average_logit", "ebkd", "ca_mkd", "aekd"
]
# Settings that one rule alone reads, and what they are where it is chosen.
_OWN: dict[str, dict[str, float]] = {"aekd": {"kd_weight": 0.9}, "ca_mkd": {"hint_weight": 50.0}}
_ADAPTER = AdapterConfig(kind="linear", norm="batch", activation="relu")


class MultiTeacherConfig(MethodConfig):
    """Settings of :class:`MultiTeacher`.

    Attributes:
        fusion: the rule; see the card.
        temperature: by which all networks' scores are divided.
        ce_weight: of the cross-entropy with the labels.
        kd_weight: of the fused divergence, which already has T squared. "aekd" has 0.9 if nothing
            else is said.
        hint_weight: of the distance of the last maps, which "ca_mkd" alone has: there 50 if
            nothing else is said, elsewhere 0.
        hint_start_epoch: epochs in which that distance does not count yet.
        student_layer: the student's map, by name or meaning.
        teacher_layer: each teacher's, whose mean its classifier takes.
        detach_hint_weights: no gradient through the weights of that distance, which the authors'
            code lets flow.
        official_scale: of "ebkd" and "ca_mkd": divide as the authors' code does.
        soft_cross_entropy: of "ca_mkd": cross-entropy with softened probabilities, without T
            squared, in place of KL.
        max_weight: of "aekd": the most that one teacher may count, from 1 / K, the average, to 1.
        unit_gradients: of "aekd": weigh gradients of length 1, and divide by the lengths after.
    """

    fusion: Fusion = "average_loss"
    temperature: PositiveFloat = 4.0
    ce_weight: NonNegativeFloat = 1.0
    kd_weight: NonNegativeFloat = 1.0
    hint_weight: NonNegativeFloat = 0.0
    hint_start_epoch: NonNegativeInt = 1
    student_layer: str = "last"
    teacher_layer: str = "last"
    detach_hint_weights: bool = False
    official_scale: bool = False
    soft_cross_entropy: bool = False
    max_weight: float = Field(0.6, gt=0, le=1)
    unit_gradients: bool = False

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_rule(cls, values: Any) -> Any:  # noqa: ANN401  (not yet checked)
        own = _OWN.get(str(values.get("fusion"))) if isinstance(values, dict) else None
        return values if own is None else own | values

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.hint_weight and self.fusion != "ca_mkd":
            raise ValueError(
                f"hint_weight is of fusion 'ca_mkd'; got {self.hint_weight} for {self.fusion!r}. "
                "Leave it at 0"
            )
        _check_switches(self.fusion, self.official_scale, self.soft_cross_entropy)
        return self


class _Fused(NamedTuple):
    """A fused divergence, and each teacher's mean weight ``(K,)``; None where all count alike."""

    loss: Tensor
    weights: Tensor | None


def fused_kd_loss(
    student_logits: Tensor,
    teacher_logits_list: Sequence[Tensor],
    label: Tensor,
    *,
    fusion: Fusion,
    temperature: float = 4.0,
    official_scale: bool = False,
    soft_cross_entropy: bool = False,
    max_weight: float = 0.6,
    unit_gradients: bool = False,
) -> Tensor:
    r"""KD from several teachers, fused by one of six rules; the module has their formulas.

    .. math:: \frac{1}{B} \sum_b \sum_k w_{bk} \, T^2 \, KL(p^k_{T,b} \,\|\, p^s_{T,b}), \quad
        \sum_k w_{bk} = 1

    and for two of the averages the divergence from one mean teacher. The sum over classes, the
    mean over the batch.

    Args:
        student_logits: ``(B, K)``, raw.
        teacher_logits_list: of each teacher, ``(B, K)``, raw; none receives a gradient.
        label: ``(B,)`` int64 in [0, K), or -1 for "unknown"; "ca_mkd" alone reads it.
        fusion: "average_loss", "average_probability", "average_logit", "ebkd", "ca_mkd", "aekd".
        temperature: ``> 0``.
        official_scale: of "ebkd" and "ca_mkd": weights of sum (n - 1) / n and 1 / n for n
            teachers, as in the authors' code.
        soft_cross_entropy: of "ca_mkd": the cross-entropy with the teachers' softened
            probabilities and no T squared.
        max_weight: of "aekd": the most that one teacher may count, in [1 / n, 1].
        unit_gradients: of "aekd": weigh gradients of length 1, and divide by the lengths after.

    Returns:
        Scalar in nats, float32 or wider, ``>= 0``; :func:`kd_loss` where all teachers agree, but
        for the last four switches.

    Raises:
        ShapeError: if logits differ in shape or are not 2-D, labels do not fit, or there is no
            teacher.
        SettingsError: for an unknown rule, a switch of another rule, a temperature that is not
            positive, or a ``max_weight`` that so many teachers cannot have.

    Source:
        Zhang et al. 2022, https://arxiv.org/abs/2201.00007; Du et al., NeurIPS 2020; the module
        names all.

    Example:
        >>> student, label = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> fused_kd_loss(student, [student, student], label, fusion="ebkd").item()
        0.0
    """
    return _fused(
        student_logits,
        teacher_logits_list,
        label,
        fusion=fusion,
        temperature=temperature,
        official_scale=official_scale,
        soft_cross_entropy=soft_cross_entropy,
        max_weight=max_weight,
        unit_gradients=unit_gradients,
    ).loss


def _fused(
    student_logits: Tensor,
    teacher_logits_list: Sequence[Tensor],
    label: Tensor,
    *,
    fusion: Fusion,
    temperature: float,
    official_scale: bool,
    soft_cross_entropy: bool,
    max_weight: float,
    unit_gradients: bool,
) -> _Fused:
    check_temperature(temperature)
    _check_switches(fusion, official_scale, soft_cross_entropy)
    teachers = _stacked(student_logits, teacher_logits_list)
    count = len(teachers)
    match fusion:
        case "average_logit":
            mean = teachers.mean(dim=0)
            return _Fused(softened_kl(student_logits, mean, temperature).mean(), None)
        case "average_probability":
            # A mean of probabilities, as the logits that have it at this temperature.
            log_p = (teachers / temperature).log_softmax(dim=2)
            mean = temperature * log_p.logsumexp(dim=0)
            return _Fused(softened_kl(student_logits, mean, temperature).mean(), None)
        case "average_loss":
            return _Fused(_divergences(student_logits, teachers, temperature).mean(), None)
        case "ebkd":
            weights = entropy_weights(teachers)
            scale = (count - 1) / count
        case "ca_mkd":
            _check_label(label, student_logits)
            weights = confidence_weights(teachers, label)
            scale = 1 / count
        case "aekd":
            divergences = _divergences(student_logits, teachers, temperature).mean(dim=1)
            weights = agreement_weights(
                student_logits,
                teachers,
                temperature=temperature,
                max_weight=max_weight,
                unit_gradients=unit_gradients,
            ).to(divergences.dtype)
            return _Fused((weights * divergences).sum(), weights)
        case _:
            raise SettingsError(
                f"fusion must be one of {', '.join(Fusion.__args__)}; got {fusion!r}"
            )
    terms = _divergences(student_logits, teachers, temperature, cross_entropy=soft_cross_entropy)
    loss = (weights * terms).sum(dim=0).mean()
    return _Fused(loss * scale if official_scale and count > 1 else loss, weights.mean(dim=1))


def _stacked(student_logits: Tensor, teacher_logits_list: Sequence[Tensor]) -> Tensor:
    """Of all teachers ``(n, B, K)``, float32 or wider, without gradient."""
    if not teacher_logits_list:
        raise ShapeError(
            "give the logits of one teacher at least, as a list of (batch, classes); got none"
        )
    for teacher_logits in teacher_logits_list:
        check_logits(student_logits, teacher_logits)
    return torch.stack([widened(logits.detach()) for logits in teacher_logits_list])


def _divergences(
    student_logits: Tensor, teachers: Tensor, temperature: float, *, cross_entropy: bool = False
) -> Tensor:
    """Of each teacher and image ``(n, B)``: KL times T squared; or soft cross-entropy alone."""
    if not cross_entropy:
        return torch.stack([softened_kl(student_logits, one, temperature) for one in teachers])
    student_log_p = (widened(student_logits) / temperature).log_softmax(dim=1)
    return -((teachers / temperature).softmax(dim=2) * student_log_p).sum(dim=2)


def _check_switches(fusion: str, official_scale: bool, soft_cross_entropy: bool) -> None:
    if official_scale and fusion not in ("ebkd", "ca_mkd"):
        raise SettingsError(
            f"official_scale is of fusion 'ebkd' and 'ca_mkd'; got it for {fusion!r}. Leave it out"
        )
    if soft_cross_entropy and fusion != "ca_mkd":
        raise SettingsError(
            f"soft_cross_entropy is of fusion 'ca_mkd'; got it for {fusion!r}. Leave it out"
        )


def _check_label(label: Tensor, logits: Tensor) -> None:
    if label.shape != logits.shape[:1]:
        raise ShapeError(
            f"label must be (batch,), one class index for each image; got {tuple(label.shape)} "
            f"for logits {tuple(logits.shape)}"
        )


def confidence_hint_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    head_logits_list: Sequence[Tensor],
    label: Tensor,
    *,
    official_scale: bool = False,
    detach_weights: bool = False,
) -> Tensor:
    r"""CA-MKD's distance of feature maps, by how well each teacher's classifier reads them.

    .. math:: \frac{1}{B} \sum_b \sum_k v_{bk} \, \frac{1}{D_k} \| f^{s,k}_b - f^k_b \|^2, \quad
        v_{bk} = \frac{1 - \mathrm{softmax}_k \, CE(h^k_b, y_b)}{n - 1}

    The mean over each map's D entries, the weighted sum over the n teachers, the mean over the
    batch.

    Args:
        student_features: for each teacher, the student's map in that teacher's shape.
        teacher_features: of each teacher, ``(B, ...)``; none receives a gradient.
        head_logits_list: for each teacher, ``(B, K)``: what its classifier says of the student's
            map.
        label: ``(B,)`` int64 in [0, K), or -1 for "unknown", where all teachers count alike.
        official_scale: divide by n once more, as the authors' code does.
        detach_weights: no gradient through the weights, which that code lets flow.

    Returns:
        Scalar, float32 or wider, ``>= 0``; 0 exactly when all maps agree.

    Raises:
        ShapeError: if lists differ in length, are empty, or a pair of maps in shape.

    Source:
        Zhang et al. 2022, https://arxiv.org/abs/2201.00007.

    Example:
        >>> maps, scores = [torch.zeros(1, 2, 3, 3)] * 2, [torch.zeros(1, 5)] * 2
        >>> confidence_hint_loss(maps, [m + 2 for m in maps], scores, torch.tensor([0])).item()
        4.0
    """
    counts = len(student_features), len(teacher_features), len(head_logits_list)
    if len(set(counts)) > 1 or not counts[0]:
        raise ShapeError(
            "give as many student maps as teacher maps and logits, one of each for every teacher; "
            f"got {counts[0]}, {counts[1]} and {counts[2]}"
        )
    for ours, theirs in zip(student_features, teacher_features, strict=True):
        if ours.shape != theirs.shape:
            raise ShapeError(
                "each student map must have its teacher's shape; got student "
                f"{tuple(ours.shape)}, teacher {tuple(theirs.shape)}. Bring it there first, by a "
                "convolution for example"
            )
    weights = confidence_weights(torch.stack([widened(z) for z in head_logits_list]), label)
    weights = weights.detach() if detach_weights else weights
    distances = torch.stack(
        [
            (widened(ours) - widened(theirs.detach())).square().flatten(start_dim=1).mean(dim=1)
            for ours, theirs in zip(student_features, teacher_features, strict=True)
        ]
    )
    loss = (weights * distances).sum(dim=0).mean()
    return loss / counts[0] if official_scale else loss


class MultiTeacher(Method[MultiTeacherConfig]):
    """See the module docstring.

    Args:
        config: its settings.
        adapters: from the student's map to each teacher's; none without the distance of maps.
    """

    def __init__(self, config: MultiTeacherConfig, *, adapters: Sequence[Adapter] = ()) -> None:
        super().__init__(config)
        self.adapters = nn.ModuleList(adapters)
        # CA-MKD weighs teachers by one label an image; the others read no label but by the
        # cross-entropy.
        self.takes_mixed = config.fusion != "ca_mkd"

    @classmethod
    def needs(cls, config: MultiTeacherConfig) -> Needs:
        """What each teacher says by itself; with the distance of maps, these and classifiers."""
        if not config.hint_weight:
            return Needs(members=True)
        return Needs(
            members=True,
            student_layers=(config.student_layer,),
            teacher_layers=(config.teacher_layer,),
            teacher_classifier=True,
        )

    @classmethod
    def from_probe(cls, config: MultiTeacherConfig, probe: Probe) -> Self:
        """Check the teachers, and make an adapter for each where maps are compared.

        Raises:
            ModelError: if there is one teacher alone, or the mean of a teacher's map is not what
                its classifier takes.
            SettingsError: if so many teachers cannot have such a ``max_weight``.
        """
        teachers = probe.teacher.members
        if len(teachers) < 2:
            raise ModelError(
                "multi_teacher fuses two teachers or more, and got one; give several (--teacher A "
                "--teacher B), or choose a method of one teacher, such as kd"
            )
        if config.fusion == "aekd":
            check_max_weight(config.max_weight, len(teachers))
        if not config.hint_weight:
            return cls(config)
        student, adapters = probe.feature("student", config.student_layer), []
        for number, teacher in enumerate(teachers, start=1):
            feature = teacher.features[config.teacher_layer]
            adapter = make_adapter(student, feature, purpose="map", config=_ADAPTER)
            vector = adapter.alignment.teacher_layout.as_vector(feature)
            misfit = classifier_misfit(vector, teacher)
            if misfit is not None:
                raise ModelError(
                    "ca_mkd asks each teacher's classifier what it makes of the student's map, "
                    "and it must take the mean of the teacher's layer over its places; of teacher "
                    f"{number}, layer {config.teacher_layer!r} {tuple(feature.shape)} {misfit}. "
                    "Name the layer just before the teachers' pooling (method.teacher_layer), or "
                    "leave the maps out (method.hint_weight=0)"
                )
            adapters.append(adapter)
        return cls(config, adapters=adapters)

    def describe(self) -> tuple[str, ...]:
        """What stands between the student's map and each teacher's."""
        names = self.config.student_layer, self.config.teacher_layer
        return tuple(
            f"teacher {number}: {adapter.describe(*names)}"
            for number, adapter in enumerate(self._each(), start=1)
        )

    def _each(self) -> list[Adapter]:
        return [adapter for adapter in self.adapters if isinstance(adapter, Adapter)]

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy, the fused divergence, and where maps are compared their distance."""
        config = self.config
        ce = self.label_loss(student.logits, batch)
        fused = _fused(
            student.logits,
            [member.logits for member in teacher.members],
            batch.label,
            fusion=config.fusion,
            temperature=config.temperature,
            official_scale=config.official_scale,
            soft_cross_entropy=config.soft_cross_entropy,
            max_weight=config.max_weight,
            unit_gradients=config.unit_gradients,
        )
        total = config.ce_weight * ce + config.kd_weight * fused.loss
        parts = {"ce": ce, "kd": fused.loss}
        if self.adapters:
            hint = self._hint(batch, student, teacher)
            # Times 0 and not left out: parameters without any gradient would rest for good.
            started = float(progress.epoch >= config.hint_start_epoch)
            total = total + started * config.hint_weight * hint
            parts["hint"] = hint
        if fused.weights is not None:
            weights = fused.weights.unbind()
            parts |= {f"weight{number}": w for number, w in enumerate(weights, start=1)}
        return LossTerms(total=total, parts=parts)

    def _hint(self, batch: Batch, student: Outputs, teacher: Outputs) -> Tensor:
        ours, theirs, heads = [], [], []
        for adapter, member in zip(self._each(), teacher.members, strict=True):
            feature = student.features[self.config.student_layer]
            pair = adapter(feature, member.features[self.config.teacher_layer])
            classifier = member.classifier
            assert classifier is not None
            ours.append(pair.student)
            theirs.append(pair.teacher)
            heads.append(
                F.linear(pair.student.mean(dim=(2, 3)), classifier.weight, classifier.bias)
            )
        return confidence_hint_loss(
            ours,
            theirs,
            heads,
            batch.label,
            official_scale=self.config.official_scale,
            detach_weights=self.config.detach_hint_weights,
        )
