"""What a lens does to a camera's rays: Brown-Conrady and fisheye distortion, with OpenCV's names and order of coefficients.

A ray (x, y, 1) in the camera's frame falls on the pixel K · (distorted x, distorted y, 1). Images are never undistorted:
points are projected through the distortion. Far outside a camera's view the polynomials turn back and would put points
behind the edge onto the image again; :func:`field_limit` is the largest ray up to which they do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..common.compiled import compiled

_NUMBER = {"pinhole": 0, "brown-conrady": 1, "fisheye": 2}
_STEPS = 20  # of Newton's method; lenses in use need 5


@compiled()
def distort(model, k, x, y):  # type: ignore[no-untyped-def]
    """Where the ray (x, y, 1) goes: OpenCV's ``projectPoints`` and ``fisheye.projectPoints`` before the matrix K.

    Args:
        model: 1 Brown-Conrady, 2 fisheye, else pinhole.
        k: float64 [12], the coefficients, then zeros.
    """
    r2 = x * x + y * y
    if model == 1:
        r4, r6 = r2 * r2, r2 * r2 * r2
        radial = (1 + k[0] * r2 + k[1] * r4 + k[4] * r6) / (1 + k[5] * r2 + k[6] * r4 + k[7] * r6)
        u = x * radial + 2 * k[2] * x * y + k[3] * (r2 + 2 * x * x) + k[8] * r2 + k[9] * r4
        v = y * radial + k[2] * (r2 + 2 * y * y) + 2 * k[3] * x * y + k[10] * r2 + k[11] * r4
        return u, v
    if model == 2:
        r = math.sqrt(r2)
        if r < 1e-8:
            return x, y
        t = math.atan(r)
        t2 = t * t
        scale = t * (1 + t2 * (k[0] + t2 * (k[1] + t2 * (k[2] + t2 * k[3])))) / r
        return x * scale, y * scale
    return x, y


def lens_numbers(model: str, distortion: Sequence[float]) -> tuple[int, NDArray[np.float64]]:
    """A lens as :func:`distort` takes it."""
    k = np.zeros(12)
    k[: len(distortion)] = distortion
    return _NUMBER[model], k


@lru_cache(maxsize=256)
def field_limit(model: str, distortion: tuple[float, ...]) -> float:
    """The largest x² + y² of a ray (x, y, 1) up to which the distorted radius still grows; infinity where it always does."""
    if model == "pinhole":
        return math.inf
    k = lens_numbers(model, distortion)[1]
    angle = np.linspace(0, math.radians(89.9), 20_000)[1:]
    if model == "fisheye":
        radius = angle * (1 + k[0] * angle**2 + k[1] * angle**4 + k[2] * angle**6 + k[3] * angle**8)
    else:
        r2 = np.tan(angle) ** 2
        below = 1 + k[5] * r2 + k[6] * r2**2 + k[7] * r2**3
        radius = np.where(below > 0, np.tan(angle) * (1 + k[0] * r2 + k[1] * r2**2 + k[4] * r2**3) / below, -1)
    turned = np.flatnonzero(np.diff(np.r_[0, radius]) <= 0)
    return math.inf if not len(turned) else float(np.tan(angle[max(turned[0] - 1, 0)]) ** 2)


def rays_of(
    uv: NDArray[np.floating], intrinsic: NDArray[np.float64], model: str, distortion: tuple[float, ...]
) -> NDArray[np.float64]:
    """The ray (x, y, 1) that falls on each pixel: the inverse of the projection, float64 [M, 2].

    Newton's method, to 1e-10 of a focal length; NaN where no ray of the camera's field falls on a pixel.

    Args:
        uv: [M, 2] pixels.
        intrinsic: float64 [3, 3].
        model, distortion: of the camera.
    """
    pixel = np.c_[np.asarray(uv, np.float64), np.ones(len(uv))]
    target = np.ascontiguousarray(np.linalg.solve(intrinsic, pixel.T).T[:, :2])
    if model == "pinhole":
        return target
    return _undistort(*lens_numbers(model, distortion), target, field_limit(model, distortion), _STEPS)


@compiled()
def _undistort(model, k, target, limit, steps):  # type: ignore[no-untyped-def]
    found = np.empty_like(target)
    for i in range(len(target)):
        tx, ty = target[i, 0], target[i, 1]
        x, y = tx, ty
        if model == 2:  # a fisheye's distorted radius is about the angle
            r = math.sqrt(tx * tx + ty * ty)
            if r > 1e-8:
                scale = math.tan(min(r, 1.5)) / r
                x, y = tx * scale, ty * scale
        error = np.inf
        for _ in range(steps):
            u, v = distort(model, k, x, y)
            ex, ey = tx - u, ty - v
            error = math.sqrt(ex * ex + ey * ey)
            if error < 1e-13:
                break
            h = 1e-6 * (1 + math.sqrt(x * x + y * y))
            ux1, vx1 = distort(model, k, x + h, y)
            ux0, vx0 = distort(model, k, x - h, y)
            uy1, vy1 = distort(model, k, x, y + h)
            uy0, vy0 = distort(model, k, x, y - h)
            a, b = (ux1 - ux0) / (2 * h), (uy1 - uy0) / (2 * h)
            c, d = (vx1 - vx0) / (2 * h), (vy1 - vy0) / (2 * h)
            determinant = a * d - b * c
            if determinant == 0:
                break
            x += (d * ex - b * ey) / determinant
            y += (a * ey - c * ex) / determinant
        good = error < 1e-10 and x * x + y * y <= limit
        found[i, 0] = x if good else np.nan
        found[i, 1] = y if good else np.nan
    return found
