import pytest
import torch

from limbeck.core.errors import SettingsError
from limbeck.engine.config import TrainConfig


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_computes_in_the_asked_precision(dtype):
    with TrainConfig(amp_dtype=dtype).autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, dtype)


def test_by_default_nothing_is_cast():
    with TrainConfig().autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(
    "fields",
    [
        {"batch_size": 0},
        {"grad_accum_steps": -1},
        {"amp_dtype": "fp16"},
        {"model_ema_decay": 1.0},
        {"checkpoint_seconds": 0},
        {"workers": -1},
    ],
    ids=str,
)
def test_impossible_values_are_refused_with_the_fields_name(fields):
    with pytest.raises(SettingsError, match=next(iter(fields))):
        TrainConfig(**fields)
