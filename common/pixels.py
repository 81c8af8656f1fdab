"""The pixels of a Pillow image without a copy."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray


class _ArrowArray(ctypes.Structure):
    """The C struct of Arrow's data interface, which Pillow exports its memory by (11.2 and later)."""

    _fields_ = (
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
    )


def pixels_of(picture: Any) -> tuple[NDArray[numpy.uint8], object]:
    """The pixels of a Pillow image of mode RGB, uint8 [H, W, 4], and what keeps their memory alive.

    The last channel means nothing. Pillow's own memory where it can be had in one piece (Pillow
    11.2 and newer, up to 16 MiB), else a copy; read it, and keep ``picture`` while you do.
    """
    import numpy as np

    try:
        _, capsule = picture.__arrow_c_array__()
    except (AttributeError, ValueError, MemoryError):
        return np.asarray(picture.convert("RGBX")), None
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    array = ctypes.cast(address(capsule, b"arrow_array"), ctypes.POINTER(_ArrowArray)).contents
    child = ctypes.cast(array.children[0], ctypes.POINTER(_ArrowArray)).contents
    width, height = picture.size
    memory = (ctypes.c_uint8 * (width * height * 4)).from_address(child.buffers[1] or 0)
    return np.ctypeslib.as_array(memory).reshape(height, width, 4), capsule
