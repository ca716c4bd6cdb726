"""What a finished run's networks answered: kept in one file, and judged by every metric.

N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from numpy.typing import ArrayLike
from torch import Tensor

from limbeck.core.errors import LimbeckError
from limbeck.core.types import UNLABELLED
from limbeck.engine.evaluate import KeptLogits
from limbeck.metrics.arrays import LabelledLogits
from limbeck.metrics.scorecard import scorecard
from limbeck.metrics.scores import is_long_tailed
from limbeck.models import save_weights

__all__ = ["MOST_BYTES", "judge_answers", "write_predictions"]

MOST_BYTES = 64 * 2**20  # a larger file is not written
_STUDENTS = ("last", "best_on_validation")


def write_predictions(answers: Mapping[str, KeptLogits], path: Path) -> str | None:
    """Write all logits and labels as ``predictions.safetensors``, unless they are too many.

    Args:
        answers: split to what was kept of it. A network's logits are stored as
            ``SPLIT.NETWORK``, float32 ``(N, K)``; the labels as ``SPLIT.label``, int64.
        path: the file.

    Returns:
        None; or, where they take more than :data:`MOST_BYTES`, a sentence that says so.

    Raises:
        RunFolderError: if it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for split, kept in answers.items():
        tensors[f"{split}.label"] = kept.label
        tensors |= {f"{split}.{name}": logits for name, logits in kept.logits.items()}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if size > MOST_BYTES:
        return (
            f"the logits are not kept: {size / 2**20:,.0f} MiB, and {path.name} holds at most "
            f"{MOST_BYTES / 2**20:.0f}; the scores of summary.json are there all the same"
        )
    if tensors:
        save_weights(tensors, path)
    return None


def judge_answers(
    test: KeptLogits | None, val: KeptLogits | None, train_counts: ArrayLike | None = None
) -> tuple[dict[str, dict[str, float | None]], list[str]]:
    """Every number of the scorecard on the test split, by network.

    Images without a label do not count. Calibration is fitted on validation where there is one;
    fidelity needs the answers of "teacher", its control those of "independent". Accuracy by the
    number of training images is told where these have a long tail.

    Args:
        test: answers of "last", "best_on_validation", "teacher", "independent", as far as there
            are such networks; None without a test split.
        val: the same on validation.
        train_counts: ``(K,)``, labelled training images of each class.

    Returns:
        Network to metric to value, None in place of NaN; and a sentence for each network that
        could not be judged.
    """
    scores: dict[str, dict[str, float | None]] = {}
    faults: list[str] = []
    if test is None or not bool((test.label != UNLABELLED).any()):
        return scores, faults
    held_out = _labelled(test)
    fitted_on = {} if val is None else _labelled(val)
    if train_counts is not None and not is_long_tailed(train_counts):
        train_counts = None
    others = {
        name: held_out[name].logits for name in ("teacher", "independent") if name in held_out
    }
    for name, (logits, label) in held_out.items():
        taught = name in _STUDENTS and "teacher" in others
        try:
            card = scorecard(
                logits,
                label,
                validation=fitted_on.get(name),
                teacher_logits=others["teacher"] if taught else None,
                independent_teacher_logits=others.get("independent") if taught else None,
                train_counts=train_counts,
            )
        except LimbeckError as error:  # a network that has diverged, of a run that is done
            faults.append(f"no scores of {name}: {error}")
            continue
        scores[name] = {key: None if math.isnan(value) else value for key, value in card.items()}
    return scores, faults


def _labelled(kept: KeptLogits) -> dict[str, LabelledLogits]:
    """By network, the images that have a label; nothing where none has."""
    known = kept.label != UNLABELLED
    if not bool(known.any()):
        return {}
    label = kept.label[known].numpy()
    return {
        name: LabelledLogits(logits[known].numpy(), label) for name, logits in kept.logits.items()
    }
