"""Four gloo ranks with 5, 0, 1 and 9 samples against one process with all fifteen."""

import copy
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import normscope

SIZES = (5, 0, 1, 9)
SHAPE = (15, 3, 2, 2)


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(1)
    made: dict[str, nn.Module] = {
        "plain": normscope.BatchNorm2d(3, process_group="world"),
        "activated": normscope.BatchNorm2d(3, momentum=None, act="silu", process_group="world"),
        "masked": normscope.BatchNorm2d(3, process_group="world"),
        "conditional": normscope.ConditionalBatchNorm2d(3, 4, process_group="world"),
        "shared": normscope.ConditionalBatchNorm2d(3, 4, stats="shared", process_group="world"),
        "filled": normscope.ConditionalBatchNorm2d(3, 4, min_count=30, process_group="world"),
        "renorm": normscope.BatchRenorm2d(3, ramp=0, process_group="world"),
    }
    for layer in made.values():
        layer.double()
        nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    return made


def data() -> dict[str, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(SHAPE, dtype=torch.double) + torch.arange(15).view(-1, 1, 1, 1)
    return {
        "x": x,
        "dy": torch.randn(SHAPE, dtype=torch.double),
        "ddx": torch.randn(SHAPE, dtype=torch.double),
        # condition 2 lives on the last rank only, condition 3 nowhere
        "ids": torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 2, 2, 0, 1, 2, 1, 0]),
        "mask": torch.rand(15, 2, 2) < 0.7,
    }


def run(name: str, layer: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """y, first and second gradients and the buffers after a step; parameter gradients summed."""
    x = batch["x"].clone().requires_grad_()
    kwargs: dict[str, Any] = {}
    if name in ("conditional", "shared", "filled"):
        kwargs["condition"] = batch["ids"]
    if name == "masked":
        kwargs["mask"] = batch["mask"]
    y = layer(x, **kwargs)
    wanted = [x, layer.weight, layer.bias]
    dx, dw, db = torch.autograd.grad(y, wanted, batch["dy"], create_graph=True)
    second = torch.autograd.grad(dx, [x, layer.weight], batch["ddx"], allow_unused=True)
    dd_x = second[0]
    dd_w = torch.zeros_like(layer.weight) if second[1] is None else second[1]
    return {
        "y": y.detach(), "dx": dx.detach(), "dw": dw.detach(), "db": db.detach(),
        "dd_x": dd_x, "dd_w": dd_w,
        **{k: v.clone() for k, v in layer.named_buffers() if k != "filled_up"},
    }  # fmt: skip


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=len(SIZES),
        timeout=timedelta(seconds=60),
    )
    start = sum(SIZES[:rank])
    mine = {key: value[start : start + SIZES[rank]] for key, value in data().items()}
    results = {}
    for name, layer in layers().items():
        result = run(name, layer, mine)
        for key in ("dw", "db", "dd_w"):  # what DistributedDataParallel adds up
            dist.all_reduce(result[key])
        results[name] = result
    # one value per channel in the whole world is too few, on every rank
    single = normscope.BatchNorm1d(3, process_group="world")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        single(torch.randn(1 if rank == 3 else 0, 3))
    local = nn.BatchNorm1d(1, momentum=None).double()
    for part in mine["x"][:, :1, 0, 0].split(3):
        if part.shape[0] > 1:
            local(part)
    results["merge before"] = {k: v.clone() for k, v in local.named_buffers()}
    normscope.merge_ranks(local)
    results["merge after"] = dict(local.named_buffers())
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch was built without gloo")
    folder: Path = tmp_path_factory.mktemp("gloo")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(work, args=(str(folder),), nprocs=len(SIZES))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(SIZES))]


@pytest.mark.parametrize("name", list(layers()))
def test_ranks_equal_one_process(name: str, ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    layer = copy.deepcopy(layers()[name])
    setattr(layer, "process_group", None)  # noqa: B010
    want = run(name, layer, data())
    close = {"rtol": 1e-10, "atol": 1e-10}
    for key in ("y", "dx", "dd_x"):
        joined = torch.cat([result[name][key] for result in ranks])
        torch.testing.assert_close(joined, want[key], **close)
    for result in ranks:
        for key in ("dw", "db", "dd_w", "running_mean", "running_var", "num_batches_tracked"):
            torch.testing.assert_close(result[name][key], want[key], **close)


def test_merging_ranks_is_the_law_of_total_variance(
    ranks: list[dict[str, dict[str, Tensor]]],
) -> None:
    before = [result["merge before"] for result in ranks]
    seen = torch.stack([b["num_batches_tracked"].double() for b in before])
    share = (seen / seen.sum()).unsqueeze(1)
    mean = sum(w * b["running_mean"] for w, b in zip(share, before, strict=True))
    var = sum(
        w * (b["running_var"] + (b["running_mean"] - mean) ** 2)
        for w, b in zip(share, before, strict=True)
    )
    average = sum(w * b["running_var"] for w, b in zip(share, before, strict=True))
    assert (var > 2 * average).all()  # what an average of variances would lose here
    for result in ranks:
        torch.testing.assert_close(result["merge after"]["running_mean"], mean)
        torch.testing.assert_close(result["merge after"]["running_var"], var)
        assert int(result["merge after"]["num_batches_tracked"]) == int(seen.sum())
