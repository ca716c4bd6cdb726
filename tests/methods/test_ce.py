import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import DataError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.methods.base import Probe
from limbeck.methods.ce import CE, CEConfig


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_is_torchs_cross_entropy_and_needs_no_teacher(smoothing, generator):
    logits = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    batch = Batch(
        index=torch.arange(5),
        image=torch.zeros(5, 1, 2, 2),
        label=torch.tensor([0, 1, 2, 2, 0]),
    )
    method = CE(CEConfig(label_smoothing=smoothing))
    terms = method(batch, Outputs(logits), Outputs(missing="no teacher"), Progress())
    expected = F.cross_entropy(logits, batch.label, label_smoothing=smoothing)
    torch.testing.assert_close(terms.total, expected, rtol=0, atol=1e-9)
    assert terms.parts.keys() == {"ce"}
    assert not CE.needs(method.config).teacher


@pytest.mark.parametrize("labels", [None, torch.tensor([-1, 0]), torch.tensor([-1, -1])])
def test_it_is_refused_where_no_training_image_has_a_label(labels):
    outputs = Outputs(torch.zeros(2, 3))
    probe = Probe(student=outputs, teacher=outputs, num_classes=3, num_images=2, labels=labels)
    if labels is not None and (labels == -1).all():
        with pytest.raises(DataError, match="ce learns from labels alone, and no training image"):
            CE.from_probe(CEConfig(), probe)
    else:
        assert CE.from_probe(CEConfig(), probe).config == CEConfig()
