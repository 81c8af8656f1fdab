"""One thread a process."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The networks here are tiny; one thread is fastest, also beside other work."""
    torch.set_num_threads(1)
