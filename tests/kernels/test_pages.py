"""Memory that is used again: never by two at once, never more than was once in use."""

import subprocess
import sys
import threading

import pytest
import torch

import normscope
from normscope.kernels.cpu import pages

pytestmark = pytest.mark.skipif(not pages.SHELVES, reason="pieces are kept on Linux only")
SIZE = pages.LARGE // 4  # float32 values of the smallest piece that is kept


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> pages.Shelf:
    made = pages.Shelf()
    monkeypatch.setattr(pages, "shelf", made)
    return made


def test_a_piece_is_used_again_when_its_last_tensor_dies(shelf: pages.Shelf) -> None:
    x = torch.empty(SIZE)
    first = pages.like(x)
    place = first.data_ptr()
    part = first[10:]
    del first
    assert pages.like(x).data_ptr() != place, "a part of it is still in use"
    del part
    assert pages.like(x).data_ptr() == place


def test_no_two_results_share_memory(shelf: pages.Shelf) -> None:
    x = torch.empty(SIZE)
    held = [pages.like(x).fill_(i) for i in range(3)]
    held[1] = pages.like(x).fill_(9)
    assert [float(t.mean()) for t in held] == [0, 9, 2]


def test_shape_strides_and_dtype_are_those_of_x(shelf: pages.Shelf) -> None:
    images = torch.empty(8, 16, 128, 129).to(memory_format=torch.channels_last)
    for x in (images, images.bfloat16(), images[:, ::2], images.double()):
        y, z = pages.like(x), torch.empty_like(x)
        assert (y.shape, y.stride(), y.dtype) == (z.shape, z.stride(), z.dtype)
    assert pages.table(3, SIZE).stride() == (SIZE, 1)


def test_what_waits_and_what_is_used_were_once_in_use(shelf: pages.Shelf) -> None:
    sizes = torch.randint(SIZE, 20 * SIZE, (60,)).tolist()
    held: list[torch.Tensor] = []
    for place, size in enumerate(sizes):
        held.append(pages.like(torch.empty(size)))
        del held[: place % 3]
        assert shelf.kept + shelf.used <= shelf.most
    held.clear()
    assert shelf.kept > 0
    assert shelf.used == 0
    assert shelf.kept == normscope.functional.empty_cache()
    assert shelf.kept == 0


def test_a_piece_much_too_large_is_not_taken(shelf: pages.Shelf) -> None:
    large = pages.like(torch.empty(8 * SIZE))
    place = large.data_ptr()
    del large
    assert pages.like(torch.empty(SIZE)).data_ptr() != place


def test_results_may_be_changed_in_place_and_shared(shelf: pages.Shelf) -> None:
    x = torch.randn(16, 64, 32, 40, requires_grad=True)
    y = normscope.BatchNorm2d(64)(x)
    with torch.no_grad():
        z = normscope.BatchNorm2d(64)(x)
    assert shelf.used >= 2 * x.nbytes
    y += x
    torch.relu_(y)
    torch.relu_(z)
    y.sum().backward()
    before = z.clone()
    assert torch.equal(z.share_memory_(), before)


def test_threads_at_once(shelf: pages.Shelf) -> None:
    wrong: list[int] = []

    def work(name: int) -> None:
        x = torch.empty(SIZE)
        for _ in range(50):
            mine = pages.like(x).fill_(name)
            if not bool((mine == name).all()):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert shelf.kept + shelf.used <= shelf.most


FORKED = """
import os
import signal
import torch
from normscope.kernels.cpu import pages

x = torch.empty(pages.LARGE // 4)
held = pages.like(x).fill_(1)
with pages.shelf._lock:  # as if another thread was within
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # rather than wait for ever
        torch.set_num_threads(1)  # those of OpenMP are not there
        fine = float(held.mean()) == 1 and float(pages.like(x).fill_(2).mean()) == 2
        os._exit(0 if fine else 1)
assert os.waitpid(child, 0)[1] == 0
assert float(held.mean()) == 1
"""


def test_a_child_process_has_its_own() -> None:
    # a process of its own: this one may hold threads of others, which no child survives
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)


def test_memory_of_torch_on_request(shelf: pages.Shelf) -> None:
    with pages.from_torch():
        held = pages.like(torch.empty(SIZE))
    assert shelf.used == 0
    assert held.untyped_storage().resizable()
