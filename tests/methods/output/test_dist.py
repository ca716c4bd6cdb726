"""B batch, K classes; float64 and 1e-9 unless a test says otherwise."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr

from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import dist_loss
from limbeck.methods.output.dist import DIST, DISTConfig, pearson_distance

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["dist"]
EXACT = {"rtol": 0.0, "atol": 1e-9}

ZS = torch.tensor(
    [[1.0, -0.5, 2.0, 0.3, -1.2], [0.1, 0.4, -0.9, 1.5, 0.0], [-2.0, 0.7, 0.7, 0.2, 1.1]],
    dtype=torch.float64,
)
ZT = torch.tensor(
    [[2.5, -1.0, 3.0, 0.0, -2.0], [0.0, 1.0, -1.5, 4.0, 0.5], [-1.0, 2.2, 0.1, -0.3, 0.6]],
    dtype=torch.float64,
)
Y = torch.tensor([2, 3, 4])
S = torch.sin(torch.arange(12, dtype=torch.float64) + 0.5).reshape(4, 3)
T3 = torch.cos(0.7 * torch.arange(12, dtype=torch.float64)).reshape(4, 3)


def terms(**settings):
    batch = Batch(index=torch.arange(3), image=torch.zeros(3, 1, 2, 2), label=Y)
    return DIST(DISTConfig(**settings))(batch, Outputs(ZS), Outputs(ZT), Progress())


def gradient():
    student = ZS.clone().requires_grad_()
    dist_loss(student, ZT).backward()
    return student.grad


COMPUTED = {
    "T=1": lambda: dist_loss(ZS, ZT),
    "T=4": lambda: dist_loss(ZS, ZT, temperature=4),
    **{f"inter T={t}": lambda t=t: terms(temperature=t).parts["inter"] for t in (1, 4)},
    **{f"intra T={t}": lambda t=t: terms(temperature=t).parts["intra"] for t in (1, 4)},
    "CE + 2 T=1": lambda: terms(temperature=1).total,
    "CE + 2 T=4": lambda: terms().total,
    "one image T=1": lambda: dist_loss(ZS[:1], ZT[:1]),
    **{f"gradient T=1 [0,{k}]": lambda k=k: gradient()[0, k] for k in range(5)},
    "sines and cosines T=1": lambda: dist_loss(S, T3),
    "T=1 in float32": lambda: dist_loss(ZS.float(), ZT.float()),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name):
    golden = GOLDEN[name]
    assert abs(COMPUTED[name]().item() - golden["value"]) < 0.51 * 10 ** -golden["decimals"]


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


@pytest.fixture
def logits(generator):
    """Student's and teacher's, ``(6, 4)``."""
    return torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)


@pytest.fixture
def probabilities(logits):
    return F.softmax(logits, dim=2)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_it_is_one_minus_scipys_correlation_over_classes_and_over_images(logits, temperature):
    """1e-6: the 1e-8 beside the norms."""
    student, teacher = F.softmax(logits / temperature, dim=2).numpy()
    inter = sum(1 - pearsonr(s, t).statistic for s, t in zip(student, teacher, strict=True)) / 6
    intra = sum(1 - pearsonr(s, t).statistic for s, t in zip(student.T, teacher.T, strict=True)) / 4
    found = dist_loss(*logits, inter_weight=2, intra_weight=3, temperature=temperature)
    assert abs(found.item() - temperature**2 * (2 * inter + 3 * intra)) < 1e-5


def test_networks_that_agree_have_next_to_no_loss(logits):
    assert 0 <= dist_loss(logits[1], logits[1]) < 1e-5


@pytest.mark.parametrize("whose", [0, 1])
def test_adding_a_constant_to_a_row_changes_nothing(logits, whose):
    expected = dist_loss(*logits, temperature=4)
    shifted = logits.clone()
    shifted[whose] += torch.linspace(-9, 30, 6)[:, None]
    torch.testing.assert_close(dist_loss(*shifted, temperature=4), expected, **EXACT)


@pytest.mark.parametrize("dim", [1, 2], ids=["images", "classes"])
def test_reordering_both_networks_alike_changes_nothing(logits, dim, generator):
    order = torch.randperm(logits.shape[dim], generator=generator)
    found = dist_loss(*logits.index_select(dim, order))
    torch.testing.assert_close(found, dist_loss(*logits), **EXACT)


def test_swapping_the_networks_changes_nothing(logits):
    torch.testing.assert_close(dist_loss(*logits.flip(0)), dist_loss(*logits), **EXACT)


def test_a_rows_scale_and_offset_are_free_within_it(probabilities):
    """1e-6: the 1e-8 beside the norms is not scaled with them."""
    student, teacher = probabilities
    scale, offset = torch.tensor([[0.5], [2], [9], [1], [3], [7]]), torch.arange(6)[:, None]
    changed = scale * student + offset
    torch.testing.assert_close(
        pearson_distance(changed, teacher), pearson_distance(student, teacher), rtol=0, atol=1e-6
    )
    assert (
        abs(pearson_distance(changed.T, teacher.T) - pearson_distance(student.T, teacher.T)) > 0.1
    )


def test_each_part_lies_between_zero_and_two(generator):
    for _ in range(20):
        student, teacher = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
        assert 0 <= pearson_distance(student, teacher) <= 2
    assert abs(pearson_distance(student, -student) - 2) < 1e-6


def test_the_size_of_logits_counts(logits):
    assert abs(dist_loss(3 * logits[0], logits[1]) - dist_loss(*logits)) > 1e-2


def test_the_temperature_squared_is_a_factor(logits):
    found = dist_loss(4 * logits[0], 4 * logits[1], temperature=4)
    torch.testing.assert_close(found, 16 * dist_loss(*logits), **EXACT)


def test_a_batch_of_one_has_nothing_to_correlate_over():
    assert dist_loss(ZS[:1], ZT[:1], inter_weight=0) == 1
    student = ZS[:1].clone().requires_grad_()
    dist_loss(student, ZT[:1], inter_weight=0).backward()
    assert (student.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_student_that_answers_all_alike_has_no_huge_gradient(dtype):
    student = torch.zeros(3, 5, dtype=dtype, requires_grad=True)
    loss = dist_loss(student, ZT.to(dtype))
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(2.0, dtype=dtype))
    assert student.grad.abs().max() < 1


def test_the_teacher_receives_no_gradient(logits):
    student, teacher = (z.clone().requires_grad_() for z in logits)
    dist_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_gathering_changes_nothing_for_one_process():
    assert terms(gather_batch=True).total == terms().total


def test_two_processes_that_gather_train_as_one_on_all_images(tmp_path):
    """Loss and gradient of the intra term, averaged as DDP averages, are those of one batch."""
    program = """
        import torch
        import torch.distributed as dist
        from limbeck.core.types import Batch, Outputs, Progress
        from limbeck.engine.distributed import process_group
        from limbeck.methods.output.dist import DIST, DISTConfig

        def terms(student, teacher, gather):
            count = len(student)
            batch = Batch(index=torch.arange(count), image=torch.zeros(count, 1, 1, 1),
                          label=torch.full((count,), -1))
            method = DIST(DISTConfig(gather_batch=gather))
            return method(batch, Outputs(student), Outputs(teacher), Progress())

        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, 8, 5, dtype=torch.float64, generator=generator)
        weight = torch.eye(5, dtype=torch.float64, requires_grad=True)
        whole = terms(student @ weight, teacher, False)
        expected, = torch.autograd.grad(whole.total, weight)
        with process_group("cpu") as world:
            part = slice(4 * world.rank, 4 * world.rank + 4)
            shared = terms(student[part] @ weight, teacher[part], True)
            found, = torch.autograd.grad(shared.total, weight)
            values = torch.cat([found.flatten(), shared.total.detach()[None]])
            dist.all_reduce(values)
            values /= 2
            assert torch.allclose(shared.parts["intra"], whole.parts["intra"], rtol=0, atol=1e-12)
            assert torch.allclose(values[:-1], expected.flatten(), rtol=0, atol=1e-9)
            assert torch.allclose(values[-1], whole.total, rtol=0, atol=1e-9)
            alone = terms(student[part] @ weight, teacher[part], False)
            assert abs(alone.parts["intra"] - whole.parts["intra"]) > 1e-3
            print("agrees")
    """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.count("agrees") == 2, done.stdout + done.stderr
