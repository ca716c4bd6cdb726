import json
import shutil
import sys
import types
import warnings

import pytest
import torch

from limbeck.cli.doctor import findings
from limbeck.models import vision
from limbeck.models.vision import VisionState


def by_name():
    return {finding.what: finding for finding in findings()}


def test_versions_threads_and_disk_are_told(limbeck):
    answer = limbeck("doctor")
    assert answer.code == 0
    for text in ("limbeck", "python", f"torch              {torch.__version__}", "threads", "disk"):
        assert text in answer.out


@pytest.mark.parametrize(
    ("state", "shown", "remedy"),
    [
        (VisionState("0.99"), "0.99", None),
        (VisionState(None, remedy="pip install it"), "not installed", "pip install it"),
        (
            VisionState("0.99", "cannot be imported (RuntimeError: no nms)", "build it anew"),
            "0.99 cannot be imported (RuntimeError: no nms)",
            "build it anew",
        ),
    ],
    ids=["whole", "absent", "broken"],
)
def test_the_three_states_of_torchvision_are_told_with_their_remedy(
    state, shown, remedy, limbeck, monkeypatch
):
    monkeypatch.setattr(vision, "vision_state", lambda name: state)
    finding = by_name()["torchvision"]
    assert (finding.value, finding.remedy) == (shown, remedy)
    text = limbeck("doctor").out
    assert (f"to mend it: {remedy}" in text) == (remedy is not None)
    assert ("All is well." in text) == (remedy is None)


def test_a_torch_that_cannot_be_imported_is_a_finding_and_no_crash(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it now raises ImportError
    finding = by_name()["torch"]
    assert "cannot be imported" in finding.value
    assert "pytorch.org" in finding.remedy


def test_a_package_that_is_missing_is_a_finding(monkeypatch):
    monkeypatch.setattr("limbeck.cli.doctor._PACKAGES", ("limbeck-no-such-package",))
    finding = by_name()["limbeck-no-such-package"]
    assert (finding.value, finding.remedy) == (
        "not installed",
        "pip install limbeck-no-such-package",
    )


def test_more_threads_than_processors_are_to_be_mended(monkeypatch):
    monkeypatch.setattr("limbeck.cli.doctor._num_processors", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert by_name()["threads"].remedy.endswith("set OMP_NUM_THREADS=2")


def test_little_disk_is_to_be_mended(monkeypatch):
    usage = types.SimpleNamespace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert "--output" in by_name()["free disk here"].remedy


def test_every_gpu_is_listed(monkeypatch):
    properties = types.SimpleNamespace(name="Abacus", total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    found = by_name()
    assert found["cuda:0"].value == found["cuda:1"].value == "Abacus, 8 GiB"
    assert "GPU" not in found


def test_a_driver_that_torch_cannot_use_is_to_be_mended(monkeypatch):
    def unusable():
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unusable)
    finding = by_name()["GPU"]
    assert "driver on your system is too old" in finding.value
    assert "nvidia-smi" in finding.remedy


def test_a_machine_reads_the_same_findings(limbeck):
    found = json.loads(limbeck("doctor", "--json").out)
    assert {"what": "torch", "value": torch.__version__, "remedy": None} in found
