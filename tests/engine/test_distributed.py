import subprocess
import sys
import textwrap

import pytest
import torch

from limbeck.core.errors import DeviceError
from limbeck.engine.distributed import (
    World,
    check_ranks_agree,
    join_ranks,
    pick_device,
    sum_over_ranks,
)


def test_auto_is_a_device_that_is_there():
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == kind


@pytest.mark.parametrize("asked", ["gpu", "cuda:x", "tpu"])
def test_an_unknown_device_is_refused(asked):
    with pytest.raises(DeviceError, match="'auto', 'cpu', 'cuda' or 'cuda:N'"):
        pick_device(asked)


@pytest.mark.parametrize("asked", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused_with_the_way_out(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="--device cpu"):
        pick_device(asked)


def test_one_process_sums_to_itself():
    values = torch.tensor([1.0, 2.0])
    assert sum_over_ranks(values, World()) is values
    assert join_ranks(values, World()) is values
    check_ranks_agree(torch.nn.Linear(1, 1), {}, World())


def torchrun(program, tmp_path, *, expect=0):
    """Run a program as two processes; their joint output."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", path],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode == 0) == (expect == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def test_ranks_that_differ_are_found_at_the_start(tmp_path):
    output = torchrun(
        """
        import torch
        from limbeck.engine.distributed import check_ranks_agree, process_group, sum_over_ranks
        with process_group("cpu") as world:
            torch.manual_seed(0)
            same = torch.nn.Linear(2, 2)
            check_ranks_agree(same, {"lr": 0.1}, world)
            assert sum_over_ranks(torch.tensor(float(world.rank + 1)), world) == 3
            torch.manual_seed(world.rank)
            try:
                check_ranks_agree(torch.nn.Linear(2, 2), {"lr": 0.1}, world)
            except Exception as error:
                print(f"weights: {error}")
            try:
                check_ranks_agree(same, {"lr": world.rank}, world)
            except Exception as error:
                print(f"settings: {error}")
        """,
        tmp_path,
    )
    assert output.count("weights: ranks [1] differ from rank 0") == 2
    assert output.count("settings: ranks [1] differ from rank 0") == 2


def test_one_program_can_join_again_and_again(tmp_path):
    """A second group would find the first one's addresses in the launcher's store."""
    output = torchrun(
        """
        import torch
        from limbeck.engine.distributed import process_group, sum_over_ranks
        for run in range(3):
            with process_group("cpu") as world:
                total = sum_over_ranks(torch.tensor(float(world.rank + 1)), world)
            print(f"run {run}: {total.item()}")
        """,
        tmp_path,
    )
    assert [output.count(f"run {run}: 3.0") for run in range(3)] == [2, 2, 2]


def test_rows_of_all_ranks_are_joined_in_order_and_one_may_have_none(tmp_path):
    output = torchrun(
        """
        import torch
        from limbeck.engine.distributed import join_ranks, process_group
        with process_group("cpu") as world:
            whole = torch.arange(10.0).reshape(5, 2)
            mine = whole[:3] if world.rank == 0 else whole[3:]
            assert torch.equal(join_ranks(mine, world), whole)
            mine = whole if world.rank == 1 else torch.empty(0, 0)
            assert torch.equal(join_ranks(mine, world), whole)
            print("joined")
        """,
        tmp_path,
    )
    assert output.count("joined") == 2
