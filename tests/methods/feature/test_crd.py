"""Contrastive representation distillation; B batch, n images of the set, K negatives."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import DataError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import crd_loss
from limbeck.methods.base import Probe
from limbeck.methods.feature.crd import CRD, CRDConfig, bank_bytes

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["crd"]


def sines(shape, step, start):
    """``G`` of the golden values: the sine of an arithmetic sequence, row by row."""
    count = torch.Size(shape).numel()
    return torch.sin(step * torch.arange(count, dtype=torch.float64) + start).reshape(shape)


def unit(shape, step, start):
    return F.normalize(sines(shape, step, start), dim=1)


def probe_of(student, teacher, labels, *, num_classes=4):
    return Probe(
        student=Outputs(torch.zeros(len(student), num_classes), features={"penultimate": student}),
        teacher=Outputs(torch.zeros(len(teacher), num_classes), features={"penultimate": teacher}),
        num_classes=num_classes,
        num_images=0 if labels is None else len(labels),
        labels=labels,
    )


def golden_world(monkeypatch):
    """The golden values' banks, vectors and negatives, through the whole method."""
    vectors = unit((2, 4), 1.1, 0.2), unit((2, 4), 0.6, 0.4)
    probe = probe_of(*vectors, torch.tensor([0, 1, 2, 3, 4, 5]), num_classes=6)
    config = CRDConfig(num_features=4, num_negatives=2, ce_weight=0.0, crd_weight=1.0)
    method = CRD.from_probe(config, probe).double().train()
    method.student_bank.copy_(unit((6, 4), 0.9, 0.1))
    method.teacher_bank.copy_(unit((6, 4), 0.5, 0.3))
    for embed in (method.embed_student, method.embed_teacher):
        torch.nn.init.eye_(embed.weight)
        torch.nn.init.zeros_(embed.bias)
    kept = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1]]).bool()
    monkeypatch.setattr(method, "_draw", lambda _: torch.arange(6))
    monkeypatch.setattr(method, "_of_other_classes", lambda *_: kept)
    index = torch.tensor([0, 3])
    batch = Batch(index=index, image=torch.zeros(2, 1, 4, 4), label=index)
    scores = method._logits(vectors[0], method.teacher_bank, index, torch.arange(6))
    terms = method(batch, probe.student, probe.teacher, Progress())
    all_scores = [
        [scores.positive[0], *scores.others[0, 1:3]],
        [scores.positive[1], *scores.others[1, 4:]],
    ]
    return {
        "Z of the student": method.normalizer[0],
        "Z of the teacher": method.normalizer[1],
        "contrast": terms.total,
        **{
            f"student's score [{b},{k}]": all_scores[b][k].exp() / method.normalizer[0]
            for b in range(2)
            for k in range(3)
        },
        **{f"student's bank [0,{k}] after": method.student_bank[0, k] for k in range(4)},
        "NCE": crd_loss(
            torch.tensor([0.02, 0.05], dtype=torch.float64),
            torch.tensor([[0.001, 0.004], [0.003, 0.002]], dtype=torch.float64),
            num_images=10,
        ),
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_authors_number(name, monkeypatch):
    golden = GOLDEN[name]
    computed = golden_world(monkeypatch)
    assert computed.keys() == GOLDEN.keys()
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(computed[name].item() - golden["value"]) < tolerance


# -- the loss ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 4096])
def test_where_all_scores_are_even_it_is_a_closed_form(k):
    num_images = 500
    scores = torch.full((3, k + 1), 1 / num_images, dtype=torch.float64)
    expected = math.log(1 + k) + k * math.log(1 + 1 / k)
    found = crd_loss(scores[:, 0], scores[:, 1:], num_images=num_images).item()
    assert abs(found - expected) < 1e-4  # the 1e-7 beside K / n, K + 1 times


def test_the_small_number_in_the_denominators_counts():
    """RepDistiller's loss of even scores, at 4096 negatives and 50,000 images, where 1e-7 tells."""
    scores = torch.full((2, 4097), 1 / 50_000, dtype=torch.float64)
    found = crd_loss(scores[:, 0], scores[:, 1:], num_images=50_000).item()
    assert found == pytest.approx(9.3229, abs=5e-5)
    assert math.log(4097) + 4096 * math.log(1 + 1 / 4096) == pytest.approx(9.3179, abs=5e-5)


def test_it_is_the_formula_in_plain_loops(generator):
    positive = torch.rand(3, dtype=torch.float64, generator=generator)
    negatives = torch.rand(3, 5, dtype=torch.float64, generator=generator)
    noise, total = 5 / 20, 0.0
    for b in range(3):
        total -= math.log(positive[b] / (positive[b] + noise + 1e-7))
        total -= sum(math.log(noise / (o + noise + 1e-7)) for o in negatives[b].tolist())
    assert abs(crd_loss(positive, negatives, num_images=20).item() - total / 3) < 1e-9


@pytest.mark.parametrize("shape", [(3,), (2, 5), (3, 5, 1)])
def test_scores_of_other_shapes_are_refused(shape):
    with pytest.raises(ShapeError, match="positive \\(batch,\\)"):
        crd_loss(torch.ones(3), torch.ones(shape), num_images=9)


# -- the method ----------------------------------------------------------------------------

LABELS = torch.arange(40) % 4


def make(labels=LABELS, *, size=6, seed=0, **settings):
    """The method, and a function from positions in the training set to the terms of a step."""
    generator = torch.Generator().manual_seed(seed)
    theirs, ours = torch.randn(2, len(labels), 8, generator=generator)
    settings = {"num_features": 5, "num_negatives": 12, **settings}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method = CRD.from_probe(
            CRDConfig(**settings), probe_of(ours[:size], theirs[:size], labels)
        ).train()

    def step(index, **progress):
        index = torch.as_tensor(index)
        batch = Batch(index=index, image=torch.zeros(len(index), 1, 4, 4), label=labels[index])
        outputs = [
            Outputs(torch.zeros(len(index), 4), features={"penultimate": rows[index]})
            for rows in (ours, theirs)
        ]
        return method(batch, *outputs, Progress(**progress))

    return method, step


def kept_of(method, index, **progress):
    drawn = method._draw(Progress(**progress))
    kept = method._of_other_classes(torch.as_tensor(index), drawn)
    return [drawn[row] for row in kept]


@pytest.mark.parametrize(
    "labels",
    [LABELS, torch.tensor([0] * 25 + [1, 2, 3] * 5), torch.full((40,), -1)],
    ids=["even", "one large class", "unlabelled"],
)
def test_negatives_are_k_different_images_of_other_classes(labels):
    method, _ = make(labels)
    assert method.num_negatives == 12
    for step in range(20):
        index = torch.tensor([0, 1, 39, 26])
        for position, negatives in zip(index, kept_of(method, index, step=step), strict=True):
            assert len(negatives) == len(set(negatives.tolist())) == 12
            assert position not in negatives
            if labels[position] >= 0:
                assert (labels[negatives] != labels[position]).all()


def test_every_image_of_another_class_is_drawn_equally_often():
    method, _ = make(num_negatives=6)
    counts = torch.zeros(40)
    for step in range(3000):
        counts[kept_of(method, [0], step=step)[0]] += 1
    others = counts[LABELS != 0]
    assert counts[LABELS == 0].sum() == 0
    expected = 3000 * 6 / 30
    assert ((others - expected).abs() < 5 * math.sqrt(expected * (1 - 6 / 30))).all()


def test_a_partly_labelled_set_contrasts_with_all_that_is_not_known_to_be_alike():
    labels = LABELS.clone()
    labels[20:] = -1
    method, _ = make(labels, num_negatives=30)
    own, unknown = kept_of(method, [0, 39])
    assert not set(own.tolist()) & {0, 4, 8, 12, 16}
    assert len(own) == len(unknown) == 30
    assert 39 not in unknown


def test_where_there_are_not_so_many_as_many_as_there_are():
    method, step = make(num_negatives=16384)
    assert method.num_negatives == 30
    assert torch.isfinite(step([0, 1, 2]).total)
    assert "30 negatives of other classes an image (16,384 were asked for" in method.describe()[-1]


def test_images_of_one_class_or_without_a_word_on_their_classes_are_refused():
    with pytest.raises(DataError, match="all 5 training images are of one class"):
        make(torch.zeros(5, dtype=torch.int64), size=2)
    with pytest.raises(DataError, match="needs the labels"):
        CRD.from_probe(CRDConfig(), probe_of(torch.zeros(2, 3), torch.zeros(2, 3), None))


def test_only_the_rows_of_the_batch_move_half_the_way_and_have_length_one():
    method, step = make()
    before = method.student_bank.clone(), method.teacher_bank.clone()
    step([3, 17])
    others = torch.ones(40, dtype=torch.bool)
    others[[3, 17]] = False
    for bank, old in zip((method.student_bank, method.teacher_bank), before, strict=True):
        assert torch.equal(bank[others], old[others])
        torch.testing.assert_close(bank[[3, 17]].norm(dim=1), torch.ones(2))
        assert not torch.equal(bank[[3, 17]], old[[3, 17]])


def test_the_scores_are_those_before_the_rows_move():
    """The loss of a step does not know of the step."""
    method, step = make()
    step([0, 1])
    state = {name: value.clone() for name, value in method.state_dict().items()}
    first = step([3, 17], step=4).total
    method.load_state_dict(state)
    method.eval()
    assert torch.equal(step([3, 17], step=4).total, first)
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())


def test_z_is_set_by_the_first_batch_and_never_again():
    method, step = make()
    step([0, 1, 2])
    first = method.normalizer.clone()
    assert (first > 0).all()
    step([5, 6], step=1)
    assert torch.equal(method.normalizer, first)


def test_the_first_scores_have_a_mean_of_one_over_the_number_of_images():
    method, step = make(momentum=0.0)
    recorded = []
    logits = method._logits

    def record(*args):
        recorded.append(logits(*args))
        return recorded[-1]

    method._logits = record
    step([0, 1, 2])
    kept = method._of_other_classes(torch.tensor([0, 1, 2]), method._draw(Progress()))
    for scores, z in zip(recorded, method.normalizer, strict=True):
        values = torch.cat([scores.positive, scores.others[kept]]).exp() / z
        torch.testing.assert_close(values.mean(), torch.tensor(1 / 40))


def test_both_embeddings_learn_and_the_banks_do_not():
    method, step = make()
    step([0, 1, 2]).total.backward()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())
    assert len(list(method.parameters())) == 4


def test_the_divergence_is_added_where_it_has_a_weight():
    terms = make(kd_weight=1.0)[1]([0, 1])
    assert terms.parts.keys() == {"ce", "contrast", "kd"}
    expected = terms.parts["ce"] + 0.8 * terms.parts["contrast"] + terms.parts["kd"]
    torch.testing.assert_close(terms.total, expected)
    assert make()[1]([0, 1]).parts.keys() == {"ce", "contrast"}


def test_a_continued_run_goes_on_exactly():
    """Banks and Z are in the state, and the draws depend on the step alone."""

    def sequence(method, step, steps):
        return [step([k, k + 9, k + 20], step=k).total.item() for k in steps]

    whole = sequence(*make(), range(6))
    method, step = make()
    half = sequence(method, step, range(3))
    state = {name: value.clone() for name, value in method.state_dict().items()}
    other, other_step = make(seed=0)
    other.load_state_dict(state)
    assert half + sequence(other, other_step, range(3, 6)) == whole


def test_the_labels_are_not_in_the_checkpoint():
    assert "labels" not in make()[0].state_dict()


def test_zero_vectors_are_finite():
    method, step = make()
    for embed in (method.embed_student, method.embed_teacher):
        torch.nn.init.zeros_(embed.weight)
        torch.nn.init.zeros_(embed.bias)
    terms = step([0, 1])
    terms.total.backward()
    assert torch.isfinite(terms.total)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


def test_the_banks_memory_is_known_before_training():
    assert bank_bytes(50_000) == 2 * 50_000 * 128 * 4
    method, _ = make()
    assert method.describe()[-1].startswith("memory banks of 2 x 40 x 5 numbers, 0.0 MB; 12 neg")


PROGRAM = """
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from limbeck.core.types import Batch, Outputs, Progress
from limbeck.engine.learner import Learner
from limbeck.methods.base import Probe
from limbeck.methods.feature.crd import CRD, CRDConfig

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
SIZE, STEPS = 8, 5
torch.manual_seed(0)
images = torch.rand(24, 1, 2, 2).double()
theirs = torch.randn(24, 6).double()
labels = torch.arange(24) % 3


def build():
    torch.manual_seed(1)
    student = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    probe = Probe(
        student=Outputs(torch.zeros(2, 3), features={"penultimate": torch.zeros(2, 5)}),
        teacher=Outputs(torch.zeros(2, 3), features={"penultimate": torch.zeros(2, 6)}),
        num_classes=3, num_images=24, labels=labels,
    )
    config = CRDConfig(num_features=4, num_negatives=9)
    learner = Learner(student, CRD.from_probe(config, probe).double()).train()
    return learner


def train(module, learner, part):
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2)).repeat(2)
    for step in range(STEPS):
        index = order[step * SIZE : (step + 1) * SIZE][part]
        batch = Batch(index=index, image=images[index], label=labels[index])
        teacher = Outputs(torch.zeros(len(index), 3), features={"penultimate": theirs[index]})
        optimizer.zero_grad()
        module(batch, teacher, Progress(step=step)).terms.total.backward()
        optimizer.step()
    return learner.state_dict()


half = SIZE // 2
together = build()
wrapped = DistributedDataParallel(together)
ignored = set(wrapped.parameters_to_ignore)
assert {"method.student_bank", "method.teacher_bank"} <= ignored, ignored
found = train(wrapped, together, slice(rank * half, (rank + 1) * half))
for name, value in found.items():
    parts = [torch.empty_like(value) for _ in range(2)]
    dist.all_gather(parts, value)
    assert torch.equal(*parts), name
dist.barrier()
dist.destroy_process_group()
alone = build()
for name, value in train(alone, alone, slice(None)).items():
    torch.testing.assert_close(value, found[name], rtol=1e-9, atol=1e-9, msg=lambda m: name + m)
print("agreed")
"""


def test_two_processes_keep_equal_banks_and_learn_what_one_learns(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.count("agreed") == 2, done.stdout + done.stderr
