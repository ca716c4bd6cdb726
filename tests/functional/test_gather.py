"""The parts of one process among several; whole processes are in methods/output/test_dist.py."""

import torch
import torch.distributed as dist

from limbeck.functional.gather import gathered


def test_one_process_gets_its_own_rows_back():
    rows = torch.ones(2, 3)
    assert gathered(rows) is rows


def test_rows_are_in_rank_order_and_gradient_flows_to_the_own_ones_times_ranks(
    monkeypatch, generator
):
    everything = torch.randn(3, 2, 4, generator=generator)

    def all_gather(parts, own):
        assert not own.requires_grad
        for rank, part in enumerate(parts):
            part.copy_(own if rank == 1 else everything[rank])

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    rows = everything[1].clone().requires_grad_()
    found = gathered(rows)
    assert torch.equal(found, everything.flatten(0, 1))
    weight = torch.randn(6, 4, generator=generator)
    (found * weight).sum().backward()
    torch.testing.assert_close(rows.grad, 3 * weight[2:4])
