import json

import pytest
import torch

from limbeck.core.errors import CheckpointError, RunFolderError
from limbeck.engine.checkpoint import CheckpointStore
from limbeck.runs.past import best_epoch, checkpoints, load_checkpoint, past_epochs


def write(run, rows):
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(stage, step, top1=None):
    val = None if top1 is None else {"top1": top1, "loss": 1 - top1}
    return {"stage": stage, "epoch": 0, "step": step, "val": val}


def test_epochs_and_steps_are_counted_over_all_stages(tmp_path):
    write(
        tmp_path, [row("hint", 10), row("hint", 20), row("train", 10, 0.5), row("train", 20, 0.75)]
    )
    found = past_epochs(tmp_path)
    assert [(e.number, e.stage, e.step, e.top1, e.loss) for e in found] == [
        (1, "hint", 10, None, None),
        (2, "hint", 20, None, None),
        (3, "train", 30, 0.5, 0.5),
        (4, "train", 40, 0.75, 0.25),
    ]


@pytest.mark.parametrize("text", ["{", "[]\n", '{"stage": "train"}\n', None])
def test_damaged_epochs_name_their_file(tmp_path, text):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl"):
        past_epochs(tmp_path)


def test_checkpoints_before_the_end_have_the_epoch_that_their_step_is_of(tmp_path):
    write(tmp_path, [row("train", 10), row("train", 20), row("train", 30)])
    store = CheckpointStore(tmp_path / "checkpoints", keep=9)
    for step in (5, 20, 30):
        store.save(step, {})
    assert {epoch: path.name for epoch, path in checkpoints(tmp_path).items()} == {
        0.5: "step-000000005",
        2.0: "step-000000020",
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three epochs of digits, each with its checkpoint, and an average of the weights."""
    from limbeck.runs.config import RunConfig
    from limbeck.runs.execute import execute, prepare_parts

    folder = tmp_path_factory.mktemp("run") / "run"
    config = RunConfig.read(
        {
            "data": {"dataset": "digits", "fraction": 0.2},
            "student": {"name": "digits_cnn_tiny"},
            "method": {"name": "ce"},
            "schedule": {"epochs": 3, "sched": "constant"},
            "train": {
                "batch_size": 64, "device": "cpu", "model_ema_decay": 0.5,
                "checkpoint_steps": 1000, "checkpoint_hist": 9,
            },
        }
    )  # fmt: skip
    execute(config, folder, prepare_parts(config))
    return folder


def test_a_checkpoint_holds_the_network_that_was_judged_then(run):
    from limbeck.data import build_data
    from limbeck.runs.config import RunConfig
    from limbeck.runs.networks import load_student

    kept = checkpoints(run)
    assert list(kept) == [1.0, 2.0]
    config = RunConfig.read(json.loads((run / "config.json").read_text()))
    val = build_data(config.data, seed=config.seed).val
    named, _ = load_student(run)
    images = val.gather(torch.arange(len(val))).float() / 255
    for epoch, path in kept.items():
        logits = load_checkpoint(run, path)(named.answering().normalize(images))
        top1 = (logits.argmax(dim=1) == val.labels).float().mean().item()
        assert top1 == pytest.approx(past_epochs(run)[int(epoch) - 1].top1)


def test_the_best_epoch_is_the_one_that_validation_chose(run):
    scores = [epoch.top1 for epoch in past_epochs(run)]
    assert scores[best_epoch(run) - 1] == max(scores)
    best = run / "student_best.safetensors"
    best.rename(run / "elsewhere")
    assert best_epoch(run) is None
    (run / "elsewhere").rename(best)


def test_a_checkpoint_of_an_earlier_stage_is_another_network(run):
    path = next(iter(checkpoints(run).values()))
    metrics = run / "metrics.jsonl"
    text = metrics.read_text()
    lines = text.splitlines()
    lines[-1] = lines[-1].replace('"stage": "train"', '"stage": "later"')
    metrics.write_text("\n".join(lines) + "\n")
    assert load_checkpoint(run, path) is None
    metrics.write_text(text)


def test_a_damaged_checkpoint_is_named(run):
    path = next(iter(checkpoints(run).values()))
    state = path / "state.json"
    text = state.read_text()
    state.write_text("{}")
    with pytest.raises(CheckpointError, match="step-"):
        load_checkpoint(run, path)
    state.write_text(text)
