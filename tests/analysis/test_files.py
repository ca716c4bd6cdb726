import json
import os

import numpy as np
import pytest

from limbeck.analysis.base import (
    Contrast,
    Experiment,
    Finding,
    Measured,
    Picture,
    Reading,
    contrast,
)
from limbeck.analysis.files import fingerprint, is_finished, write_finding

ASKED = Experiment(
    key="k", title="t", question="q?", source="s", measure=lambda case: None, quick=True
)


@pytest.fixture
def finding():
    values = {0: np.array([0.0, 1.0]), 1: np.array([1.0, 1.0])}
    reading = Reading(name="r", items="images", independent=values, distilled=values)
    measured = Measured(
        readings=(reading,),
        pictures=(
            Picture(name="drawn", caption="c", alt="a", svg="<svg/>"),
            Picture(name="shot", caption="c2", alt="a2", png=b"\x89PNG"),
        ),
        tables={"A table": (("head",), ("cell",))},
        notes=("Note.",),
        settings={"epsilon": 0.5},
    )
    found = contrast(reading, generator=np.random.default_rng(0))
    return Finding(
        experiment=ASKED, measured=measured, contrasts=(found,), skipped=None, seconds=1.5
    )


def test_a_finding_is_one_json_and_its_pictures(finding, tmp_path):
    about = {"students": {"distilled 0": "hash"}}
    path = write_finding(finding, tmp_path / "analysis", inputs="abc", about=about, place=3)
    values = json.loads(path.read_text())
    assert (values["about"], values["place"]) == (about, 3)
    (row,) = values["readings"]
    assert row["independent_by_seed"] == {"0": 0.5, "1": 1.0}
    assert row["words"] == ["nearer to the teacher", "further from the teacher"]
    assert row["sentence"] == finding.contrasts[0].sentence
    assert row["item_interval"] == list(finding.contrasts[0].item_interval)
    assert [picture["file"] for picture in values["pictures"]] == ["k-drawn.svg", "k-shot.png"]
    assert (path.parent / "k-shot.png").read_bytes() == b"\x89PNG"
    assert (path.parent / "k-drawn.svg").read_text() == "<svg/>"
    assert values["tables"] == {"A table": [["head"], ["cell"]]}
    assert values["settings"] == {"epsilon": 0.5}


def test_numbers_that_json_does_not_have_are_null(finding, tmp_path):
    broken = finding.contrasts[0]._replace(difference=float("nan"))
    assert isinstance(broken, Contrast)
    changed = Finding(
        experiment=ASKED,
        measured=finding.measured,
        contrasts=(broken,),
        skipped=None,
        seconds=0.0,
    )
    values = json.loads(write_finding(changed, tmp_path, inputs="x").read_text())
    assert values["readings"][0]["difference"] is None


def test_a_skipped_experiment_keeps_its_reason(tmp_path):
    skipped = Finding(
        experiment=ASKED, measured=None, contrasts=(), skipped="no colour", seconds=0.0
    )
    values = json.loads(write_finding(skipped, tmp_path, inputs="x").read_text())
    assert (values["skipped"], values["readings"]) == ("no colour", [])
    assert is_finished(tmp_path, "k", inputs="x")


def test_a_finding_is_finished_for_its_own_inputs_alone(finding, tmp_path):
    assert not is_finished(tmp_path, "k", inputs="abc")
    write_finding(finding, tmp_path, inputs="abc")
    assert is_finished(tmp_path, "k", inputs="abc")
    assert not is_finished(tmp_path, "k", inputs="other")
    (tmp_path / "k.json").write_text("{")
    assert not is_finished(tmp_path, "k", inputs="abc")
    (tmp_path / "k.json").write_text("[]")
    assert not is_finished(tmp_path, "k", inputs="abc")


def test_a_fingerprint_changes_with_names_sizes_and_times(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    file = folder / "inner" / "a.txt"
    file.write_text("one")
    os.utime(file, ns=(10**18, 10**18))
    first = fingerprint(folder)
    assert first == fingerprint(folder)
    assert fingerprint(None) is None
    assert fingerprint(file) != first
    os.utime(file, ns=(10**18, 10**18 + 1000))
    assert fingerprint(folder) != first
    os.utime(file, ns=(10**18, 10**18))
    assert fingerprint(folder) == first
    file.rename(folder / "inner" / "b.txt")
    assert fingerprint(folder) != first
