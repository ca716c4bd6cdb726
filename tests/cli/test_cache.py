import io
import json
import shlex
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest

from limbeck.cli import main
from limbeck.data import build_data
from limbeck.runs.config import RunConfig
from limbeck.runs.execute import execute, prepare_parts

CROPS = ("--crop-padding", "1", "--augment-cycle", "2")
DATA = ("--fraction", "0.2", "--device", "cpu")


@pytest.fixture(scope="module")
def cache(runs, tmp_path_factory):
    """A cache of the teacher in ``runs``; and what its making printed."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    said = io.StringIO()
    arguments = ["cache", "--teacher", runs / "teacher", "-o", folder, *CROPS, *DATA]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setattr(sys, "argv", ["limbeck", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code, said.getvalue()
    return folder, said.getvalue()


def test_the_size_is_said_first_and_the_command_last(cache):
    folder, said = cache
    first, second, *_, last = said.splitlines()
    assert first == (
        "digits_cnn_tiny's 10 logits of: train, 243 images x 2 draws; val, 27 images; "
        "test, 449 images"
    )
    num_bytes = 40 * (2 * 243 + 27 + 449)
    half = num_bytes - 20 * 2 * 243
    assert second.startswith(
        f"{num_bytes / 1024:.1f} KiB on the disk ({half / 1024:.1f} KiB with --store float16); "
    )
    assert last.split()[:4] == ["limbeck", "distill", "--teacher-cache", str(folder)]


def test_the_command_that_it_ends_with_trains(cache, limbeck, tmp_path):
    folder, said = cache
    words = shlex.split(said.splitlines()[-1])
    words = [{"NAME": "digits_cnn_tiny", "RUN": str(tmp_path / "run")}.get(w, w) for w in words]
    quick = ("--epochs", "1", "--sched", "constant", "--device", "cpu", "--json")
    answer = limbeck(*words[1:], *quick)
    assert answer.code == 0, answer.err
    events = [json.loads(line) for line in answer.out.splitlines()]
    assert any(f"by its logits in {folder}" in event.get("message", "") for event in events)


def test_a_dry_run_writes_nothing(runs, limbeck, tmp_path):
    where = tmp_path / "cache"
    answer = limbeck("cache", "--teacher", runs / "teacher", "-o", where, *DATA, "--dry-run")
    assert (answer.code, answer.err) == (0, "")
    assert len(answer.out.splitlines()) == 2
    assert not where.exists()


def test_a_finished_cache_is_said_to_be_there(cache, runs, limbeck):
    folder, _ = cache
    arguments = ("cache", "--teacher", runs / "teacher", "-o", folder, *CROPS, *DATA)
    answer = limbeck(*arguments)
    assert "It was there already; nothing was done." in answer.out
    events = [json.loads(line) for line in limbeck(*arguments, "--json").out.splitlines()]
    assert [event["event"] for event in events] == ["plan", "cache"]
    assert events[0]["finished"]
    assert events[1]["draws"] == 2


def test_a_runs_settings_are_those_of_its_cache(runs, limbeck, tmp_path):
    """All but how the student learns is taken from its file."""
    config = runs / "student" / "config.json"
    answer = limbeck("cache", "-c", config, "-o", tmp_path / "c", "--top-k", "3", "-q")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    rows = np.load(tmp_path / "c" / "train-0000.npy")
    assert rows.dtype["logits"].shape == (3,)
    card = json.loads((tmp_path / "c" / "cache.json").read_text())
    assert card["storage"] == {"dtype": "float32", "top_k": 3, "temperature": 4.0}


def test_the_cache_takes_the_place_of_the_teacher_in_a_file(cache, runs, limbeck, tmp_path):
    folder, _ = cache
    config = runs / "student" / "config.json"
    answer = limbeck(
        *("distill", "-c", config, "--teacher-cache", folder, *CROPS, "-o", tmp_path / "run", "-q")
    )
    assert (answer.code, answer.err) == (0, "")
    teacher = json.loads((tmp_path / "run" / "config.json").read_text())["teacher"]
    assert (teacher["cache"], teacher["run"]) == (str(folder), None)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--hflip",), "anew in every epoch: say how many epochs"),
        (("--method", "fitnet"), "method 'fitnet' reads its teacher's features"),
        (("--store", "int8"), "storage.dtype: Input should be 'float32' or 'float16'"),
        (("--tail-temperature", "2"), "temperature is for top_k"),
        (("--teacher", "nowhere"), "nowhere is not a run folder"),
    ],
)
def test_what_cannot_be_cached_is_said_before_anything_is_written(
    runs, limbeck, tmp_path, arguments, reason
):
    base = ("cache", "--teacher", runs / "teacher", "-o", tmp_path / "c", *DATA)
    answer = limbeck(*base, *arguments)
    assert answer.code == 2
    assert reason in answer.err
    assert not (tmp_path / "c").exists()


# -- runs that learnt from it ------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(cache, tmp_path_factory, quick):
    folder, _ = cache
    config = RunConfig(
        data={"fraction": 0.2, "augment": {"crop_padding": 1, "cycle": 2}},
        student={"name": "digits_cnn_tiny"},
        teacher={"cache": str(folder)},
        schedule={"epochs": 1, "sched": "constant"},
        train={"device": "cpu", "batch_size": 32},
    )
    run = tmp_path_factory.mktemp("taught") / "run"
    execute(config, run, prepare_parts(config, data=build_data(config.data, seed=0)))
    return run


def test_eval_shows_the_teacher_as_far_as_it_was_stored(taught, limbeck):
    answers = json.loads(limbeck("eval", taught, "--json").out)
    summary = json.loads((taught / "summary.json").read_text())
    assert answers["teacher"]["top1"] == pytest.approx(summary["teacher_test"]["top1"])
    assert answers["notice"] is None
    answers = json.loads(limbeck("eval", taught, "--split", "train", "--json").out)
    assert "teacher" not in answers
    assert "holds no logits of these train images" in answers["notice"]


def test_predict_says_why_there_is_no_teacher(taught, picture, limbeck, tmp_path):
    picture(tmp_path / "a.png")
    answer = json.loads(limbeck("predict", taught, tmp_path / "a.png", "--json").out)
    assert "known by its cached logits alone" in answer["notice"]


def test_a_comparison_learns_from_a_cache_and_keeps_to_it(runs, limbeck, tmp_path):
    folder, output = tmp_path / "cache", tmp_path / "comparison"
    base = ("--fraction", "0.2", "--set", "data.split_seed=0", "--device", "cpu")
    made = ("cache", "--teacher", runs / "teacher", "-o", folder, *base, *CROPS, "-q")
    assert limbeck(*made).code == 0
    compare = (
        *("compare", "--teacher-cache", folder, "--methods", "kd,dkd", "--seeds", "2", *base),
        *("--student", "digits_cnn_tiny", "--epochs", "1", "--sched", "constant", *CROPS),
        *("--output", output, "--threads", "1", "-q"),
    )
    answer = limbeck(*compare)
    assert answer.code == 2
    assert "kd, seed 1:" in answer.err
    assert "--augment-seed 0" in answer.err
    assert not output.exists()
    answer = limbeck(*compare, "--augment-seed", "0")
    assert (answer.code, answer.err) == (0, "")
    for label in ("ce", "kd", "dkd"):
        summary = json.loads((output / "runs" / f"{label}-seed1" / "summary.json").read_text())
        assert "agreement" in summary["scores"]["last"]
    assert limbeck("resume", output).code == 0

    shutil.rmtree(folder)
    assert limbeck(*made, "--store", "float16").code == 0
    answer = limbeck(*compare, "--augment-seed", "0")
    assert answer.code == 2
    assert "the cached logits of the teacher" in answer.err
