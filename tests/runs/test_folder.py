import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch

from limbeck.core.errors import RunFolderError
from limbeck.runs.folder import RunFolder, describe_environment, read_json


def holds(path):
    return sorted(entry.name for entry in path.iterdir())


def test_a_folder_is_made_with_its_parents_and_kept_once_it_holds_a_run(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    with folder.created():
        folder.write_json(folder.config, {"seed": 0})
    assert holds(folder.path) == ["config.json"]
    assert read_json(folder.config) == {"seed": 0}


@pytest.mark.parametrize("existed", [False, True])
def test_without_a_run_nothing_is_left_behind(tmp_path, existed):
    folder = RunFolder(tmp_path / "run")
    if existed:
        folder.path.mkdir()

    def fail():
        with folder.created():
            folder.write_json(folder.path / "environment.json", {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert holds(tmp_path) == (["run"] if existed else [])
    assert not existed or holds(folder.path) == []
    folder.check_free()


@pytest.mark.parametrize("finished", [False, True])
def test_a_folder_with_a_run_is_refused_with_the_way_on(tmp_path, finished):
    (tmp_path / "config.json").write_text("{}")
    if finished:
        (tmp_path / "summary.json").write_text("{}")
    state = r"\(finished\)" if finished else r"\(unfinished\)"
    with pytest.raises(RunFolderError, match=f"already holds a run {state}.*limbeck resume"):
        RunFolder(tmp_path).check_free()


def test_a_folder_with_anything_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="is not an empty folder"):
        RunFolder(tmp_path).check_free()
    assert holds(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_is_no_folder(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"not an empty folder|is a file"):
        RunFolder(tmp_path / "file" / below).check_free()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc takes no files, from root neither")
def test_a_place_that_cannot_be_written_is_refused_before_anything_else():
    with pytest.raises(RunFolderError, match=r"/proc cannot be written: .*choose another folder"):
        RunFolder("/proc/limbeck-run").check_free()


def test_a_folder_without_the_right_to_write_is_refused(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder(tmp_path / "run").check_free()


def test_the_write_test_leaves_no_trace(tmp_path):
    RunFolder(tmp_path / "run").check_free()
    assert holds(tmp_path) == []


def test_a_held_folder_refuses_others_and_names_the_holder(tmp_path):
    who = rf"in use by process {os.getpid()} on {socket.gethostname()}; wait for it"
    with RunFolder(tmp_path).locked():
        with pytest.raises(RunFolderError, match=who), RunFolder(tmp_path).locked():
            pass
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(RunFolderError, match=who):
            RunFolder(tmp_path).check_free()
    with RunFolder(tmp_path).locked():
        pass
    assert holds(tmp_path) == ["config.json"]


def test_a_holder_that_has_not_given_its_name_yet_still_holds(tmp_path):
    with RunFolder(tmp_path).locked():
        (tmp_path / ".owner.json").unlink()
        unnamed = pytest.raises(RunFolderError, match=r"in use by process \? on \?")
        with unnamed, RunFolder(tmp_path).locked():
            pass


def test_who_comes_second_takes_nothing_away_from_the_first(tmp_path, monkeypatch):
    """Both found the place free; the first has the lock and has not recorded anything yet."""
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.created():
        monkeypatch.setattr(second, "check_free", lambda: None)
        monkeypatch.setattr(Path, "exists", lambda self: False)  # as when both looked
        with pytest.raises(RunFolderError, match="in use by process"), second.created():
            pass
        monkeypatch.undo()
        first.write_json(first.config, {})
    assert holds(first.path) == ["config.json"]


def test_who_comes_after_a_quick_run_does_not_write_into_it(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    monkeypatch.setattr(folder, "check_free", lambda: None)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "summary.json").write_text("{}")
    taken = pytest.raises(RunFolderError, match=r"already holds a run \(finished\)")
    with taken, folder.created():
        pass


def test_json_of_a_run_folder_is_an_object_or_an_error(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(RunFolderError, match=r"is missing.*not a run folder"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(RunFolderError, match="is not JSON"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(RunFolderError, match="should hold a JSON object"):
        read_json(path)


def test_the_environment_has_versions_and_machine_and_no_secrets(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "swordfish")
    found = describe_environment(torch.device("cpu"))
    assert found["packages"]["torch"] == torch.__version__
    assert (found["device"], found["threads"]) == ("cpu", torch.get_num_threads())
    assert found["commit"] is None or len(found["commit"]) == 40
    assert "swordfish" not in json.dumps(found)
