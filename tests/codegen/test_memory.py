"""The pool behind large results, and what is remembered of tensors."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

import dsgc
from dsgc.codegen import cpu_kernels
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.cpu import Libraries
from dsgc.codegen.cpu.libraries import is_dense
from dsgc_runtime import MemoryPool

LARGE = 1 << 19  # floats: 2 MB


@pytest.fixture
def libraries() -> Libraries:
    return Libraries(KernelCache())


def test_freed_memory_waits_for_the_next_result(libraries: Libraries) -> None:
    first = libraries.empty(LARGE)
    address = first.data_ptr()
    view = first.view(2, -1)[1]
    del first
    gc.collect()
    # A view still lives: its memory must not be given out again.
    other = libraries.empty(LARGE)
    assert other.data_ptr() != address
    del view, other
    gc.collect()
    again = [libraries.empty(LARGE) for _ in range(2)]
    assert address in {one.data_ptr() for one in again}


def test_waiting_memory_can_be_given_back(libraries: Libraries) -> None:
    kept = libraries.empty(LARGE).fill_(7.0)
    freed = libraries.empty(5 * LARGE)
    del freed
    gc.collect()
    pool = MemoryPool(KernelCache().directory)
    assert pool.release() >= 4 * 5 * LARGE
    assert pool.release() == 0
    assert bool((kept == 7.0).all())
    assert libraries.empty(LARGE).shape == (LARGE,)


def test_users_can_give_it_back(libraries: Libraries) -> None:
    cpu_kernels()
    freed = libraries.empty(LARGE)
    del freed
    gc.collect()
    assert dsgc.release_memory() >= 4 * LARGE
    assert dsgc.release_memory() == 0


def test_the_pool_does_not_grow_without_bound(libraries: Libraries) -> None:
    """Requests of ever other sizes: what waits stays within half of the most in use."""
    pool = MemoryPool(KernelCache().directory)
    pool.release()
    for step in range(1, 30):
        held = libraries.empty(step * LARGE)
        del held
        gc.collect()
    assert pool.release() <= 1.5 * 4 * 29 * LARGE + (2 << 20)


def test_too_much_memory_is_an_error() -> None:
    with pytest.raises(MemoryError, match="no memory for"):
        MemoryPool(KernelCache().directory).floats(1 << 58)


def test_threads_never_share_a_piece(libraries: Libraries) -> None:
    wrong: list[float] = []

    def work(mark: float) -> None:
        for _ in range(40):
            mine = libraries.empty(LARGE).fill_(mark)
            found = float(mine.sum()) / LARGE
            if found != mark:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(float(mark),)) for mark in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("size", [4, 300])
def test_a_result_has_the_strides_of_its_model(libraries: Libraries, size: int) -> None:
    model = torch.empty(size, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    for like in (model, model.transpose(0, 1), model[:, :3]):
        found = libraries.empty_like(like)
        assert found.shape == like.shape
        if is_dense(like):
            assert found.stride() == like.stride()


def test_dense_means_without_gaps_or_overlaps() -> None:
    x = torch.empty(4, 6, 5)
    assert is_dense(x)
    assert is_dense(x.permute(2, 0, 1))
    assert is_dense(x[:, :1, :1].contiguous())
    assert not is_dense(x[:, ::2])
    assert not is_dense(x[:1].expand(4, 6, 5))


def test_what_was_made_of_a_tensor_is_made_once(libraries: Libraries) -> None:
    calls = []

    def make(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(tensor.shape)
        return tensor * 2

    x, y = torch.ones(3), torch.ones(3)
    first = libraries.remember(x, "double", make)
    assert libraries.remember(x, "double", make) is first
    assert libraries.remember(y, "double", make) is not first
    assert libraries.remember(x, "again", make) is not first
    assert len(calls) == 3


def test_what_was_made_of_a_tensor_follows_what_is_written_to_it(libraries: Libraries) -> None:
    x = torch.ones(3)
    kept = [libraries.remember(x, "double", lambda tensor: tensor * 2)]
    x.copy_(torch.full((3,), 5.0))
    kept += [libraries.remember(x, "double", lambda tensor: tensor * 2) for _ in range(2)]
    assert [float(one[0]) for one in kept] == [2.0, 10.0, 10.0]
    assert kept[1] is kept[2]


def test_an_inference_tensor_is_remembered_too(libraries: Libraries) -> None:
    with torch.inference_mode():
        x = torch.ones(3)
    first = libraries.remember(x, "double", lambda tensor: tensor * 2)
    assert libraries.remember(x, "double", lambda tensor: tensor * 2) is first
