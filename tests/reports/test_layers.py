import json
from xml.etree import ElementTree

import pytest

from limbeck.core.errors import RunFolderError
from limbeck.reports.compared import read_comparison
from limbeck.reports.evidence import Evidence
from limbeck.reports.layers import LayerMap, layer_map_svg, layers, read_layer_map


def a_map(rows, columns, values=None):
    return LayerMap(
        split="val",
        num_images=50,
        student_layers={f"s{k}": f"a{k}" for k in range(rows)},
        teacher_layers={f"t{k}": f"b{k}" for k in range(columns)},
        values=values or ((0.5,) * columns,) * rows,
    )


def shades(svg):
    """Opacities of the drawn cells, in the order of drawing: row by row from below."""
    paths = ElementTree.fromstring(svg).iter("path")
    return [float(path.get("opacity")) for path in paths if path.get("opacity")]


def test_each_run_with_a_map_is_drawn_and_its_numbers_stand_in_a_table(evidence):
    section = layers(evidence)
    assert [picture.caption for picture in section.pictures] == [
        f"{name}, seed 0, on 50 val images." for name in ("ce", "kd", "fitnet", "rkd", "full")
    ]
    (table, *_) = section.tables
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["stem", "0.875", "0.500", "\u22120.062"],
        ["stage1", "0.250", "0.750", "0.375"],
    ]
    assert [column.title for column in table.columns[1:]] == ["stem", "stage1", "stage2"]


def test_words_say_what_the_picture_shows(evidence):
    alt = layers(evidence).pictures[1].alt
    assert alt.startswith("CKA of the layers of kd, seed 0, with the teacher's.")
    assert "stem: most like stem, 0.88; stage1: most like stage1, 0.75." in alt


def test_the_more_alike_the_darker_and_less_than_nothing_is_nothing():
    svg = layer_map_svg("m", a_map(2, 2, ((1.0, 0.5), (0.0, -0.5))))
    assert shades(svg) == pytest.approx([0.55, 0.275, 0, 0])
    assert svg.count('fill="var(--output)"') == 2


def test_a_map_has_numbers_while_they_can_be_read():
    assert layer_map_svg("m", a_map(3, 2)).count(">0.50<") == 6
    assert ">0.50<" not in layer_map_svg("m", a_map(3, 9))


def test_one_too_large_is_a_table_that_says_where_its_picture_is(write_full):
    folder = write_full()
    large = a_map(25, 3)
    fields = ("split", "num_images", "student_layers", "teacher_layers", "values")
    text = json.dumps({name: getattr(large, name) for name in fields})
    (folder / "runs" / "kd-seed0" / "cka.json").write_text(text)
    section = layers(Evidence(compared=read_comparison(folder)))
    assert section.items == (
        "The map of kd, seed 0 has too many layers to be drawn: see cka.png in its folder.",
    )
    assert (len(section.pictures), len(section.tables)) == (4, 5)


def test_without_a_map_there_is_no_section(write_full):
    folder = write_full()
    for path in (folder / "runs").glob("*/cka.json"):
        path.unlink()
    assert layers(Evidence(compared=read_comparison(folder))) is None


@pytest.mark.parametrize(
    "change",
    [
        {"values": [[0.5]]},
        {"values": [[0.5, 0.5, 0.5]]},
        {"values": [[0.5, 0.5], [0.5, 0.5]]},
        {"values": [[0.5, 0.5, 0.5], [0.5]]},
        {"values": []},
        {"values": [[0.5, 0.5, "x"], [0.5, 0.5, 0.5]]},
        {"num_images": -1},
        {"student_layers": None},
    ],
)
def test_a_damaged_map_is_named(write_full, change):
    run = write_full() / "runs" / "kd-seed0"
    path = run / "cka.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(
        RunFolderError, match=r"cka\.json is not what .* make it anew, or remove it"
    ):
        read_layer_map(run)


def test_so_is_one_that_is_no_json(write_full):
    run = write_full() / "runs" / "kd-seed0"
    (run / "cka.json").write_bytes(b"\xff{")
    with pytest.raises(RunFolderError, match="make it anew"):
        read_layer_map(run)
