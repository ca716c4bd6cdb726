r"""FitNets: first imitate a middle layer of the teacher, then distil; the paper's two stages.

.. math:: \mathcal{L}_1 = w_{hint} \, \frac{1}{BCHW} \| r(f^s) - f^t \|^2
.. math:: \mathcal{L}_2 = w_{ce} \, CE(z^s, y) + \lambda \, KL(p^t_T \,\|\, p^s_T),
    \quad \lambda \text{ falling linearly}

Stage "hint" trains the student up to its guided layer, and the regressor r: a convolution without
padding whose kernel makes the two maps equal in size, and the teacher layer's non-linearity. Where
the student's map is the smaller, or a layer gives no map (B, C, H, W), the student's is resized to
the teacher's first, and the convolution is 1x1. The forward pass ends there, so that later layers
and their statistics stay as they were. Stage "distil" drops the regressor and trains the whole
student.

Source: Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR
    2015, https://arxiv.org/abs/1412.6550, eq. 2 and 3, section 2.3.
Defaults: T = 3 and lambda from 4 to 1, without a factor T squared, as in the paper. Both networks'
    "stage2", as the benchmark codes' FitNet, for the paper's middle layers. The hint stage has 30
    of 240 epochs at the base learning rate: RepDistiller's other two-stage methods (Tian et al.,
    ICLR 2020, https://arxiv.org/abs/1910.10699) have 30, on top of 240. No source has two-stage
    settings for these networks.
Differs from the source: the hint loss is the mean over all entries, times a weight, where the
    paper has half the sum for each image: its optimiser, RMSProp, does not see the scale, and SGD
    does. KL in place of cross-entropy between the networks: lower by the teacher's entropy, with
    the same gradient. Stages have a fixed number of epochs, where the paper stops each after 100
    without gain on validation. The non-linearity is ReLU if the teacher's layer is nowhere
    negative on a first batch, and none otherwise; the paper's networks have maxout. The paper's
    own code differs from its text in the schedule of lambda and in the reduction; the text is
    followed. The paper refuses a guided layer smaller than the hint, and knows convolutional
    networks alone: here the smaller map is interpolated bilinearly, tokens become the map of their
    places, without class and register tokens, and the student's larger map is pooled to theirs.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.divergences import kd_loss
from limbeck.functional.hints import hint_loss, valid_convolution
from limbeck.methods.adapters import Alignment, LayoutConfig, align
from limbeck.methods.base import Method, MethodConfig, Needs, Probe, Stage

__all__ = ["FitNetConfig", "FitNetDistil", "FitNetHint", "fitnet_stages"]


class FitNetConfig(MethodConfig):
    """Settings of both stages.

    Attributes:
        student_layer: the guided layer, a feature map, by name or meaning.
        teacher_layer: the hint, a feature map.
        student_layout: how the student's layer lies, where its shape leaves it open.
        teacher_layout: the same of the teacher's.
        hint_share: share of the run's epochs that go to the hint stage, in (0, 1).
        hint_weight: of the hint loss, the hint stage's only term.
        temperature: of the distil stage.
        ce_weight: of the cross-entropy with the labels, in the distil stage.
        kd_weight_start: lambda, the divergence's weight, in the distil stage's first step.
        kd_weight_end: lambda in its last step.
    """

    student_layer: str = "stage2"
    teacher_layer: str = "stage2"
    student_layout: LayoutConfig = LayoutConfig()
    teacher_layout: LayoutConfig = LayoutConfig()
    hint_share: float = Field(0.125, gt=0, lt=1)
    hint_weight: PositiveFloat = 1.0
    temperature: PositiveFloat = 3.0
    ce_weight: NonNegativeFloat = 1.0
    kd_weight_start: NonNegativeFloat = 4.0
    kd_weight_end: NonNegativeFloat = 1.0


class FitNetHint(Method[FitNetConfig]):
    """The first stage; see the module docstring.

    Args:
        config: of both stages.
        alignment: of the two layers, as maps.
        regressor: from the student's map to the teacher's shape.
    """

    takes_mixed = True

    def __init__(self, config: FitNetConfig, *, alignment: Alignment, regressor: nn.Module) -> None:
        super().__init__(config)
        self.alignment = alignment
        self.regressor = regressor

    @classmethod
    def needs(cls, config: FitNetConfig) -> Needs:
        """One layer of each network, and nothing of the student behind it."""
        return Needs(
            student_layers=(config.student_layer,),
            teacher_layers=(config.teacher_layer,),
            stop_student=True,
        )

    @classmethod
    def from_probe(cls, config: FitNetConfig, probe: Probe) -> Self:
        """Make the regressor for the two layers' shapes."""
        features = (
            probe.feature("student", config.student_layer),
            probe.feature("teacher", config.teacher_layer),
        )
        alignment = align(
            *features,
            purpose="map",
            student_layout=config.student_layout,
            teacher_layout=config.teacher_layout,
        )
        fits = all(s >= t for s, t in zip(*alignment.grids, strict=True))
        if not (alignment.convolutional and fits):
            alignment = alignment.resized("teacher")
        maps = alignment(*features)
        convolution = valid_convolution(*maps)
        # The hint and its imitation need the same range: a ReLU never reaches a negative value.
        signed = bool((maps.teacher < 0).any())
        regressor = convolution if signed else nn.Sequential(convolution, nn.ReLU())
        return cls(config, alignment=alignment, regressor=regressor)

    def describe(self) -> tuple[str, ...]:
        """The two layers and the regressor between them."""
        layers = self.config.student_layer, self.config.teacher_layer
        return (self.alignment.describe(*layers, self.regressor),)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """The hint loss alone."""
        del batch, progress
        maps = self.alignment(
            student.features[self.config.student_layer],
            teacher.features[self.config.teacher_layer],
        )
        hint = hint_loss(self.regressor(maps.student), maps.teacher)
        return LossTerms(total=self.config.hint_weight * hint, parts={"hint": hint})


class FitNetDistil(Method[FitNetConfig]):
    """The second stage; see the module docstring."""

    takes_mixed = True

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Cross-entropy and the divergence at its weight of this step."""
        config = self.config
        ce = self.label_loss(student.logits, batch)
        # kd_loss has Hinton's factor T squared, which FitNets does not.
        scaled = kd_loss(student.logits, teacher.logits, temperature=config.temperature)
        kd = scaled / config.temperature**2
        done = progress.step / max(1, progress.num_steps - 1)
        weight = config.kd_weight_start + (config.kd_weight_end - config.kd_weight_start) * done
        return LossTerms(total=config.ce_weight * ce + weight * kd, parts={"ce": ce, "kd": kd})


def fitnet_stages(config: FitNetConfig) -> tuple[Stage, ...]:
    """The hint stage, then the distil stage."""
    share = config.hint_share
    return (
        Stage(name="hint", method=FitNetHint, config=config, share=share, schedule="constant"),
        Stage(name="distil", method=FitNetDistil, config=config, share=1 - share),
    )
