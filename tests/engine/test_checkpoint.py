import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from limbeck.core.errors import CheckpointError, RunFolderError
from limbeck.engine.checkpoint import (
    CheckpointStore,
    restore_rng_state,
    rng_state,
)


def state(value=0.0):
    shared = torch.full((3, 2), value)
    return {
        "weights": {"a": shared, "b": shared.t(), "half": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {0: {"step": torch.tensor(3.0)}, 1: {}},
        "groups": [{"betas": (0.9, 0.99), "lr": 1e-3, "fused": None, "nesterov": False}],
        "best": None,
        "name": "kd",
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_a_state_comes_back_as_it_was(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(7, state(1.5))
    found, faults = store.load_newest()
    assert equal(found, state(1.5))
    assert faults == []


def test_the_oldest_go_and_the_newest_is_read(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 30):
        store.save(step, state(float(step)))
    assert [path.name for path in store.paths()] == ["step-000000002", "step-000000030"]
    assert store.load_newest()[0]["weights"]["a"][0, 0] == 30


def test_any_that_is_kept_can_be_read(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2):
        store.save(step, state(float(step)))
    assert equal(store.load(store.paths()[0]), state(1.0))
    (store.paths()[0] / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        store.load(store.paths()[0])


def damage(path, how):
    data = bytearray(path.read_bytes())
    match how:
        case "flip":
            data[len(data) // 2] ^= 1
        case "truncate":
            del data[len(data) // 2 :]
        case "empty":
            data.clear()
        case "text":
            data[:] = b"hello"
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "truncate", "empty", "text"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, file, how):
    store = CheckpointStore(tmp_path)
    store.save(1, state(1.0))
    damage(store.save(2, state(2.0)) / file, how)
    found, faults = store.load_newest()
    assert found["weights"]["a"][0, 0] == 1
    assert len(faults) == 1
    assert "step-000000002" in faults[0]


def test_without_a_whole_checkpoint_there_is_an_error_and_no_guess(tmp_path):
    store = CheckpointStore(tmp_path)
    with pytest.raises(CheckpointError, match="it has none"):
        store.load_newest()
    damage(store.save(2, state()) / "state.json", "empty")
    with pytest.raises(CheckpointError, match="step-000000002"):
        store.load_newest()


def test_a_newer_format_is_refused_by_name(tmp_path):
    store = CheckpointStore(tmp_path)
    path = store.save(1, state())
    stored = json.loads((path / "state.json").read_text())
    stored["schema"] = 99
    (path / "state.json").write_text(json.dumps(stored))
    import hashlib

    manifest = json.loads((path / "manifest.json").read_text())
    manifest["state.json"] = hashlib.sha256((path / "state.json").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="format 99, this version reads 1"):
        store.load_newest()


def test_what_is_no_plain_value_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="not Event"):
        CheckpointStore(tmp_path / "c").save(1, {"x": type("Event", (), {})()})
    assert not (tmp_path / "c").exists()


def test_a_full_disk_leaves_the_older_checkpoint_and_says_so(tmp_path, full_disk):
    store = CheckpointStore(tmp_path)
    store.save(1, state(1.0))
    with full_disk(), pytest.raises(RunFolderError, match="could not be written"):
        store.save(2, {"big": torch.zeros(10_000)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert store.load_newest()[0]["weights"]["a"][0, 0] == 1


def test_killed_while_saving_the_last_whole_checkpoint_is_there(tmp_path):
    program = textwrap.dedent(
        f"""
        import torch
        from pathlib import Path
        from limbeck.engine.checkpoint import CheckpointStore
        store = CheckpointStore(Path({str(tmp_path)!r}))
        for step in range(1, 10**6):
            store.save(step, {{"x": torch.full((20_000,), float(step))}})
            print(step, flush=True)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    store = CheckpointStore(tmp_path)
    process.stdout.readline()
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found, faults = store.load_newest()
    assert faults == []
    assert (found["x"] == found["x"][0]).all()
    store.save(10**7, {"x": torch.zeros(1)})
    assert not list(tmp_path.glob(".saving-*"))  # what the kill left half-done is swept up


def test_random_streams_continue_where_they_were():
    kept = rng_state()
    first = torch.rand(3)
    restore_rng_state(kept)
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_save_behind_a_damaged_checkpoint_stays(tmp_path, keep):
    """A run that went back behind it would otherwise lose each checkpoint as it is written."""
    store = CheckpointStore(tmp_path, keep=keep)
    store.save(10, state(1.0))
    damage(store.save(20, state(2.0)) / "state.json", "empty")
    store.save(15, state(3.0))
    found, faults = store.load_newest()
    assert (found["weights"]["a"][0, 0], faults) == (3, [])
