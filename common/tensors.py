"""Files of tensors and plain values: written whole, read without unpickling anything else; whether a state fits a network."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import OlivineError, PathLike, memory_error
from .files import write_bytes


def _alike(value: Any) -> Any:
    """A copy whose equal strings are one object, and whose containers are nobody else's.

    A pickle names an object that it has met before: without this, equal contents that came about in other ways (a run
    that was resumed) would be other bytes.
    """
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, dict):
        return {_alike(key): _alike(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_alike, value))
    return value


def write_tensors(path: PathLike, content: Any) -> None:
    """Write tensors and plain values as PyTorch does, whole or not at all.

    Raises:
        OlivineError: the disk is full.
    """
    # Through memory: torch's own writer turns a full disk into an error that does not say so.
    buffer = io.BytesIO()
    try:
        torch.save(_alike(content), buffer)
    except RuntimeError as error:  # its writer says so of a MemoryError
        if "unexpected pos" in str(error):
            raise MemoryError(f"{buffer.tell():,} bytes of {Path(path).name}") from error
        raise
    write_bytes(path, buffer.getvalue())


def read_tensors(path: PathLike, remedy: str) -> Any:
    """A file of tensors and plain values, on the CPU: of safetensors, which holds no code, or one of PyTorch's, loaded with
    ``weights_only=True``.

    Args:
        remedy: what to do where it cannot be read.

    Raises:
        OlivineError: no such file, a truncated or changed file, or one that holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise OlivineError("no such file", where=path, remedy=remedy)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, remedy)
    _check_archive(path, remedy)
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
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
    ) as error:
        if memory_error(error) is not None:
            raise
        raise OlivineError(
            f"cannot be read as a checkpoint ({_first_line(error)})", where=path, remedy=remedy
        ) from None


def _read_safetensors(path: Path, remedy: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise OlivineError(f"cannot be read as safetensors ({_first_line(error)})", where=path, remedy=remedy) from None
    return state


def _check_archive(path: Path, remedy: str) -> None:
    """Compare every entry of a zip archive with its CRC-32, which PyTorch does not; older files are no archives."""
    try:
        with open(path, "rb") as handle:
            if handle.read(4) != b"PK\3\4":
                return
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist()]
            # PyTorch stores. Compressed, a small file could fill the memory.
            if len(set(names)) != len(names) or any(e.compress_type != zipfile.ZIP_STORED for e in archive.infolist()):
                raise OlivineError("is no archive as PyTorch writes it", where=path, remedy=remedy)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        if memory_error(error) is not None:
            raise
        raise OlivineError(f"cannot be read, it is damaged ({_first_line(error)})", where=path, remedy=remedy) from None
    if damaged is not None:
        raise OlivineError(
            f"cannot be read, it is damaged: {damaged} is not what was written", where=path, remedy=remedy
        )


def _numpy_scalars() -> list[Any]:
    """MoCo's and DINO's training files carry NumPy scalars, plain values too."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]  # NumPy 1 and 2 keep it in modules of different names
    kinds: list[Any] = [np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType]
    return kinds + [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Any], where: object, remedy: str) -> None:
    """Raise unless ``state`` holds finite tensors of the names and shapes of ``own``, all of them and no other.

    Raises:
        OlivineError: counts what differs, and names the first with both shapes; or names one that is not finite.
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
    check_finite(state, where)


def check_finite(state: Mapping[str, Tensor], where: object, remedy: str = "take a checkpoint from before") -> None:
    """Raise where a tensor holds a number that is not finite.

    Raises:
        OlivineError: names it.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise OlivineError(f"{name} holds numbers that are not finite", where=where, remedy=remedy)


def _shape(value: Any) -> list[int] | str:
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__
