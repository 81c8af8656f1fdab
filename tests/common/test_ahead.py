"""Promises of what is made one ahead in a thread: the same items, errors where they belong, and an end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from olivine.common import OlivineError
from olivine.common.ahead import THREADED, Ahead

CPU = torch.device("cpu")


@pytest.fixture
def threaded() -> Iterator[None]:
    """Threads on a CPU too."""
    THREADED.add("cpu")
    yield
    THREADED.remove("cpu")


def test_on_a_cpu_items_are_made_where_they_are_taken() -> None:
    with Ahead[int](CPU) as ahead:
        items = ahead(threading.get_ident() for _ in range(2))
        assert list(items) == [threading.get_ident()] * 2
        assert ahead.waited_s is None


def test_items_come_in_order_and_one_is_made_while_the_last_is_in_use(threaded: None) -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    with Ahead[int](CPU) as ahead:
        for number, item in enumerate(ahead(items())):
            assert item == number
            for _ in range(500):
                if made[-1] == min(number + 1, 4):
                    break
                time.sleep(0.01)
            time.sleep(0.05)
            assert made == list(range(min(number + 2, 5)))  # the next one, and no other
    assert made == [0, 1, 2, 3, 4]


def test_an_error_is_raised_where_its_item_is_taken(threaded: None) -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise OlivineError("this frame is broken", where="here")

    with Ahead[int](CPU) as ahead:
        taken = ahead(items())
        assert [next(taken), next(taken)] == [0, 1]
        with pytest.raises(OlivineError, match="here: this frame is broken"):
            next(taken)


def test_the_thread_ends_with_the_block_whatever_ends_it(threaded: None) -> None:
    def items() -> Iterator[int]:
        while True:
            yield 0

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Ahead[int](CPU) as ahead:
        for _ in ahead(items()):
            assert threading.active_count() == before + 1
            raise KeyboardInterrupt
    assert threading.active_count() == before


def test_what_is_waited_for_is_counted(threaded: None) -> None:
    def items() -> Iterator[int]:
        for _ in range(2):
            time.sleep(0.05)
            yield 0

    with Ahead[int](CPU) as ahead:
        assert ahead.waited_s == 0
        assert list(ahead(items())) == [0, 0]
        assert (ahead.waited_s or 0) > 0  # how long depends on when each thread is run
