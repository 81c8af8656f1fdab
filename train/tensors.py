"""Files of tensors and plain values, read without unpickling anything else; and whether a state fits a network."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common import OlivineError, PathLike


def read_tensors(path: PathLike, remedy: str) -> Any:
    """A file of tensors and plain values, on the CPU, loaded with ``weights_only=True``.

    Args:
        remedy: what to do where it cannot be read.

    Raises:
        OlivineError: no such file, a truncated file, or one that holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise OlivineError("no such file", where=path, remedy=remedy)
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "numpy" not in str(error):
                raise
            with torch.serialization.safe_globals(_numpy_scalars()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise OlivineError(
            f"holds more than tensors and plain values, or is no file of PyTorch ({_first_line(error)})",
            where=path,
            remedy=remedy,
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise OlivineError(
            f"cannot be read as a checkpoint ({_first_line(error)})", where=path, remedy=remedy
        ) from None


def _numpy_scalars() -> list[Any]:
    """MoCo's and DINO's training files carry NumPy scalars, plain values too."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]  # NumPy 1 and 2 keep it in modules of different names
    kinds: list[Any] = [np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType]
    return kinds + [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Any], where: object, remedy: str) -> None:
    """Raise unless ``state`` holds tensors of the names and shapes of ``own``, all of them and no other.

    Raises:
        OlivineError: counts what differs, and names the first with both shapes.
    """
    missing = [f"{n} {list(t.shape)} is missing" for n, t in own.items() if n not in state]
    extra = [f"{n} {_shape(t)} is not in the network" for n, t in state.items() if n not in own]
    wrong = [
        f"{n} is {_shape(state[n])}, the network's {list(t.shape)}"
        for n, t in own.items()
        if n in state and _shape(state[n]) != list(t.shape)
    ]
    if missing or extra or wrong:
        raise OlivineError(
            f"holds another network's tensors: {len(missing)} missing, {len(extra)} unknown, {len(wrong)} of another "
            f"shape (the first: {(missing + extra + wrong)[0]})",
            where=where,
            remedy=remedy,
        )


def _shape(value: Any) -> list[int] | str:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__
