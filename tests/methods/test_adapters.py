"""Shapes of published networks at 224 or 32 pixels; B batch, C channels, H W spatial, N tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from limbeck.core.errors import SettingsError, ShapeError
from limbeck.methods.adapters import (
    AdapterConfig,
    LayoutConfig,
    align,
    find_layout,
    make_adapter,
    resize_map,
)

EXACT = {"rtol": 0.0, "atol": 1e-9}
PURPOSES = ["map", "tokens", "vector"]


def layout_of(shape, **config):
    return find_layout(torch.zeros(shape), LayoutConfig(**config), whose="teacher")


# -- layouts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kind", "channels", "grid"),
    [
        ((2, 64), "vector", 64, (1, 1)),
        ((2, 64, 1, 1), "map", 64, (1, 1)),
        ((2, 16, 32, 32), "map", 16, (32, 32)),
        ((2, 2048, 7, 7), "map", 2048, (7, 7)),
        ((2, 16, 16, 16), "map", 16, (16, 16)),  # MobileNetV2's stem on CIFAR
        ((2, 256, 8, 6), "map", 256, (8, 6)),
        ((2, 56, 56, 96), "channels_last", 96, (56, 56)),
        ((2, 7, 7, 768), "channels_last", 768, (7, 7)),
        ((2, 14, 12, 384), "channels_last", 384, (14, 12)),
        ((2, 49, 768), "tokens", 768, (7, 7)),
        ((2, 197, 384), "tokens", 384, (14, 14)),
    ],
)
def test_a_shape_tells_how_it_lies(shape, kind, channels, grid):
    layout = layout_of(shape)
    assert (layout.kind, layout.channels, layout.grid) == (kind, channels, grid)


@pytest.mark.parametrize(
    ("num_tokens", "num_prefix", "side"),
    [
        (196, 0, 14),
        (197, 1, 14),
        (198, 2, 14),
        (200, 4, 14),
        (201, 5, 14),
        (1, 0, 1),
        (5, 1, 2),  # and not one place behind four registers
        (17, 1, 4),
        (65, 1, 8),
    ],
)
def test_the_tokens_that_are_no_places_leave_a_square(num_tokens, num_prefix, side):
    layout = layout_of((2, num_tokens, 8))
    assert (layout.num_prefix, layout.grid) == (num_prefix, (side, side))


def test_among_real_sizes_one_number_of_tokens_alone_is_open():
    """Two squares of sides above 1 differ by 5 at least, and by 5 only as 9 and 4 do."""
    open_counts = []
    for side in range(2, 40):
        for num_prefix in (0, 1, 2, 4, 5):
            try:
                assert layout_of((1, side**2 + num_prefix, 1)).grid == (side, side)
            except ShapeError:
                open_counts.append(side**2 + num_prefix)
    assert open_counts == [9, 9]


@pytest.mark.parametrize(
    ("num_tokens", "found"),
    [(9, "0, which leaves 3x3, or 5, which leaves 2x2"), (205, "none of .* leaves a square")],
)
def test_an_open_number_of_tokens_names_the_candidates_and_the_setting(num_tokens, found):
    with pytest.raises(ShapeError, match=rf"{num_tokens} tokens.*{found}.*teacher_layout.prefix"):
        layout_of((2, num_tokens, 8))
    assert layout_of((2, num_tokens, 8), prefix_tokens=num_tokens - 4).grid == (2, 2)


@pytest.mark.parametrize("shape", [(2, 64, 64, 48), (2, 16, 20, 24), (2, 3, 70, 7), (2, 8, 8, 5)])
def test_open_channels_name_both_readings_and_the_setting(shape):
    _, first, second, third = shape
    with pytest.raises(
        ShapeError, match=rf"{first} channels of {second}x{third}, or {third} .*of "
    ):
        layout_of(shape)
    assert layout_of(shape, kind="map").grid == (second, third)
    assert layout_of(shape, kind="channels_last").grid == (first, second)


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((2, 8, 4, 4), {"kind": "tokens"}, "has 3 axes"),
        ((2, 8), {"kind": "map"}, "has 4 axes"),
        ((2, 8, 4, 4), {"prefix_tokens": 1}, "is for tokens"),
        ((2, 4, 8), {"prefix_tokens": 4}, "no more than 4 tokens"),
        ((2, 8, 4, 4, 4), {}, "map of 4 axes"),
        ((2,), {}, "map of 4 axes"),
    ],
)
def test_a_shape_that_contradicts_its_settings_is_named(shape, config, message):
    with pytest.raises(ShapeError, match=message):
        layout_of(shape, **config)


def lying(kind, places, prefix):
    """Places ``(B, H, W, C)`` as a layer of this kind gives them, behind ``prefix (B, P, C)``."""
    match kind:
        case "map":
            return places.permute(0, 3, 1, 2).contiguous()
        case "channels_last":
            return places
        case "tokens":
            return torch.cat([prefix, places.flatten(1, 2)], dim=1)


@pytest.mark.parametrize("kind", ["map", "channels_last", "tokens"])
def test_every_place_arrives_where_it_belongs(kind, generator):
    places = torch.randn(2, 3, 3, 7, dtype=torch.float64, generator=generator)
    prefix = torch.randn(2, 2, 7, dtype=torch.float64, generator=generator)
    feature = lying(kind, places, prefix)
    layout = find_layout(feature, LayoutConfig(), whose="student")
    as_map, as_tokens = layout.as_map(feature), layout.as_tokens(feature)
    assert as_map.shape == (2, 7, 3, 3)
    assert as_tokens.shape == (2, 9, 7)
    for row in range(3):
        for column in range(3):
            assert torch.equal(as_map[:, :, row, column], places[:, row, column])
            assert torch.equal(as_tokens[:, 3 * row + column], places[:, row, column])
    mean = sum(places[:, row, column] for row in range(3) for column in range(3)) / 9
    torch.testing.assert_close(layout.as_vector(feature), mean, **EXACT)


@pytest.mark.parametrize("purpose", ["map", "tokens"])
def test_a_vector_goes_with_a_map_of_one_place_and_with_no_other(purpose, generator):
    """As before the classifiers of two networks, one of which has a 1x1 convolution for it."""
    vector, theirs = torch.randn(2, 5, generator=generator), torch.zeros(2, 7, 1, 1)
    layouts = {"student_layout": LayoutConfig(), "teacher_layout": LayoutConfig()}
    pair = align(vector, theirs, purpose=purpose, **layouts)(vector, theirs)
    assert pair.student.shape[:2] == ((2, 5) if purpose == "map" else (2, 1))
    assert torch.equal(pair.student.flatten(), vector.flatten())
    with pytest.raises(ShapeError, match="a vector has no places"):
        align(vector, torch.zeros(2, 7, 2, 2), purpose=purpose, **layouts)


def test_a_vector_is_one_place(generator):
    vector = torch.randn(2, 5, generator=generator)
    layout = find_layout(vector, LayoutConfig(), whose="student")
    assert torch.equal(layout.as_vector(vector), vector)
    assert torch.equal(layout.as_tokens(vector), vector[:, None])
    assert torch.equal(layout.as_map(vector), vector[:, :, None, None])


def test_class_tokens_are_kept_where_the_setting_says_so(generator):
    tokens = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    layout = find_layout(tokens, LayoutConfig(prefix_tokens=0), whose="student")
    assert torch.equal(layout.as_tokens(tokens), tokens)
    torch.testing.assert_close(layout.as_vector(tokens), tokens.mean(1), **EXACT)
    with pytest.raises(ShapeError, match=r"square grid; got 5 tokens.*prefix_tokens"):
        layout.as_map(tokens)


# -- sizes ---------------------------------------------------------------------------------


def means_of_cells(row, size):
    """Adaptive average pooling of one row, as its definition reads."""
    count = len(row)
    cells = [row[i * count // size : -(-(i + 1) * count // size)] for i in range(size)]
    return [sum(cell) / len(cell) for cell in cells]


def test_a_larger_map_is_pooled_cell_by_cell(generator):
    feature = torch.randn(1, 1, 7, 7, dtype=torch.float64, generator=generator)
    rows = [means_of_cells(row, 3) for row in feature[0, 0].tolist()]
    columns = [means_of_cells(column, 4) for column in zip(*rows, strict=True)]
    expected = torch.tensor(columns, dtype=torch.float64).T
    torch.testing.assert_close(resize_map(feature, (4, 3))[0, 0], expected, **EXACT)


def test_a_smaller_map_is_interpolated_between_the_centres_of_its_places():
    row = torch.tensor([0.0, 4.0], dtype=torch.float64).reshape(1, 1, 1, 2)
    assert resize_map(row, (1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]


def test_each_axis_goes_its_own_way():
    feature = torch.tensor([[0.0, 4.0], [2.0, 6.0]], dtype=torch.float64).reshape(1, 1, 2, 2)
    assert resize_map(feature, (1, 4)).flatten().tolist() == [1.0, 2.0, 4.0, 5.0]


def test_an_equal_size_is_the_map_itself():
    feature = torch.zeros(1, 2, 3, 4)
    assert resize_map(feature, (3, 4)) is feature


# -- adapters ------------------------------------------------------------------------------

LAYERS = {
    "CNN": (2, 8, 8, 8),
    "smaller CNN": (2, 12, 4, 4),
    "odd CNN": (2, 12, 7, 7),
    "ViT": (2, 17, 24),
    "DeiT": (2, 27, 20),
    "Swin": (2, 4, 4, 32),
    "vector": (2, 10),
}
PAIRS = [(student, teacher) for student in LAYERS for teacher in LAYERS]


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_any_pair_is_brought_to_one_shape_that_can_be_differentiated(
    student, teacher, purpose, generator
):
    features = [torch.randn(LAYERS[name], generator=generator) for name in (student, teacher)]
    if purpose != "vector" and (student == "vector") is not (teacher == "vector"):
        with pytest.raises(ShapeError, match="a vector has no places"):
            make_adapter(*features, purpose=purpose, config=AdapterConfig())
        return
    adapter = make_adapter(*features, purpose=purpose, config=AdapterConfig())
    features[0].requires_grad_()
    pair = adapter(*features)
    assert pair.student.shape == pair.teacher.shape
    assert pair.student.ndim == {"map": 4, "tokens": 3, "vector": 2}[purpose]
    pair.student.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in adapter.parameters())
    assert torch.isfinite(features[0].grad).all()
    assert "\n" not in adapter.describe("a", "b")


def describe(student, teacher, *, purpose="map", **config):
    features = torch.zeros(student), torch.zeros(teacher)
    adapter = make_adapter(*features, purpose=purpose, config=AdapterConfig(**config))
    return adapter.describe("s", "t")


@pytest.mark.parametrize(
    ("student", "teacher", "purpose", "line"),
    [
        (
            (2, 32, 16, 16),
            (2, 64, 16, 16),
            "map",
            "student s 32x16x16 -> 1x1 conv -> teacher t 64x16x16; 2,112 parameters",
        ),
        (
            (2, 2, 8, 8),
            (2, 3, 4, 4),
            "map",
            "student s 2x8x8 -> 3x3 conv of stride 2 -> teacher t 3x4x4; 57 parameters",
        ),
        (
            (2, 2, 4, 4),
            (2, 3, 8, 8),
            "map",
            "student s 2x4x4 -> 4x4 transposed conv of stride 2 -> teacher t 3x8x8; 99 parameters",
        ),
        (
            (2, 2, 16, 16),
            (2, 197, 3),
            "map",
            "student s 2x16x16 resized to 14x14 -> 1x1 conv -> teacher t 197x3 tokens as 3x14x14; "
            "9 parameters",
        ),
        (
            (2, 7, 7, 8),
            (2, 50, 4),
            "tokens",
            "student s 7x7x8 channels-last as 49x8 tokens -> linear -> teacher t 50x4 tokens as "
            "49x4 tokens; 36 parameters",
        ),
        (
            (2, 8, 4, 4),
            (2, 5),
            "vector",
            "student s 8x4x4, mean of 16 places -> linear -> teacher t 5; 45 parameters",
        ),
    ],
)
def test_the_rule_chooses_and_one_line_says_what(student, teacher, purpose, line):
    assert describe(student, teacher, purpose=purpose) == line


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"kind": "linear"}, "resized to 4x4 -> 1x1 conv -> teacher t 3x4x4; 9 parameters"),
        ({"kind": "none"}, "resized to 4x4 -> teacher t 3x4x4; no parameters"),
        (
            {"norm": "batch", "activation": "relu"},
            "s 2x8x8 -> 3x3 conv of stride 2, batch norm, ReLU -> teacher t 3x4x4; 63 parameters",
        ),
        (
            {"kind": "linear", "norm": "batch", "bias": False},  # as OFD
            "resized to 4x4 -> 1x1 conv, batch norm -> teacher t 3x4x4; 12 parameters",
        ),
        (
            {"kind": "mlp", "num_layers": 3, "bias": False, "resize": "smaller"},  # as VID
            "resized to 4x4 -> 1x1 conv, ReLU, 1x1 conv, ReLU, 1x1 conv -> teacher t 3x4x4; "
            "24 parameters",
        ),
        (
            {"kind": "mlp", "hidden_channels": 5, "norm": "batch", "activation": "gelu"},
            "1x1 conv, batch norm, GELU, 1x1 conv, batch norm, GELU -> teacher t 3x4x4; "
            "49 parameters",
        ),
    ],
)
def test_settings_override_the_rule(config, line):
    assert line in describe((2, 2, 8, 8), (2, 3, 4, 4), **config)


def test_the_mlp_of_three_layers_is_torchs(generator):
    features = torch.randn(2, 2, 4, 4, generator=generator), torch.zeros(2, 3, 4, 4)
    config = AdapterConfig(kind="mlp", num_layers=3, bias=False)
    adapter = make_adapter(*features, purpose="map", config=config)
    first, second, third = adapter.parameters()
    expected = F.conv2d(F.conv2d(F.conv2d(features[0], first).relu(), second).relu(), third)
    torch.testing.assert_close(adapter(*features).student, expected)


def test_the_smaller_size_pools_whichever_is_larger():
    config = AdapterConfig(kind="none", resize="smaller")
    large, small = torch.arange(32.0).reshape(1, 2, 4, 4), torch.ones(1, 3, 2, 2)
    for features in ((large, small), (small, large)):
        pair = make_adapter(*features, purpose="map", config=config)(*features)
        assert pair.student.shape[2:] == pair.teacher.shape[2:] == (2, 2)
    torch.testing.assert_close(pair.teacher, F.avg_pool2d(large, 2))


def test_tokens_of_one_number_need_no_grid(generator):
    """So that class tokens can be compared with class tokens."""
    features = torch.randn(2, 10, 4, generator=generator), torch.randn(2, 10, 4)
    keep = LayoutConfig(prefix_tokens=0)
    config = AdapterConfig(kind="none", student_layout=keep, teacher_layout=keep)
    pair = make_adapter(*features, purpose="tokens", config=config)(*features)
    assert torch.equal(pair.student, features[0])
    with pytest.raises(ShapeError, match="square grid"):
        make_adapter(features[0], torch.zeros(2, 16, 4), purpose="tokens", config=config)


def test_tokens_of_another_number_are_resized_on_their_grid(generator):
    student = torch.randn(2, 17, 4, generator=generator)
    config = AdapterConfig(kind="none")
    pair = make_adapter(student, torch.zeros(2, 5, 4), purpose="tokens", config=config)(
        student, torch.zeros(2, 5, 4)
    )
    expected = student[:, 1:].unflatten(1, (2, 2, 2, 2)).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(pair.student, expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "none", "norm": "batch"}, "no layer"),
        ({"kind": "none", "activation": "relu"}, "no layer"),
        ({"num_layers": 3}, "mlp's"),
        ({"kind": "linear", "hidden_channels": 8}, "mlp's"),
        ({"kind": "strided", "resize": "smaller"}, "teacher's size"),
        ({"kind": "mlp", "num_layers": 1}, "num_layers"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(config, message):
    with pytest.raises(SettingsError, match=message):
        AdapterConfig(**config)


@pytest.mark.parametrize(
    ("purpose", "config", "message"),
    [
        ("tokens", {"kind": "strided"}, "is for maps"),
        ("tokens", {"norm": "batch"}, "use 'layer'"),
        ("map", {"norm": "layer"}, "use 'batch'"),
    ],
)
def test_settings_that_do_not_go_with_the_purpose_are_refused(purpose, config, message):
    with pytest.raises(SettingsError, match=message):
        describe((2, 8, 4, 4), (2, 8, 4, 4), purpose=purpose, **config)


@pytest.mark.parametrize(("purpose", "norm"), [("vector", "batch"), ("vector", "layer")])
def test_vectors_take_either_norm(purpose, norm):
    assert f"linear, {norm} norm -> " in describe((2, 8), (2, 4), purpose=purpose, norm=norm)


def test_a_stride_that_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"twice or half.*\(2, 8, 4, 4\).*'auto'"):
        describe((2, 8, 4, 4), (2, 8, 4, 4), kind="strided")


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_an_open_layout_is_settled_by_the_setting_that_the_message_names(whose):
    open_tokens, known = torch.zeros(2, 9, 4), torch.zeros(2, 16, 4)
    features = (open_tokens, known) if whose == "student" else (known, open_tokens)
    with pytest.raises(ShapeError, match=f"{whose}_layout.prefix_tokens"):
        make_adapter(*features, purpose="map", config=AdapterConfig())
    config = AdapterConfig(**{f"{whose}_layout": {"prefix_tokens": 5}})
    pair = make_adapter(*features, purpose="map", config=config)(*features)
    assert pair.student.shape == pair.teacher.shape


def test_an_alignment_leaves_size_and_channels_until_it_is_told_otherwise():
    features = torch.zeros(2, 8, 6, 6), torch.zeros(2, 17, 4)
    alignment = align(
        *features, purpose="map", student_layout=LayoutConfig(), teacher_layout=LayoutConfig()
    )
    assert not alignment.convolutional
    assert alignment.grids == ((6, 6), (4, 4))
    assert [f.shape for f in alignment(*features)] == [(2, 8, 6, 6), (2, 4, 4, 4)]
    assert [f.shape for f in alignment.resized("teacher")(*features)] == [
        (2, 8, 4, 4),
        (2, 4, 4, 4),
    ]


def test_an_unknown_part_is_described_by_its_class():
    features = torch.zeros(2, 8, 6, 6), torch.zeros(2, 8, 6, 6)
    alignment = align(
        *features, purpose="map", student_layout=LayoutConfig(), teacher_layout=LayoutConfig()
    )
    line = alignment.describe("s", "t", nn.Sequential(nn.Identity(), nn.Softplus()))
    assert line == "student s 8x6x6 -> Softplus -> teacher t 8x6x6; no parameters"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_sizes_and_channels_still_fit(dtype, generator):
    features = torch.randn(2, 8, 7, 7, generator=generator), torch.zeros(2, 17, 24)
    adapter = make_adapter(*features, purpose="map", config=AdapterConfig())
    expected = adapter(*features).student
    with torch.autocast("cpu", dtype=dtype):
        pair = adapter(*features)
    torch.testing.assert_close(pair.student.float(), expected, rtol=2e-2, atol=2e-2)
