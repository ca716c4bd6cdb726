r"""DML: networks that learn together from scratch, each from the labels and from all others.

.. math:: \mathcal{L}_k = w_{ce} \, CE(z^k, y) + w_{m} \, \frac{1}{K - 1} \sum_{l \ne k}
    KL(p^l \,\|\, p^k)

There is no teacher. The student's peers are named with ``--peers resnet32,wrn_16_2``, models of any
kind, each drawn from a seed of its own; without names there is one, another network like the
student. Networks learn at the same time, in training mode, each with its own optimiser state and
batch-norm statistics, and what the others say is constant for each. The run's student is the one
that is evaluated and exported; at the end its peers, which are saved beside it, are judged as
well, and all together: "ensemble" is the mean of their probabilities.

Source: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018,
    https://arxiv.org/abs/1706.00384, section 3.
Defaults: T = 1 and weights 1, as in the paper. The networks' updates come from the same step's
    predictions, as in the authors' code.
Differs from the source: with ``update="alternating"``, networks are updated one after the other
    and their predictions made anew after each, as in the paper's text; batch-norm statistics take
    notice of each image once. With ``reduction="sum"`` the divergences are added up, as in the
    authors' code, whose KL also has 1e-8 in two places: 4e-8 less on typical scores.
    ``target="mean"`` is the paper's variant with one divergence, from the mean of the others'
    probabilities. The logged "loss" is the sum over all networks; "peer1" and so on are the
    peers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, model_validator
from torch import Tensor

from limbeck.core.types import Batch, LossTerms, Outputs, Progress
from limbeck.functional.divergences import kd_loss
from limbeck.functional.logits import check_logits
from limbeck.functional.precision import widened
from limbeck.methods.base import Method, MethodConfig, Needs, OwnNetwork, Stage, cross_entropy

__all__ = ["DML", "DMLConfig", "dml_stages", "mutual_loss"]

Target: TypeAlias = Literal["each", "mean"]
Reduction: TypeAlias = Literal["mean", "sum"]


class DMLConfig(MethodConfig):
    """Settings of all networks.

    Attributes:
        peers: networks that learn beside the student, by model name; an empty one is like the
            student.
        update: "simultaneous": all networks from the same predictions; "alternating": one after
            the other, with predictions made anew.
        target: "each": a divergence from every other network; "mean": one from the mean of their
            probabilities.
        reduction: over the other networks, where there are several divergences.
        ce_weight: of the cross-entropy with the labels.
        mutual_weight: of the divergences.
    """

    peers: tuple[OwnNetwork, ...] = (OwnNetwork(),)
    update: Literal["simultaneous", "alternating"] = "simultaneous"
    target: Target = "each"
    reduction: Reduction = "mean"
    ce_weight: NonNegativeFloat = 1.0
    mutual_weight: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def _peers_learn(self) -> Self:
        if not self.peers:
            raise ValueError(
                "peers: networks that learn from each other are two at least; name another one "
                "(--peers), or leave this out for one more like the student"
            )
        trained = [peer.run for peer in self.peers if peer.run is not None]
        if trained:
            raise ValueError(
                f"peers learn from scratch and are given by model name; {', '.join(trained)} is "
                "the folder of a trained network"
            )
        return self


def mutual_loss(
    student_logits: Tensor,
    peer_logits_list: Sequence[Tensor],
    label: Tensor,
    *,
    ce_weight: float = 1.0,
    mutual_weight: float = 1.0,
    target: Target = "each",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One network's loss of mutual learning.

    .. math:: w_{ce} \, CE(z^k, y) + w_{m} \, \frac{1}{K - 1} \sum_{l \ne k} KL(p^l \,\|\, p^k)

    KL is the sum over classes, the mean over the batch, at temperature 1.

    Args:
        student_logits: ``(B, K)``, raw, of the network whose loss it is.
        peer_logits_list: of all others, ``(B, K)`` each, raw; none receives a gradient. Without
            any, the cross-entropy is left.
        label: ``(B,)`` int64 in [0, K), or -1 for "unknown".
        ce_weight: of the cross-entropy.
        mutual_weight: of the divergences.
        target: "mean" has one divergence, from the mean of the others' probabilities.
        reduction: "sum" leaves out the factor 1 / (K - 1), as the authors' code does.

    Returns:
        Scalar in nats, float32 or wider, ``>= 0``.

    Raises:
        ShapeError: if logits differ in shape or are not 2-D.
        ValueError: if target or reduction have other names.

    Source:
        Zhang et al. 2018, https://arxiv.org/abs/1706.00384, section 3.

    Example:
        >>> scores, label = torch.zeros(2, 4), torch.tensor([0, 3])
        >>> round(mutual_loss(scores, [scores], label).exp().item(), 3)
        4.0
    """
    ce = cross_entropy(student_logits, label)
    mutual = _divergence(student_logits, peer_logits_list, target=target, reduction=reduction)
    return ce_weight * ce + mutual_weight * mutual


def _divergence(
    student_logits: Tensor,
    peer_logits_list: Sequence[Tensor],
    *,
    target: Target,
    reduction: Reduction,
) -> Tensor:
    peers = list(peer_logits_list)
    for peer in peers:
        check_logits(student_logits, peer)
    if not peers:
        return widened(student_logits).new_zeros(())
    match target:
        case "each":
            pass
        case "mean":
            log_p = torch.stack([F.log_softmax(widened(peer), dim=1) for peer in peers])
            peers = [log_p.logsumexp(dim=0)]  # up to a constant, which the softmax takes away
        case _:
            raise ValueError(f"target must be 'each' or 'mean', got {target!r}")
    losses = torch.stack([kd_loss(student_logits, peer, temperature=1.0) for peer in peers])
    match reduction:
        case "mean":
            return losses.mean()
        case "sum":
            return losses.sum()
        case _:
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")


class DML(Method[DMLConfig]):
    """One network's part; see the module docstring. The others are ``teacher.members``."""

    takes_mixed = True

    @classmethod
    def needs(cls, config: DMLConfig) -> Needs:
        """No teacher."""
        del config
        return Needs(teacher=False)

    def forward(
        self, batch: Batch, student: Outputs, teacher: Outputs, progress: Progress
    ) -> LossTerms:
        """Weighted sum of cross-entropy and the divergences from the others."""
        del progress
        config = self.config
        ce = self.label_loss(student.logits, batch)
        mutual = _divergence(
            student.logits,
            [member.logits for member in teacher.members],
            target=config.target,
            reduction=config.reduction,
        )
        return LossTerms(
            total=config.ce_weight * ce + config.mutual_weight * mutual,
            parts={"ce": ce, "mutual": mutual},
        )


def dml_stages(config: DMLConfig) -> tuple[Stage, ...]:
    """One stage, in which all networks learn."""
    return (
        Stage(
            name="train",
            method=DML,
            config=config,
            peers=config.peers,
            in_turn=config.update == "alternating",
            ensemble=tuple(f"peer{number}" for number in range(1, len(config.peers) + 1)),
        ),
    )
