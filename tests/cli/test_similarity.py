import json
import shutil

import pytest


def test_a_runs_layers_are_compared_with_its_teachers_and_kept_in_three_forms(
    limbeck, runs, tmp_path
):
    folder = tmp_path / "student"
    shutil.copytree(runs / "student", folder)
    answer = limbeck("inspect", folder, "--cka")
    assert answer.code == 0
    found = json.loads((folder / "cka.json").read_text())
    names = list(found["student_layers"])
    rows = [line.split() for line in answer.out.split("\n\n")[0].splitlines()]
    assert rows[0][3:] == list(found["teacher_layers"])
    assert [row[0] for row in rows[1:]] == names
    expected = [[f"{value:.3f}" for value in row] for row in found["values"]]
    assert [row[1:] for row in rows[1:]] == expected
    assert (folder / "cka.csv").read_text().startswith("student,stage1,")
    assert (folder / "cka.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(limbeck("inspect", folder, "--cka", "--json").out) == found
    some = limbeck("inspect", folder, "--cka", "--student-layers", "fc, stage1", "--json")
    assert list(json.loads(some.out)["student_layers"]) == ["stage1", "fc"]  # as they run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cka",), "give the run's folder: limbeck inspect RUN --cka. Got none"),
        (("resnet20", "--cka"), "Got resnet20"),
    ],
)
def test_a_map_without_a_run_is_refused(arguments, message, limbeck):
    answer = limbeck("inspect", *arguments)
    assert answer.code == 2
    assert message in answer.err


def test_a_map_without_a_teacher_is_refused(limbeck, runs):
    answer = limbeck("inspect", runs / "teacher", "--cka")
    assert (answer.code, "has no teacher" in answer.err) == (2, True)
