import os
import stat

import pytest
import torch
from torch import nn

from limbeck.core.errors import CheckpointError, RunFolderError
from limbeck.runs.prepared import VARIABLE, keep_buffers, prepared_path, recall_buffers


class Holding(nn.Module):
    def __init__(self, *, value=0.0, size=3):
        super().__init__()
        self.register_buffer("cost", torch.full((size, size), value))
        self.register_buffer("bank", torch.full((2,), value))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "prepared" / "key.safetensors"


def test_what_is_kept_comes_back_exactly_and_the_rest_stays(path, generator):
    cost = torch.randn(3, 3, generator=generator)
    keep_buffers({"cost": cost}, path)
    module = Holding()
    recall_buffers(module, path)
    assert torch.equal(module.cost, cost)
    assert torch.equal(module.bank, torch.zeros(2))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fault", ["cut", "flipped", "empty", "text", "unsigned"])
def test_a_damaged_file_is_named_and_changes_nothing(path, fault):
    keep_buffers({"cost": torch.ones(3, 3)}, path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:-4],
            "flipped": content[:-1] + bytes([content[-1] ^ 1]),
            "empty": b"",
            "text": b"not weights",
            "unsigned": content.replace(b"sha256", b"sha257"),
        }[fault]
    )
    module = Holding()
    with pytest.raises(CheckpointError, match=r"key.safetensors (is damaged|cannot be read)"):
        recall_buffers(module, path)
    assert torch.equal(module.cost, torch.zeros(3, 3))


@pytest.mark.parametrize("module", [Holding(size=4), nn.Linear(2, 2)])
def test_another_modules_buffers_are_refused(path, module):
    keep_buffers({"bank": torch.ones(2), "cost": torch.ones(3, 3)}, path)
    with pytest.raises(CheckpointError, match="is of other buffers than"):
        recall_buffers(module, path)
    assert all((buffer == 0).all() for buffer in module.buffers())


def test_a_full_disk_is_said_and_leaves_nothing(path, full_disk):
    with full_disk(), pytest.raises(RunFolderError, match="could not be written"):
        keep_buffers({"cost": torch.ones(100, 100)}, path)
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "prepared").write_text("a file")
    with pytest.raises(RunFolderError, match="could not be made"):
        keep_buffers({"cost": torch.ones(1)}, tmp_path / "prepared" / "key.safetensors")


def test_others_may_read_what_is_kept(path):
    keep_buffers({"cost": torch.ones(1)}, path)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_each_fact_changes_the_place(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    facts = {"teacher": "a", "images": "b", "settings": {"cost": "features"}}
    places = {
        prepared_path(facts | changed)
        for changed in ({}, {"teacher": "c"}, {"images": "c"}, {"settings": {"cost": "logits"}})
    }
    assert len(places) == 4
    assert prepared_path(dict(reversed(facts.items()))) in places
    assert {place.parent for place in places} == {tmp_path / "prepared"}


def test_the_users_own_caches_are_the_default_and_nothing_keeps_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, "")
    assert prepared_path({}) is None
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepared_path({}).parent == tmp_path / "limbeck" / "prepared"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert prepared_path({}).parent == tmp_path / "home" / ".cache" / "limbeck" / "prepared"
