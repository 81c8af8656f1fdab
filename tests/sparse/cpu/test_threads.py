"""Loops on the threads of torch's OpenMP runtime."""

import threading
import time

import pytest
import torch

from olivine.train.sparse.cpu import threads
from olivine.train.sparse.cpu.threads import in_threads


@pytest.fixture(params=["openmp", "python"])
def team(request, monkeypatch):
    if request.param == "python":
        monkeypatch.setattr(threads, "_team", lambda: threads._python_team)
    elif threads._team() is threads._python_team:
        pytest.skip("this torch was built without OpenMP")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield request.param
    torch.set_num_threads(before)


def test_every_call_is_made_once_and_by_several_threads(team):
    made, by = [], set()

    def loop(number, text):
        time.sleep(0.002)  # releases the interpreter's lock, as compiled loops do
        made.append((number, text))
        by.add(threading.get_ident())

    in_threads(loop, [(n, str(n)) for n in range(40)])
    assert sorted(made) == [(n, str(n)) for n in range(40)]
    assert len(by) == 3 and threading.get_ident() in by


def test_what_a_call_raises_reaches_the_caller_and_the_next_region_works(team):
    def loop(number):
        if number == 3:
            raise IndexError("the fourth")

    with pytest.raises(IndexError, match="the fourth"):
        in_threads(loop, [(n,) for n in range(8)])
    made = []
    in_threads(made.append, [(n,) for n in range(8)])
    assert sorted(made) == list(range(8))


def test_one_thread_or_one_call_stays_in_the_calling_thread():
    by = []
    in_threads(lambda _: by.append(threading.get_ident()), [(0,)])
    in_threads(lambda _: by.append(threading.get_ident()), [])
    assert by == [threading.get_ident()]


def test_regions_of_several_threads_do_not_meet(team):
    def work(results):
        for _ in range(20):
            made = []
            in_threads(made.append, [(n,) for n in range(5)])
            results.append(sorted(made))

    results: list[list[int]] = []
    callers = [threading.Thread(target=work, args=(results,)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [list(range(5))] * 60
