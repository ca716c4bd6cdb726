"""What runs answered on their test images, read from their folders and counted.

N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from limbeck.core.errors import LimbeckError, NonFiniteError, RunFolderError
from limbeck.metrics.calibration import Reliability, reliability
from limbeck.metrics.scores import class_accuracy, correct

__all__ = ["Answers", "mean_class_accuracy", "pooled", "read_answers"]

_FILE = "predictions.safetensors"
_UNLABELLED = -1


@dataclass(frozen=True, kw_only=True)
class Answers:
    """One network on the labelled images of the test split.

    Attributes:
        correct: ``(N,)``, which of them it has right.
        class_images: ``(K,)``, images of each class.
        class_accuracy: ``(K,)``, top-1 in [0, 1]; NaN for a class without images.
        reliability: confidence and accuracy in bins.
    """

    correct: NDArray[np.bool_]
    class_images: NDArray[np.int64]
    class_accuracy: NDArray[np.float64]
    reliability: Reliability

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.correct)


def read_answers(run: Path, network: str = "last") -> Answers | None:
    """A network's answers on the test split.

    Args:
        run: a run's folder.
        network: "last", "best_on_validation", "teacher" or "independent".

    Returns:
        None where the run kept none of this network: they were too large, it has no labelled test
        image, or it had diverged, which its notices say.

    Raises:
        RunFolderError: if the file is damaged.
    """
    path = run / _FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            if not {"test.label", f"test.{network}"} <= names:
                return None
            label = np.asarray(file.get_tensor("test.label"))
            logits = np.asarray(file.get_tensor(f"test.{network}"))
        known = label != _UNLABELLED
        if not known.any():
            return None
        logits, label = logits[known], label[known]
        return Answers(
            correct=correct(logits, label),
            class_images=np.bincount(label, minlength=logits.shape[1]),
            class_accuracy=class_accuracy(logits, label),
            reliability=reliability(logits, label),
        )
    except NonFiniteError:
        return None
    except (OSError, SafetensorError, LimbeckError, IndexError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{path} is not what a run writes ({error}); restore it, or remove it: the report is "
            "then made without it"
        ) from None


def pooled(parts: Sequence[Reliability]) -> Reliability:
    """The images of several runs in the same bins.

    Raises:
        ValueError: if there is none.
    """
    if not parts:
        raise ValueError("there is no run to pool; give at least one")
    return Reliability(
        num_images=np.stack([part.num_images for part in parts]).sum(axis=0),
        num_correct=np.stack([part.num_correct for part in parts]).sum(axis=0),
        summed_confidence=np.stack([part.summed_confidence for part in parts]).sum(axis=0),
    )


def mean_class_accuracy(runs: Iterable[Answers]) -> NDArray[np.float64]:
    """``(K,)``: of each class, the mean over runs; NaN for a class without images."""
    means: NDArray[np.float64] = np.stack([run.class_accuracy for run in runs]).mean(axis=0)
    return means
