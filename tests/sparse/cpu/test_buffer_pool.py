"""The buffer pool: large arrays are used again for the next of about their size."""

import gc
import threading

import pytest
import torch

from olivine.train.sparse.cpu import buffer_pool
from olivine.train.sparse.cpu.buffer_pool import BufferPool


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(buffer_pool, "LEAST", 100)
    return BufferPool()


def test_what_is_freed_is_taken_again(pool):
    first = pool.empty(50, 4)
    place = first.data_ptr()
    assert first.shape == (50, 4) and first.dtype == torch.float32 and first.is_contiguous() and place % 64 == 0
    part, array = first[:10], first.numpy()
    del first
    assert pool.free == 0  # a view and an array still use it
    del part
    assert pool.free == 0
    del array
    assert pool.free == 800
    again = pool.empty(40, 4)  # at least three quarters of it
    assert again.data_ptr() == place and again.shape == (40, 4) and pool.free == 0


def test_free_arrays_go_before_new_ones_come(pool):
    arrays = [pool.empty(n, 10) for n in (20, 40, 60)]
    del arrays
    gc.collect()
    assert pool.free == 4800
    small = pool.empty(12, 10)  # fits none well: the largest goes
    assert pool.free == 2400
    del small
    large = pool.empty(1000, 10)
    assert pool.free == 0
    del large
    pool.release()
    assert pool.free == 0


def test_small_arrays_are_torchs(pool):
    tensor = pool.empty(9, 11)
    del tensor
    assert pool.free == 0


def test_threads_never_share_an_array(pool):
    wrong = []

    def work(number):
        for _ in range(200):
            tensor = pool.empty(30, 10).fill_(number)
            if not bool((tensor == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_network_gives_the_same_bits_with_pooled_arrays(monkeypatch):
    from olivine.train.backbones import build_backbone
    from olivine.train.sparse import SparseTensor

    generator = torch.Generator().manual_seed(0)
    coordinate = torch.cartesian_prod(*[torch.arange(n, dtype=torch.int32) for n in (2, 8, 8, 3)]).contiguous()
    feature = torch.rand(len(coordinate), 1, generator=generator)

    def gradients():
        torch.manual_seed(0)
        network = build_backbone("srunet-small", out_channels=64)
        for _ in range(3):
            network.zero_grad()
            network(SparseTensor(feature, coordinate)).feature.square().sum().backward()
        return [parameter.grad for parameter in network.parameters()]

    expected = gradients()
    monkeypatch.setattr(buffer_pool, "LEAST", 1)
    for one, other in zip(gradients(), expected):
        assert torch.equal(one, other)
    buffer_pool.pool.release()
