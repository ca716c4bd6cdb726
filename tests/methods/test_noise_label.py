import math

import pytest
import torch

from limbeck.core.errors import DataError, SettingsError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.methods.base import Probe
from limbeck.methods.noise_label import NoiseLabel, NoiseLabelConfig, noise_label_loss


def by_hand(logits, label, noise, temperature):
    """The formula, one image and class at a time; unlabelled images count for nothing."""
    losses = []
    for scores, y, e in zip(logits.tolist(), label.tolist(), noise.tolist(), strict=True):
        if y < 0:
            continue
        raised = [math.exp(((k == y) + e[k]) / temperature) for k in range(len(e))]
        normal = math.log(sum(map(math.exp, scores)))
        losses.append(
            -sum(q / sum(raised) * (z - normal) for q, z in zip(raised, scores, strict=True))
        )
    return sum(losses) / len(losses)


def probe(num_images=6, labels=None):
    outputs = Outputs(torch.zeros(2, 3))
    return Probe(
        student=outputs, teacher=outputs, num_classes=3, num_images=num_images, labels=labels
    )


def test_it_is_the_formula_by_hand(generator):
    logits, noise = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    label = torch.tensor([0, 2, -1, 1, 1])
    found = noise_label_loss(logits, label, noise, temperature=0.4)
    assert found.item() == pytest.approx(by_hand(logits, label, noise, 0.4), abs=1e-9)


def test_without_noise_and_nearly_cold_it_is_cross_entropy(generator):
    logits = torch.randn(4, 3, generator=generator)
    label = torch.tensor([0, 2, 1, 1])
    found = noise_label_loss(logits, label, torch.zeros(4, 3), temperature=0.01)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, label))


def test_an_image_keeps_its_noise_whichever_batch_it_comes_in(generator):
    method = NoiseLabel.from_probe(NoiseLabelConfig(), probe())
    logits = torch.randn(1, 3, generator=generator)
    losses = []
    for index in (4, 4, 5, 4 + len(method.noise)):
        batch = Batch(
            index=torch.tensor([index]),
            image=torch.zeros(1, 1, 2, 2),
            label=torch.tensor([1]),
        )
        progress = Progress(step=len(losses))
        losses.append(method(batch, Outputs(logits), Outputs(missing="none"), progress).total)
    assert losses[0] == losses[1] == losses[3] != losses[2]


def test_noise_has_the_variance_of_the_settings():
    method = NoiseLabel.from_probe(NoiseLabelConfig(variance=0.2), probe(3000))
    assert method.noise.shape == (3000, 3)
    assert method.noise.var().item() == pytest.approx(1, rel=0.05)
    assert NoiseLabel.from_probe(NoiseLabelConfig(), probe(10**7)).noise.shape == (4096, 3)
    batch = Batch(index=torch.tensor([2]), image=torch.zeros(1, 1, 2, 2), label=torch.tensor([0]))
    logits = torch.tensor([[0.3, -0.2, 1.0]])
    terms = method(batch, Outputs(logits), Outputs(missing="none"), Progress())
    noise = 0.2**0.5 * method.noise[2:3]
    expected = by_hand(logits, batch.label, noise, 0.15)
    assert terms.total.item() == pytest.approx(expected, rel=1e-5)


def test_it_needs_labels_and_no_teacher():
    assert not NoiseLabel.needs(NoiseLabelConfig()).teacher
    with pytest.raises(DataError, match="no training image has one"):
        NoiseLabel.from_probe(NoiseLabelConfig(), probe(2, torch.tensor([-1, -1])))


def test_labels_are_not_softened_twice():
    with pytest.raises(SettingsError, match="label_smoothing must be 0"):
        NoiseLabelConfig(label_smoothing=0.1)
