import json

import pytest

from limbeck.core.errors import RunFolderError
from limbeck.reports.findings import read_findings, read_picture


@pytest.fixture
def folder(tmp_path, write_finding):
    write_finding(tmp_path, "kd", "fidelity", students={"distilled 0": "a", "independent 0": "b"})
    write_finding(tmp_path, "kd", "why")
    return tmp_path / "analysis" / "kd"


def change(folder, key="fidelity", **fields):
    path = folder / f"{key}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_findings_come_in_the_order_of_the_report(folder):
    found, stale = read_findings(folder, {})
    assert [one.key for one in found] == ["why", "fidelity"]
    assert stale == ()
    assert found[1].readings[0].seed_interval == (0.125, 0.375)
    assert (found[1].num_images, found[1].quick) == (120, True)


def test_nobody_analysed_is_no_finding(tmp_path):
    assert read_findings(tmp_path / "analysis" / "kd", {}) == ((), ())


@pytest.mark.parametrize(
    ("hashes", "stale"),
    [
        ({"distilled 0": "a", "independent 0": "b", "distilled 9": "z"}, False),
        ({"distilled 0": "other"}, True),
        ({"independent 0": "other"}, True),
        ({"distilled 0": ""}, False),  # an older version that does not say
    ],
)
def test_what_was_found_of_other_networks_is_told_apart(folder, hashes, stale):
    found, old = read_findings(folder, hashes)
    assert old == (("Title of fidelity ",) if stale else ())
    assert len(found) == 2 - stale


@pytest.mark.parametrize(
    "fields",
    [
        {"readings": [{"name": "x"}]},
        {"tables": {"a": [[1, 2]]}},
        {"title": None},
        {"pictures": [{"file": "x"}]},
        {"readings": "none"},
    ],
)
def test_a_damaged_finding_names_its_file_and_what_to_do(folder, fields):
    change(folder, **fields)
    with pytest.raises(RunFolderError, match=r"fidelity\.json is not what.*or analyse again"):
        read_findings(folder, {})


@pytest.mark.parametrize("text", ["", "[]", "{}", "\x00", "[" * 100_000])
def test_a_file_that_is_no_finding_is_refused(folder, text):
    (folder / "fidelity.json").write_text(text)
    with pytest.raises(RunFolderError, match="fidelity"):
        read_findings(folder, {})


def test_pictures_are_read_and_their_identifiers_are_the_pages_only_ones(folder):
    found = read_findings(folder, {}).found[1]
    drawn, shot = (read_picture(found, p, name="x-1", caption="kd: ") for p in found.pictures)
    assert drawn.svg.startswith("<svg")
    assert 'id="x-1-' in drawn.svg
    assert shot.png.startswith(b"\x89PNG")
    assert shot.caption.startswith("kd: A picture.")
    assert shot.address.startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    "content", [b"<svg><script>alert(1)</script></svg>", b"GIF89a", b"", b"<html/>"]
)
def test_a_file_that_is_no_picture_of_ours_is_refused(folder, content):
    (folder / "fidelity-shot.png").write_bytes(content)
    found = read_findings(folder, {}).found[1]
    with pytest.raises(RunFolderError, match=r"fidelity-shot\.png"):
        read_picture(found, found.pictures[1], name="x")


def test_a_picture_is_never_read_from_outside_the_folder(folder):
    (folder.parent / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    change(folder, pictures=[{"file": "../secret.png", "caption": "", "alt": ""}])
    found = read_findings(folder, {}).found[1]
    with pytest.raises(RunFolderError, match=r"kd.secret\.png"):
        read_picture(found, found.pictures[0], name="x")
