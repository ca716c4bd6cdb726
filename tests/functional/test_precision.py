import pytest
import torch

from limbeck.functional.precision import widened


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_with_the_same_values(dtype, generator):
    half = torch.randn(5, generator=generator).to(dtype)
    assert widened(half).dtype == torch.float32
    assert torch.equal(widened(half).to(dtype), half)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_wide_already_stays_the_same_tensor(dtype):
    wide = torch.zeros(2, dtype=dtype)
    assert widened(wide) is wide


def test_gradient_passes_through():
    half = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    (3 * widened(half)).sum().backward()
    assert half.grad.tolist() == [3.0, 3.0]
