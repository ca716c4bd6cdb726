"""Each preset of the general form against its method's own function, and against official codes.

B batch, D features; float64 and 1e-9 unless a test says otherwise.
"""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.core.types import Batch, Outputs, Progress
from limbeck.losses import (
    RELATION_PRESETS,
    RelationSpec,
    dist_loss,
    fsp_loss,
    irg_loss,
    kernel_correlation_loss,
    pkt_loss,
    relation_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    sp_loss,
)
from limbeck.methods.base import Probe
from limbeck.methods.relation import relation
from limbeck.methods.relation.relation import Relation, RelationConfig

GOLDEN_FILE = Path(__file__).parents[2] / "golden" / "methods.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text("utf-8"))["relation"]
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


T = tensor([[math.cos(0.7 * (5 * i + j)) for j in range(5)] for i in range(4)])
T3 = tensor([[math.cos(0.7 * (3 * i + j)) for j in range(3)] for i in range(4)])
OWN = {
    "cc_kernel": kernel_correlation_loss,
    "dist_inter": lambda s, t: dist_loss(s, t, intra_weight=0.0),
    "dist_intra": lambda s, t: dist_loss(s, t, inter_weight=0.0),
    "fsp": fsp_loss,
    "irg": irg_loss,
    "pkt": pkt_loss,
    "rkd_angle": rkd_angle_loss,
    "rkd_distance": rkd_distance_loss,
    "sp": sp_loss,
}


@pytest.mark.parametrize("name", GOLDEN)
def test_it_gives_the_benchmarks_number(name):
    golden = GOLDEN[name]
    tolerance = 0.51 * 10 ** -golden["decimals"]
    value = relation_loss(T3, T, RELATION_PRESETS[name])
    assert abs(value.item() - golden["value"]) < tolerance


def nodes(name, generator):
    """Random inputs of a preset, the student's requiring a gradient."""
    shape = (6, 4)
    if name == "fsp":
        shapes = ((3, 2, 4, 4), (3, 5, 2, 2))
        maps = [
            [torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes]
            for _ in range(2)
        ]
        maps[0][0].requires_grad_()
        return tuple(maps[0]), tuple(maps[1]), maps[0][0]
    student, teacher = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    student.requires_grad_()
    return student, teacher, student


@pytest.mark.parametrize("name", RELATION_PRESETS)
def test_a_preset_is_its_methods_own_function_in_value_and_gradient(name, generator):
    for _ in range(3):
        student, teacher, leaf = nodes(name, generator)
        general = relation_loss(student, teacher, RELATION_PRESETS[name])
        own = OWN[name](student, teacher)
        torch.testing.assert_close(general, own, **EXACT)
        gradients = [torch.autograd.grad(value, leaf)[0] for value in (general, own)]
        torch.testing.assert_close(*gradients, **EXACT)


def test_every_preset_is_compared_and_in_the_table_of_the_card():
    assert OWN.keys() == RELATION_PRESETS.keys()
    rows = [line[2:-1].split(": ") for line in relation.__doc__.splitlines() if line[:2] == "- "]
    table = {name: words.split(", ") for name, words in rows}
    for name, spec in RELATION_PRESETS.items():
        said = [spec.nodes, spec.relation, spec.normalization, spec.discrepancy, spec.reduction]
        assert table[name] == said


@pytest.mark.parametrize("name", ["dist_inter", "dist_intra"])
def test_dist_is_scipys_correlation(name, generator):
    logits = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
    p = F.softmax(logits, dim=2)
    pairs = zip(*(p if name == "dist_inter" else p.transpose(1, 2)), strict=True)
    expected = [1 - pearsonr(s.numpy(), t.numpy()).statistic for s, t in pairs]
    value = relation_loss(*logits, RELATION_PRESETS[name]).item()
    assert abs(value - sum(expected) / len(expected)) < 1e-6  # 1e-8 is added to each norm


def test_a_small_row_is_centred_by_its_own_size_and_a_constant_one_is_zero():
    """A class that is never probable is still more or less so; rounding errors are neither."""
    rows = torch.tensor([[1.0, 0.0, 2.0], [1e-7, 0.0, 2e-7], [0.1, 0.1, 0.1]])
    centred = relation._normalized(rows, RelationSpec(normalization="centred"))
    expected = 1e-7 * torch.tensor([0.0, -1.0, 1.0])
    torch.testing.assert_close(centred[1], expected, rtol=0, atol=1e-12)
    assert centred[2].abs().sum() == 0


def test_any_combination_is_finite_on_equal_rows_and_zeros(generator):
    other = torch.randn(3, 4, generator=generator)
    for relation_name in RelationSpec.model_fields["relation"].annotation.__args__:
        for normalization in RelationSpec.model_fields["normalization"].annotation.__args__:
            if normalization == "row_sums" and relation_name != "shifted_cosine":
                continue  # sums of both signs may be anything
            spec = RelationSpec(relation=relation_name, normalization=normalization)
            for rows in (torch.ones(3, 4), torch.zeros(3, 4)):
                student = rows.clone().requires_grad_()
                value = relation_loss(student, other, spec)
                value.backward()
                assert torch.isfinite(value), spec
                assert torch.isfinite(student.grad).all(), spec


def test_a_threshold_of_huber_and_a_temperature_are_torchs(generator):
    logits = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
    spec = RelationSpec(
        nodes="predictions", relation="itself", normalization="none", temperature=2.0, delta=0.1
    )
    expected = F.huber_loss(F.softmax(logits[0] / 2, 1), F.softmax(logits[1] / 2, 1), delta=0.1)
    torch.testing.assert_close(relation_loss(*logits, spec), expected, **EXACT)


@pytest.mark.parametrize("name", RELATION_PRESETS)
def test_the_teacher_receives_no_gradient(name, generator):
    student, teacher, _ = nodes(name, generator)
    leaves = [teacher] if isinstance(teacher, torch.Tensor) else list(teacher)
    for leaf in leaves:
        leaf.requires_grad_()
    relation_loss(student, teacher, RELATION_PRESETS[name]).backward()
    assert all(leaf.grad is None for leaf in leaves)


def test_what_does_not_fit_the_nodes_is_named():
    rows, spec = torch.zeros(4, 3), RELATION_PRESETS
    with pytest.raises(ShapeError, match=r"two maps; give both"):
        relation_loss(rows, rows, spec["fsp"])
    with pytest.raises(ShapeError, match=r"two maps make channels; got 2 for nodes 'samples'"):
        relation_loss((rows, rows), (rows, rows), spec["sp"])
    with pytest.raises(ShapeError, match=r"'classes' are made of logits.*\(4, 3, 2\)"):
        relation_loss(torch.zeros(4, 3, 2), rows, spec["dist_intra"])
    with pytest.raises(ShapeError, match=r"equal in shape; got student \(4, 4\), teacher \(3, 3\)"):
        relation_loss(rows, rows[:3], spec["sp"])
    for unfit in ("angle", "itself"):
        with pytest.raises(SettingsError, match="channels are of two layers"):
            RelationSpec(nodes="channels", relation=unfit)


# -- the method ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RELATION_PRESETS)
def test_a_preset_is_chosen_by_name_and_comes_back_from_plain_settings(name):
    config = RelationConfig(preset=name)
    spec = RELATION_PRESETS[name]
    assert all(getattr(config, field) == value for field, value in spec)
    assert RelationConfig.read(config.plain()) == config
    assert RelationConfig(preset=name, temperature=3.0).temperature == 3.0
    assert RelationConfig() == RelationConfig(preset="rkd_distance")


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(SettingsError, match=r"no preset called 'spp'; did you mean 'sp'"):
        RelationConfig(preset="spp")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [("sp", ("penultimate",)), ("fsp", ("stage2", "stage3")), ("dist_intra", ())],
)
def test_it_reads_the_layers_that_its_nodes_are_made_of(spec, expected):
    needs = Relation.needs(RelationConfig(preset=spec))
    assert needs.student_layers == needs.teacher_layers == expected


def test_layers_that_do_not_fit_the_nodes_are_refused():
    with pytest.raises(SettingsError, match="student_layers must name 1 layers for nodes 'samples"):
        RelationConfig(student_layers=("a", "b"))
    with pytest.raises(SettingsError, match="teacher_layers must name 0 layers"):
        RelationConfig(preset="dist_inter", teacher_layers=("a",))
    with pytest.raises(SettingsError, match="compared within one image"):
        RelationConfig(preset="fsp", gather=True)


@pytest.mark.parametrize("spec", ["sp", "fsp", "dist_intra"])
def test_the_total_weighs_both_terms(spec, generator):
    student, teacher, _ = nodes(spec, generator)
    layers = {"sp": ("a",), "fsp": ("a", "b"), "dist_intra": ()}[spec]
    size = 3 if spec == "fsp" else 6
    logits = torch.randn(2, size, 4, dtype=torch.float64, generator=generator)
    outputs = []
    for given, own in ((student, logits[0]), (teacher, logits[1])):
        tensors = given if spec == "fsp" else (given,)
        features = dict(zip(layers, tensors, strict=False))
        outputs.append(Outputs(given if spec == "dist_intra" else own, features=features))
    config = RelationConfig(
        preset=spec, student_layers=layers, teacher_layers=layers, relation_weight=3.0
    )
    probe = Probe(student=outputs[0], teacher=outputs[1], num_classes=4, num_images=20)
    method = Relation.from_probe(config, probe)
    assert len(method.describe()) == len(layers)
    label = torch.arange(size) % 4
    batch = Batch(index=torch.arange(size), image=torch.zeros(size, 1, 2, 2), label=label)
    terms = method(batch, *outputs, Progress())
    expected = F.cross_entropy(outputs[0].logits, label) + 3 * OWN[spec](student, teacher)
    torch.testing.assert_close(terms.total, expected, **EXACT)
    assert terms.parts.keys() == {"ce", "relation"}
