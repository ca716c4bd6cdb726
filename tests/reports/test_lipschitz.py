import json

import pytest

from limbeck.core.errors import RunFolderError
from limbeck.reports.compared import read_comparison
from limbeck.reports.evidence import Evidence
from limbeck.reports.lipschitz import lipschitz, read_profiles


@pytest.fixture
def folder(write_full):
    return write_full()


@pytest.fixture
def section(evidence):
    return lipschitz(evidence)


def test_a_profiled_run_has_a_table_and_the_others_have_none(section):
    (table,) = section.tables
    assert table.caption.startswith("kd, seed 0: ")
    assert "50 images (val)" in table.caption


def test_the_networks_stand_side_by_side_from_the_end(section):
    (table,) = section.tables
    assert [column.title for column in table.columns] == [
        "between",
        "sigma, teacher (net_teacher)",
        "sigma, student (net_student)",
        "product, teacher (net_teacher)",
        "product, student (net_student)",
    ]
    layers = "10^\u22121.5 (3)"
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["stage1 to stage2", "10 ± 2.5", "", layers, ""],
        ["stage2 to stage3 / stage1 to stage2", "20 ± 2.5", "1 ± 0.25", layers, layers],
        ["stage3 to stage4 / stage2 to stage3", "30 ± 2.5", "2 ± 0.25", layers, layers],
        ["image to logits", "", "", "10^4.2 (9)", "10^4.2 (9)"],
    ]
    assert [row[1].value for row in table.rows] == [10.0, 20.0, 30.0, None]


def test_it_says_what_the_numbers_are_not(section):
    assert "Neither number is a bound" in section.text[1]


def test_a_single_image_has_no_spread_and_a_product_of_nothing_is_0(folder):
    path = folder / "runs" / "kd-seed0" / "lipschitz.json"
    values = json.loads(path.read_text())
    del values["networks"]["teacher"]
    values["networks"]["student"]["parts"][0] |= {"sigma_sd": None, "log10_layer_product": None}
    path.write_text(json.dumps(values))
    (table,) = lipschitz(Evidence(compared=read_comparison(folder))).tables
    assert [cell.text for cell in table.rows[0]] == ["stage1 to stage2", "1", "0 (3)"]


def test_without_profiles_there_is_no_section(folder):
    (folder / "runs" / "kd-seed0" / "lipschitz.json").unlink()
    assert lipschitz(Evidence(compared=read_comparison(folder))) is None


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("nonsense", "all of it: Invalid JSON"),
        ("[]", "all of it: "),
        ('{"split": "val", "num_images": 0, "networks": {}}', "num_images: "),
        ('{"split": "val", "num_images": 1}', "networks: Field required"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(content, fault, tmp_path):
    (tmp_path / "lipschitz.json").write_text(content)
    with pytest.raises(RunFolderError, match="made without it") as caught:
        read_profiles(tmp_path)
    assert f"lipschitz.json is not what `limbeck inspect --lipschitz` writes ({fault}" in str(
        caught.value
    )
