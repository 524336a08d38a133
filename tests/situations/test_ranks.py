"""A model under DistributedDataParallel: one rank may look alone, or all of them together."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from normscope.doctor import diagnose, repair
from tests.situations.situation import (
    blamed,
    digit_batches,
    digit_net,
    epoch_ago,
    fingerprint,
    look,
    settled,
)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    wait = timedelta(seconds=60)  # instead of for ever, where one rank waits for another
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=wait
    )
    every = digit_batches()[:12]
    torch.manual_seed(0)
    net = settled(digit_net(), every)
    model = DistributedDataParallel(net)
    if rank == 0:  # rank 0's buffers are sent to the others in every forward of the wrapper
        assert blamed(look(model, every)) == ()
        assert model.broadcast_buffers
    dist.barrier()
    if rank == 1:
        epoch_ago(net, dose=1.5)
    before = fingerprint(model)
    found = diagnose(model, every[rank::2], process_group="world")
    assert "NS018" in found.codes
    assert ("NS003" in found.codes) == (rank == 1)
    assert fingerprint(model) == before
    alone = diagnose(model, every[rank::2])
    assert {s.reason for s in alone.skipped if s.code == "NS018"} == {"doctor.skip.ranks"}
    if rank == 1:
        assert repair(model, alone, every).record.kept == ("recalibrate",)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_look_alone_and_together(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
