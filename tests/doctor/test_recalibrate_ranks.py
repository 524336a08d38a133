"""Two gloo ranks with 13 and 0 samples, then 9 and 4, against one process with all."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from normscope import InputError, ModelError, recalibrate


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3), nn.BatchNorm1d(3))


def data() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(13, 2) * 3 + 2


def broken(x: Tensor) -> object:
    yield x
    raise OSError("gone")


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = {}
    for sizes in ((13, 0), (9, 4)):
        net, part = model(), data().split(sizes)[rank]
        recalibrate(net, part.split(5), propagate="sequential", process_group="world")
        found[sizes] = net.state_dict()
    net = model()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    part = data()[:5]
    with pytest.raises((InputError, ModelError), match="gone" if rank else "another rank failed"):
        recalibrate(net, broken(part) if rank else [part], process_group="world")
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_end_with_the_statistics_of_all_data(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    alone = model()
    recalibrate(alone, [data()], propagate="sequential")
    for rank in range(2):
        for state in torch.load(tmp_path / f"{rank}.pt").values():
            for name, value in alone.state_dict().items():
                if "tracked" not in name:
                    torch.testing.assert_close(state[name], value)
