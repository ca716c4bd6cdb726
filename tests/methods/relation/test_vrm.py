"""Our reading of VRM: the closed form against the explicit one, and every switch.

B batch, K classes; float64 and 1e-9 unless a test says otherwise.
"""

import json
import math
import subprocess
import sys
import textwrap
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import VRMReading, vrm_class_loss, vrm_loss, vrm_sample_loss
from limbeck.methods.relation import vrm
from limbeck.methods.relation.vrm import VRM, VRMConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["vrm"]
EXACT = {"rtol": 0.0, "atol": 1e-9}


def scores(function):
    return torch.tensor(
        [[function(4 * i + j) for j in range(4)] for i in range(3)], dtype=torch.float64
    )


FOUR = (
    scores(lambda k: math.sin(k + 0.5)),
    scores(lambda k: math.sin(1.3 * k + 0.2)),
    scores(lambda k: 2 * math.cos(0.7 * k)),
    scores(lambda k: 2 * math.cos(0.9 * k + 0.4)),
)
RAW = VRMReading(scores="raw", criterion="none", coordinates="mean")


def explicit(four, reading, *, kind):
    """The loss coordinate by coordinate, as the formulas stand: ``(N, M, D)`` at once."""
    real, virtual, teacher, teacher_virtual = four
    if reading.scores == "centred":
        real, virtual, teacher, teacher_virtual = (
            z - z.mean(dim=1, keepdim=True) for z in (real, virtual, teacher, teacher_virtual)
        )
    student, teacher = (real, virtual), (teacher, teacher_virtual)
    if kind == "class":
        dim = 0 if reading.class_vertices == "stacked" else 1
        student, teacher = ((torch.cat(v, dim).T,) * 2 for v in (student, teacher))
        once = reading.class_edges == "each_pair_once"
    else:
        if reading.sample_edges != "cross_view":
            student, teacher = ((torch.cat(v),) * 2 for v in (student, teacher))
        once = reading.sample_edges == "each_pair_once"
    edges = [F.normalize(a[:, None] - b[None], dim=2) for a, b in (student, teacher)]
    difference = edges[0] - edges[1]
    size = difference.abs()
    beyond = reading.delta * (size - reading.delta / 2) if reading.beyond_delta == "linear" else 0.0
    huber = torch.where(size <= reading.delta, 0.5 * difference**2, beyond)
    per_edge = huber.mean(2) if reading.coordinates == "mean" else huber.sum(2)
    pairs = torch.ones_like(per_edge, dtype=torch.bool)
    pairs = pairs.triu(1) if once else pairs
    return per_edge[pairs].mean()


def edge(coordinate):
    way = FOUR[0][0] - FOUR[1][1]
    return (way / way.norm())[coordinate]


def unreliability(criterion, i, j):
    return vrm._unreliability(vrm._Vertices(FOUR[0], FOUR[1]), criterion)[i, j]


WIDE = RAW.changed(delta=100.0)
COMPUTED = {
    **{f"student's edge [0,1], coordinate {c}": lambda c=c: edge(c) for c in range(4)},
    "samples": lambda: vrm_sample_loss(*FOUR, reading=RAW),
    "samples, squared": lambda: 2 * vrm_sample_loss(*FOUR, reading=WIDE),
    "samples, 2 - 2 cos": lambda: (
        2 * vrm_sample_loss(*FOUR, reading=WIDE.changed(coordinates="sum"))
    ),
    "classes, all edges": lambda: vrm_class_loss(*FOUR, reading=RAW.changed(class_edges="all")),
    "classes": lambda: vrm_class_loss(*FOUR, reading=RAW),
    "samples, all edges": lambda: vrm_sample_loss(*FOUR, reading=RAW.changed(sample_edges="all")),
    **{
        f"{name} [{i},{j}]": lambda name=name, i=i, j=j: unreliability(name, i, j)
        for name, i, j in product(("xent", "mix", "indep"), range(3), range(3))
    },
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_number_of_this_reading(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    assert abs(COMPUTED[name]().item() - golden["value"]) < tolerance


def test_every_number_computed_here_has_a_source():
    assert COMPUTED.keys() == GOLDEN.keys()


# -- closed form and explicit form ---------------------------------------------------------


def draw(generator, size=7, classes=5, *, requires_grad=True):
    four = torch.randn(4, size, classes, dtype=torch.float64, generator=generator).unbind()
    if requires_grad:
        four[0].requires_grad_()
        four[1].requires_grad_()
    return four


@pytest.mark.parametrize("chunk", [2**21, 11], ids=["one chunk", "many chunks"])
@pytest.mark.parametrize("delta", [0.05, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("beyond", ["linear", "nothing"])
@pytest.mark.parametrize("kind", ["sample", "class"])
def test_the_closed_form_is_the_explicit_one_in_value_and_gradient(
    kind, beyond, delta, chunk, generator, monkeypatch
):
    monkeypatch.setattr(vrm, "_CHUNK_ENTRIES", chunk)
    loss = {"sample": vrm_sample_loss, "class": vrm_class_loss}[kind]
    edges = "sample_edges" if kind == "sample" else "class_edges"
    choices = ["each_pair_once", "all", *(["cross_view"] if kind == "sample" else [])]
    for choice in choices:
        reading = VRMReading(criterion="none", delta=delta, beyond_delta=beyond, **{edges: choice})
        four = draw(generator)
        values = loss(*four, reading=reading), explicit(four, reading, kind=kind)
        torch.testing.assert_close(*values, **EXACT)
        gradients = [torch.autograd.grad(value, four[:2]) for value in values]
        torch.testing.assert_close(*gradients, **EXACT)


@pytest.mark.parametrize("kind", ["sample", "class"])
def test_networks_that_nearly_agree_take_the_closed_form_alone(kind, generator, monkeypatch):
    """Every squared distance is at most delta squared: nothing is explicit."""

    def refuse(*args):
        raise AssertionError("no edge needs it")

    monkeypatch.setattr(vrm, "_explicit_huber", refuse)
    teacher, virtual = torch.randn(2, 7, 5, dtype=torch.float64, generator=generator)
    four = 1.1 * teacher, 0.1 + virtual, teacher, virtual
    loss = {"sample": vrm_sample_loss, "class": vrm_class_loss}[kind]
    reading = VRMReading(criterion="none", scores="raw")
    torch.testing.assert_close(
        loss(*four, reading=reading), explicit(four, reading, kind=kind), **EXACT
    )


def test_classes_have_their_views_stacked_or_a_vertex_for_each(generator):
    four = draw(generator)
    for vertices in ("stacked", "per_view"):
        reading = VRMReading(class_vertices=vertices)
        ours = vrm_class_loss(*four, reading=reading)
        torch.testing.assert_close(ours, explicit(four, reading, kind="class"), **EXACT)


def test_short_edges_lose_no_digits_in_float32(generator):
    """Rows a thousandth apart, where Gram matrices alone would cancel."""
    base = torch.randn(1, 6, generator=generator)
    four = [base + 1e-3 * torch.randn(5, 6, generator=generator) for _ in range(4)]
    ours = vrm_loss(*four, reading=VRMReading(criterion="none"))
    wide = vrm_loss(*[z.double() for z in four], reading=VRMReading(criterion="none"))
    torch.testing.assert_close(ours.double(), wide, rtol=1e-3, atol=0)


def test_gradients_are_those_of_finite_differences(generator):
    four = draw(generator, 4, 3)

    def loss(real, virtual):
        return vrm_loss(real, virtual, *four[2:], reading=VRMReading(criterion="none", delta=0.4))

    assert torch.autograd.gradcheck(loss, four[:2])


@pytest.mark.slow
def test_the_class_graph_of_imagenet_takes_less_than_100_megabytes():
    """B = 256 and K = 1000: the explicit form takes 2 GB for each network."""
    program = """
        import resource, torch
        from limbeck.losses import vrm_class_loss
        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(0)
        def run(size, classes):
            four = torch.randn(4, size, classes, generator=generator).unbind()
            student = [z.clone().requires_grad_() for z in four[:2]]
            for z in student:
                z.grad = torch.zeros_like(z)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            vrm_class_loss(*student, *four[2:]).backward()
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        run(8, 10)
        print(run(256, 1000))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert int(done.stdout) < 100 * 1024  # kilobytes


# -- which edges are kept ------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["xent", "mix", "indep"])
def test_unreliability_is_its_formula_in_plain_loops(criterion, generator):
    real, virtual = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    ours = vrm._unreliability(vrm._Vertices(real, virtual), criterion)
    p, q = F.softmax(real, 1).tolist(), F.softmax(virtual, 1).tolist()

    def entropy(row):
        return -sum(x * math.log(x) for x in row)

    for m, n in product(range(4), range(4)):
        expected = {
            "xent": -sum(a * math.log(b) for a, b in zip(p[m], q[n], strict=True)),
            "mix": entropy([(a + b) / 2 for a, b in zip(p[m], q[n], strict=True)]),
            "indep": entropy([a * b for a, b in product(p[m], q[n])]),  # of the outer product
        }[criterion]
        assert abs(ours[m, n].item() - expected) < 1e-9


@pytest.mark.parametrize("criterion", ["xent", "mix", "indep"])
@pytest.mark.parametrize(
    ("edges", "count"), [("cross_view", 49), ("each_pair_once", 91), ("all", 196)]
)
def test_the_most_reliable_share_is_kept(criterion, edges, count, generator):
    student = vrm._Vertices(*draw(generator, requires_grad=False)[:2])
    reading = VRMReading(criterion=criterion, sample_edges=edges, keep_share=0.6)
    kept = vrm._kept_edges(student, reading)
    whole = vrm._kept_edges(student, reading.changed(criterion="none"))
    assert whole.sum() == count
    # In "all", an edge and its reverse are equally unreliable for two of the criteria.
    assert 0 <= kept.sum() - math.ceil(0.6 * count) <= (edges == "all")
    assert not (kept & ~whole).any()
    ends = student if edges == "cross_view" else vrm._Vertices(*(torch.cat(student),) * 2)
    values = vrm._unreliability(ends, criterion)
    assert values[kept].max() <= values[whole & ~kept].min()


def test_a_share_of_one_is_no_pruning(generator):
    four = draw(generator)
    whole = vrm_sample_loss(*four, reading=VRMReading(criterion="none"))
    torch.testing.assert_close(
        vrm_sample_loss(*four, reading=VRMReading(keep_share=1.0)), whole, **EXACT
    )


def test_a_threshold_at_the_mean_keeps_what_is_not_above_it(generator):
    student = vrm._Vertices(*draw(generator, requires_grad=False)[:2])
    for edges in ("cross_view", "each_pair_once", "all"):
        reading = VRMReading(threshold="mean", sample_edges=edges)
        whole = vrm._kept_edges(student, reading.changed(criterion="none"))
        kept = vrm._kept_edges(student, reading)
        ends = student if edges == "cross_view" else vrm._Vertices(*(torch.cat(student),) * 2)
        values = vrm._unreliability(ends, "xent")
        assert torch.equal(kept, whole & (values <= values[whole].mean()))


@pytest.mark.parametrize("classes", [3, 7, 10, 100])
@pytest.mark.parametrize("size", [3, 5, 7])
def test_equal_predictions_are_all_kept_by_the_mean(size, classes):
    """Their mean, rounded, may be less than each of them."""
    equal = torch.arange(classes).float().sin().expand(size, classes)
    kept = vrm._kept_edges(vrm._Vertices(equal, equal), VRMReading(threshold="mean"))
    assert kept.all()


def test_the_loss_is_the_mean_over_the_kept_edges_and_they_carry_no_gradient(generator):
    four = draw(generator)
    reading = VRMReading(keep_share=0.5)
    kept = vrm._kept_edges(vrm._Vertices(*four[:2]), reading)
    assert not kept.requires_grad
    centred = [z - z.mean(dim=1, keepdim=True) for z in four]
    edges = [F.normalize(centred[i][:, None] - centred[i + 1][None], dim=2)[kept] for i in (0, 2)]
    expected = F.huber_loss(*edges, reduction="sum") / kept.sum()
    torch.testing.assert_close(vrm_sample_loss(*four, reading=reading), expected, **EXACT)


# -- what it ignores -----------------------------------------------------------------------


UNPRUNED = VRMReading(criterion="none")
CHANGES = {
    "scale": lambda z, generator: 3 * z,
    "one vector for all images": lambda z, generator: z + torch.tensor([1.0, -2, 0.5, 3, 0]),
    "a number for each image": lambda z, generator: (
        z + torch.arange(len(z), dtype=z.dtype)[:, None]
    ),
}


# What changes the loss; standard deviations change with a vector, which is no invariance lost.
SEEN = {
    ("samples", "raw", "a number for each image"),
    ("samples", "standardised", "one vector for all images"),
    ("classes", "raw", "one vector for all images"),
    ("classes", "centred", "one vector for all images"),
    ("classes", "standardised", "one vector for all images"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["raw", "centred", "standardised"])
@pytest.mark.parametrize("graph", ["samples", "classes"])
def test_raw_edges_of_images_see_what_softmax_does_not(graph, form, change, generator):
    loss = {"samples": vrm_sample_loss, "classes": vrm_class_loss}[graph]
    four = draw(generator, requires_grad=False)
    reading = UNPRUNED.changed(scores=form)
    moved = (CHANGES[change](four[0], generator), CHANGES[change](four[1], generator), *four[2:])
    difference = abs(loss(*moved, reading=reading) - loss(*four, reading=reading))
    if (graph, form, change) in SEEN:
        assert difference > 1e-4
    else:  # 1e-7 is added to standard deviations
        assert difference < (1e-6 if form == "standardised" else 1e-9)


def test_orders_of_images_and_of_classes_do_not_matter(generator):
    four = draw(generator, requires_grad=False)
    images = torch.randperm(7, generator=generator)
    classes = torch.randperm(5, generator=generator)
    for reading in (UNPRUNED, VRMReading()):
        whole = vrm_loss(*four, reading=reading)
        for moved in ([z[images] for z in four], [z[:, classes] for z in four]):
            torch.testing.assert_close(vrm_loss(*moved, reading=reading), whole, **EXACT)


def test_reversed_views_are_reversed_edges_of_equal_loss(generator):
    real, virtual, teacher, teacher_virtual = draw(generator, requires_grad=False)
    there = vrm_sample_loss(real, virtual, teacher, teacher_virtual, reading=UNPRUNED)
    back = vrm_sample_loss(virtual, real, teacher_virtual, teacher, reading=UNPRUNED)
    torch.testing.assert_close(back, there, **EXACT)


def test_equal_networks_have_no_loss_and_the_teacher_no_gradient(generator):
    four = draw(generator)
    same = vrm_loss(four[2], four[3], four[2].clone(), four[3].clone())
    assert abs(same.item()) < 1e-9
    for z in four[2:]:
        z.requires_grad_()
    vrm_loss(*four).backward()
    assert four[0].grad.abs().sum() > 0
    assert four[2].grad is None
    assert four[3].grad is None


# -- awkward inputs ------------------------------------------------------------------------


def awkward(name, dtype):
    plain = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0], [2.0, 2.0, -1.0]], dtype=dtype)
    match name:
        case "two equal images":
            return torch.cat([plain[:1], plain[:1], plain[1:]])
        case "all images equal":
            return plain[:1].repeat(3, 1)
        case "zeros":
            return torch.zeros_like(plain)
        case "all classes equal":
            return plain[:, :1].repeat(1, 3)
        case "a gap of 200":
            return 200 * torch.eye(3, dtype=dtype)
        case "one image":
            return plain[:1]


NAMES = (
    "two equal images",
    "all images equal",
    "zeros",
    "all classes equal",
    "a gap of 200",
    "one image",
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["raw", "centred", "standardised"])
@pytest.mark.parametrize("edges", ["cross_view", "each_pair_once", "all"])
@pytest.mark.parametrize("criterion", ["none", "xent", "mix", "indep"])
def test_awkward_logits_are_finite_in_value_and_gradient(name, form, edges, criterion, dtype):
    reading = VRMReading(
        scores=form, sample_edges=edges, class_edges="all", criterion=criterion, delta=0.5
    )
    rows = awkward(name, dtype)
    plain = torch.arange(rows.numel(), dtype=dtype).reshape(rows.shape).sin()
    for student, teacher in ((rows, plain), (plain, rows), (rows, rows)):
        real, virtual = student.clone().requires_grad_(), student.clone().requires_grad_()
        value = vrm_loss(real, virtual, teacher, 2 * teacher, reading=reading)
        value.backward()
        assert torch.isfinite(value)
        for z in (real, virtual):
            assert torch.isfinite(z.grad).all()
            assert z.grad.abs().max() < 1e3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32_even_under_autocast(dtype, generator):
    four = torch.randn(4, 6, 5, generator=generator).to(dtype).unbind()
    expected = vrm_loss(*[z.double() for z in four]).float()
    with torch.autocast("cpu", dtype=dtype):
        values = [vrm_loss(*four), vrm_loss(*[z.float() for z in four])]
    for value in values:
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_other_shapes_are_named(generator):
    four = draw(generator, requires_grad=False)
    for place in range(1, 4):
        wrong = [*four]
        wrong[place] = four[place][:, :4]
        with pytest.raises(ShapeError, match=r"\(batch, classes\) and equal in shape"):
            vrm_loss(*wrong)


@pytest.mark.parametrize("wrong", [{"keep_share": 0.0}, {"delta": 0.0}, {"criterion": "joint"}])
def test_readings_have_ranges(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        VRMReading(**wrong)


# -- the method ----------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["second", "strong"])
def test_the_total_weighs_the_four_terms_over_both_views(view, generator):
    four = draw(generator, requires_grad=False)
    label = torch.tensor([0, 1, -1, 2, 4, 3, 0])
    batch = Batch(index=torch.arange(7), image=torch.zeros(7, 1, 2, 2), label=label)
    student = Outputs(four[0], views={view: Outputs(four[1])})
    teacher = Outputs(four[2], views={view: Outputs(four[3])})
    config = VRMConfig(
        virtual_view=view,
        ce_weight=0.5,
        virtual_ce_weight=2.0,
        sample_weight=3.0,
        class_weight=4.0,
    )
    assert VRM.needs(config).views == (view,)
    terms = VRM(config)(batch, student, teacher, Progress())
    known = label >= 0
    ce, virtual_ce = (F.cross_entropy(z[known], label[known]) for z in four[:2])
    edges = vrm_loss(*four, sample_weight=3.0, class_weight=4.0)
    expected = 0.5 * ce + 2 * virtual_ce + edges
    torch.testing.assert_close(terms.total, expected, **EXACT)
    assert terms.parts.keys() == {"ce", "virtual_ce", "samples", "classes"}


def test_the_card_says_that_it_is_our_reading():
    for text in (vrm.__doc__, vrm_loss.__doc__, vrm_sample_loss.__doc__, vrm_class_loss.__doc__):
        assert "our reading" in text.lower()
