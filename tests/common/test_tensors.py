"""Files of tensors."""

from pathlib import Path

import torch

from olivine.common.tensors import read_tensors, write_tensors


def test_equal_contents_are_equal_bytes_however_they_came_about(tmp_path: Path) -> None:
    """As of a run that was resumed: its strings come from a file, not from the program."""
    shared = ["name", {"name": "name"}]
    content = {"name": shared, "again": shared, "pair": (1, "name"), "tensor": torch.arange(5.0)}
    write_tensors(tmp_path / "first.pt", content)
    again = read_tensors(tmp_path / "first.pt", "")
    apart = {"".join(list(key)): value for key, value in again.items()}
    write_tensors(tmp_path / "second.pt", apart)
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "second.pt").read_bytes()
