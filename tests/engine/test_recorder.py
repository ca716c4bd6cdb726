import json

import pytest
import torch

from limbeck.core.errors import RunFolderError
from limbeck.engine.recorder import Recorder, RunningMeans, SilentObserver

ROW = {
    "stage": "kd",
    "epoch": 0,
    "step": 10,
    "lr": 0.1,
    "train": {"loss": 1.5},
    "val": {"top1": 0.5},
    "seconds": 1.0,
    "images_per_second": 10.0,
}


def test_means_weigh_batches_by_their_images():
    means = RunningMeans()
    means.add({"loss": torch.tensor(1.0), "kd": torch.tensor(0.5)}, weight=3)
    means.add({"loss": torch.tensor(5.0)}, weight=1)
    assert means.read() == {"loss": 2.0, "kd": 0.5}


def test_means_continue_from_saved_sums():
    means, other = RunningMeans(), RunningMeans()
    means.add({"loss": torch.tensor(1.0)}, weight=1)
    other.load(means.sums(), torch.device("cpu"))
    other.add({"loss": torch.tensor(3.0)}, weight=1)
    assert other.read() == {"loss": 2.0}


def test_rows_go_to_the_file_and_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = Recorder(tmp_path, SilentObserver())
    recorder.row(ROW)
    recorder.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == ROW
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (scalar,) = events.Scalars("kd/train/loss")
    assert (scalar.step, scalar.value) == (10, pytest.approx(1.5))


def test_rows_written_after_the_checkpoint_are_cut_off(tmp_path):
    first = Recorder(tmp_path, SilentObserver())
    first.row(ROW)
    offset = first.offset()
    first.row({**ROW, "epoch": 1})
    first.close()
    again = Recorder(tmp_path, SilentObserver(), offset=offset, step=11)
    again.row({**ROW, "epoch": 1, "lr": 0.2})
    again.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["lr"]) for row in rows] == [(0, 0.1), (1, 0.2)]


def test_without_a_folder_only_the_observer_hears():
    heard = []

    class Ear(SilentObserver):
        def epoch(self, row):
            heard.append(row)

    recorder = Recorder(None, Ear())
    recorder.row(ROW)
    recorder.close()
    assert heard == [ROW]
    assert recorder.offset() == 0


def test_rows_that_were_lost_are_not_filled_with_zeros(tmp_path):
    with pytest.raises(RunFolderError, match="has 0 bytes and had 100"):
        Recorder(tmp_path, SilentObserver(), offset=100)
