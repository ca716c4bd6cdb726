"""Whether a network's classifier gives its scores from the mean of a layer, as methods assume."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from limbeck.core.types import Outputs
from limbeck.functional.precision import widened

__all__ = ["classifier_misfit"]

_AGREEMENT = 1e-3  # of the largest score, between the network's scores and those found


def classifier_misfit(vector: Tensor, outputs: Outputs) -> str | None:
    """How the classifier on these vectors misses the network's scores; None if it does not.

    Args:
        vector: ``(B, D)``, such as the mean of a layer over its places.
        outputs: the network's own, with logits and classifier.

    Example:
        >>> import torch
        >>> from limbeck.core.types import Classifier
        >>> outputs = Outputs(torch.ones(2, 3), classifier=Classifier(torch.ones(3, 4)))
        >>> classifier_misfit(torch.ones(2, 5), outputs)
        'has 5 channels, and it takes 4'
    """
    classifier = outputs.classifier
    assert classifier is not None
    if vector.shape[1] != classifier.weight.shape[1]:
        return f"has {vector.shape[1]} channels, and it takes {classifier.weight.shape[1]}"
    found = F.linear(widened(vector), classifier.weight, classifier.bias)
    difference = (found - outputs.logits).abs().max().item()
    allowed = _AGREEMENT * max(1.0, outputs.logits.abs().max().item())
    return None if difference <= allowed else f"gives scores that are off by {difference:.3g}"
