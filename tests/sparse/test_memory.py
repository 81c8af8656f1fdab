"""Arrays that are kept for the next one of about their size."""

import gc
import threading

import pytest
import torch

from olivine.train.sparse import memory
from olivine.train.sparse.memory import Keeper


@pytest.fixture
def keeper(monkeypatch):
    monkeypatch.setattr(memory, "LEAST", 100)
    return Keeper()


def test_what_is_freed_is_taken_again(keeper):
    first = keeper.take(50, 4)
    place = first.data_ptr()
    assert first.shape == (50, 4) and first.dtype == torch.float32 and first.is_contiguous() and place % 64 == 0
    part, array = first[:10], first.numpy()
    del first
    assert keeper.free == 0  # a view and an array still use it
    del part
    assert keeper.free == 0
    del array
    assert keeper.free == 800
    again = keeper.take(40, 4)  # at least three quarters of it
    assert again.data_ptr() == place and again.shape == (40, 4) and keeper.free == 0


def test_free_arrays_go_before_new_ones_come(keeper):
    arrays = [keeper.take(n, 10) for n in (20, 40, 60)]
    del arrays
    gc.collect()
    assert keeper.free == 4800
    small = keeper.take(12, 10)  # fits none well: the largest goes
    assert keeper.free == 2400
    del small
    large = keeper.take(1000, 10)
    assert keeper.free == 0
    del large
    keeper.release()
    assert keeper.free == 0


def test_small_arrays_are_torchs(keeper):
    tensor = keeper.take(9, 11)
    del tensor
    assert keeper.free == 0


def test_threads_never_share_an_array(keeper):
    wrong = []

    def work(number):
        for _ in range(200):
            tensor = keeper.take(30, 10).fill_(number)
            if not bool((tensor == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_network_gives_the_same_bits_with_kept_arrays(monkeypatch):
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
    monkeypatch.setattr(memory, "LEAST", 1)
    for one, other in zip(gradients(), expected):
        assert torch.equal(one, other)
    memory.keeper.release()
