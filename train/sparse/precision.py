"""How exactly products of float32 numbers are made: one setting, which says the same on every device.

================ ================================================================ ============================
setting          factors                                                          relative error of a product
================ ================================================================ ============================
``ieee``         as they are                                                      2⁻²⁴
``tf32x3``       split into two TF32 numbers each, of whose products three count  about 2⁻²¹
``tf32``         rounded to TF32: 10 bits after the leading one                   2⁻¹¹ of each factor
================ ================================================================ ============================

It is the least exactness that a run allows. A device without TF32, as any CPU, computes ``ieee`` whatever is set; so does
PyTorch's own matrix product on a GPU where ``tf32x3`` is set. Sums are float32 always, and 16-bit factors (autocast) are not
concerned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

from ...common import OlivineError

Float32Products = Literal["ieee", "tf32x3", "tf32"]
FLOAT32_PRODUCTS: tuple[Float32Products, ...] = ("ieee", "tf32x3", "tf32")

_products: Float32Products = "tf32x3"


def float32_products() -> Float32Products:
    """The setting in force."""
    return _products


def set_float32_products(products: str) -> None:
    """Set it for the engine ``triton``, for PyTorch's matrix products and for cuDNN's convolutions, from now on.

    Raises:
        OlivineError: an unknown setting.
    """
    global _products
    if products not in FLOAT32_PRODUCTS:
        raise OlivineError(
            f"no way {products!r} to multiply float32", remedy=f"choose one of {', '.join(FLOAT32_PRODUCTS)}"
        )
    _products = products
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = products == "tf32"


@contextlib.contextmanager
def float32_as(products: str = "tf32x3") -> Iterator[None]:
    """:func:`set_float32_products` for the length of a block or, as a decorator, of a call; afterwards all is as it was."""
    before = _products
    rounded = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_float32_products(products)
    try:
        yield
    finally:
        set_float32_products(before)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = rounded
