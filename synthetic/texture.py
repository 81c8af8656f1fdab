"""What surfaces look like: procedural albedo by material, object and place. Compiled, without state."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled, inlined
from .parts import MATERIAL

ASPHALT, PAVING, GRASS, FACADE = (MATERIAL[m] for m in ("asphalt", "paving", "grass", "facade"))
LEAF, BARK, PAINT, GLASS = (MATERIAL[m] for m in ("leaf", "bark", "paint", "glass"))
CLOTH, CONE, BARRIER = (MATERIAL[m] for m in ("cloth", "cone", "barrier"))
CONCRETE, ROOF, COACH, CARGO = (MATERIAL[m] for m in ("concrete", "roof", "coach", "cargo"))


@compiled
def lattice(x: int, y: int, z: int, seed: int) -> float:
    """A number in [0, 1) for an integer place: an avalanche of the mixed coordinates (MurmurHash3's finaliser)."""
    h = (x * 73856093) ^ (y * 19349663) ^ (z * 83492791) ^ (seed * 2654435761)
    h &= 0xFFFFFFFF
    h ^= h >> 16
    h = (h * 0x85EBCA6B) & 0xFFFFFFFF
    h ^= h >> 13
    h = (h * 0xC2B2AE35) & 0xFFFFFFFF
    h ^= h >> 16
    return h / 4294967296.0


@compiled
def noise2(x: float, y: float, seed: int) -> float:
    """Value noise of period 1 in the plane, in [0, 1)."""
    fx, fy = np.floor(x), np.floor(y)
    i, j = int(fx), int(fy)
    u, v = x - fx, y - fy
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    low = lattice(i, j, 0, seed) * (1 - u) + lattice(i + 1, j, 0, seed) * u
    high = lattice(i, j + 1, 0, seed) * (1 - u) + lattice(i + 1, j + 1, 0, seed) * u
    return low * (1 - v) + high * v


@compiled
def noise3(x: float, y: float, z: float, seed: int) -> float:
    """Value noise of period 1 in space, in [0, 1)."""
    fz = np.floor(z)
    k = int(fz)
    w = z - fz
    w = w * w * (3 - 2 * w)
    return noise2(x, y, seed + 131 * k) * (1 - w) + noise2(x, y, seed + 131 * (k + 1)) * w


@inlined
def fade(footprint: float, period: float) -> float:
    """How much of a pattern is left where a pixel covers ``footprint`` metres of it (1 near, 0 far)."""
    return min(max(1.4 - 2.0 * footprint / period, 0.0), 1.0)


@compiled
def _road(streets: NDArray[Any], x: float, y: float, seed: int, footprint: float) -> Any:
    """Asphalt with its lane markings: (r, g, b)."""
    wear = noise2(x * 0.35, y * 0.35, seed)
    base = 0.115 + 0.045 * (wear - 0.5)
    grain = fade(footprint, 0.06)
    if grain > 0:
        base += 0.06 * grain * (noise2(x * 17.0, y * 17.0, seed + 3) - 0.5)
    inside, owner = 0, -1
    for k in range(len(streets)):
        across = (y if streets[k, 0] > 0 else x) - streets[k, 1]
        if abs(across) < streets[k, 2]:
            inside += 1
            owner = k
    white = 0.0
    if inside == 1:
        street = streets[owner]
        along = x if street[0] > 0 else y
        across = (y if street[0] > 0 else x) - street[1]
        lanes, half, parking = street[3], street[2], street[4]
        edge = 1e9  # distance to the nearest crossing street's kerb line
        for k in range(len(streets)):
            if streets[k, 0] != street[0]:
                edge = min(edge, abs(along - streets[k, 1]) - streets[k, 2])
        off = abs(across)
        if edge > 5.0:
            if off < 0.24 and off > 0.10:
                white = 0.8  # double centre line
            for lane in range(1, int(lanes)):
                if abs(off - lane * 3.3) < 0.07 and along % 9.0 < 3.6:
                    white = 1.0
            if abs(off - lanes * 3.3) < 0.06 and along % 3.0 < 1.5:
                white = 0.9
            if parking > 0 and abs(off - (half - parking)) < 0.05:
                white = 0.9
        elif 0.8 < edge < 3.8:
            if (across + 50.0) % 1.1 < 0.55 and off < half - 0.4:
                white = 1.0  # zebra crossing
        elif 4.4 < edge < 4.8 and off < half - 0.5:
            white = 1.0  # stop line
        if off > half - 0.35:
            base *= 0.8  # gutter
    if white > 0:
        rubbed = white * min(max(1.55 - 1.3 * noise2(x * 2.3, y * 2.3, seed + 11), 0.25), 1.0)
        base = base * (1 - rubbed) + 0.62 * rubbed
    return base, base * 0.995, base * 0.985


@compiled
def _facade(
    u: float, v: float, height: float, seed: int, red: float, green: float, blue: float, footprint: float
) -> Any:
    """A wall with windows: (r, g, b, share of mirror)."""
    style = seed % 4
    storey = 3.1
    bay = 2.4 + 0.5 * (seed % 5)
    floor, column = np.floor(v / storey), np.floor(u / bay)
    fv, fu = v / storey - floor, u / bay - column
    wide, low, high = 0.30, 0.28, 0.80
    if style == 1:  # bands of glass
        wide, low, high = 0.47, 0.30, 0.92
    elif style == 2:
        wide, low, high = 0.24, 0.22, 0.82
    if floor == 0 and seed % 3 == 0:  # shop windows
        wide, low, high = 0.45, 0.12, 0.86
    glass = abs(fu - 0.5) < wide and low < fv < high and v < height - 0.5
    sharp = fade(footprint, 1.2)
    stain = 0.85 + 0.3 * noise2(u * 0.5, v * 0.25, seed)
    if style == 3 and red > 1.25 * blue:  # bricks
        row = np.floor(v / 0.075)
        joint = (v / 0.075 - row) < 0.16 or ((u / 0.25 + 0.5 * (row % 2)) % 1.0) < 0.06
        stain *= 1.0 - 0.35 * fade(footprint, 0.08) * (
            1.0 if joint else 0.25 * lattice(int(u / 0.25), int(row), 0, seed)
        )
    red, green, blue = red * stain, green * stain, blue * stain
    if not glass:
        frame = abs(fu - 0.5) < wide + 0.04 and low - 0.04 < fv < high + 0.03
        if frame:
            red, green, blue = 0.7 * red + 0.12, 0.7 * green + 0.12, 0.7 * blue + 0.12
        return red, green, blue, 0.0
    lit = lattice(int(column), int(floor), 5, seed)
    bar = abs(fu - 0.5) < 0.02 or abs(fv - 0.62) < 0.015
    inside = 0.03 + 0.10 * lit * lit
    if lit > 0.8:
        inside = 0.30  # a blind
    if bar:
        inside = 0.45
    mix = 0.35 + 0.65 * sharp
    return (
        red * (1 - mix) + inside * mix,
        green * (1 - mix) + inside * mix,
        blue * (1 - mix) + 1.08 * inside * mix,
        0.0 if bar else 0.45 * mix,
    )


@compiled
def albedo(
    material: int,
    color: NDArray[Any],
    seed: int,
    place: Any,
    local: Any,
    half: Any,
    streets: NDArray[Any],
    footprint: float,
) -> Any:
    """Colour of a surface point.

    Args:
        color: the part's colour, linear RGB [3].
        place: the point in the world (x, y, z), metres.
        local: the point in the part's unit coordinates (x, y, z).
        half: the part's half sizes (x, y, z), metres.
        streets: ``Layout.table()``.
        footprint: metres that a pixel covers there.

    Returns:
        (r, g, b, mirror, roughness): linear colour, share of mirrored sky, strength of small bumps.
    """
    x, y, z = place
    r, g, b = color[0], color[1], color[2]
    if material == ASPHALT:
        r, g, b = _road(streets, x, y, seed, footprint)
        return r, g, b, 0.0, 0.0
    if material == PAVING:
        shade = 0.88 + 0.24 * noise2(x * 0.4, y * 0.4, seed)
        sharp = fade(footprint, 0.25)
        if local[2] > 0.5:
            i, j = np.floor(x / 0.6), np.floor(y / 0.6)
            shade *= 1 + sharp * (0.18 * lattice(int(i), int(j), 0, seed) - 0.09)
            if x / 0.6 - i < 0.035 or y / 0.6 - j < 0.035:
                shade *= 1 - 0.35 * sharp
            edge = min(half[0] * (1 - abs(local[0])), half[1] * (1 - abs(local[1])))
            if edge < 0.28:  # kerb stones
                shade *= 1.18
        else:
            shade *= 0.85
        return r * shade, g * shade, b * shade, 0.0, 0.0
    if material == GRASS:
        patch = noise2(x * 0.12, y * 0.12, seed)
        tuft = noise2(x * 1.7, y * 1.7, seed + 5)
        shade = 0.65 + 0.6 * tuft
        sharp = fade(footprint, 0.05)
        if sharp > 0:
            shade *= 1 + 0.8 * sharp * (noise2(x * 22.0, y * 14.0, seed + 9) - 0.5)
        dry = max(patch - 0.55, 0.0) * 1.6
        return (r + 0.16 * dry) * shade, (g + 0.07 * dry) * shade, (b + 0.02 * dry) * shade, 0.0, 0.15
    if material == FACADE:
        if abs(local[2]) > 0.9999:
            return 0.25, 0.25, 0.26, 0.0, 0.0
        u = local[1] * half[1] if abs(local[0]) > 0.9999 else local[0] * half[0]
        r, g, b, mirror = _facade(u + 100.0, (local[2] + 1) * half[2], 2 * half[2], seed, r, g, b, footprint)
        return r, g, b, mirror, 0.0
    if material == LEAF:
        shade = 0.5 + 0.6 * noise3(x * 2.6, y * 2.6, z * 2.6, seed)
        sharp = fade(footprint, 0.16)
        if sharp > 0:  # leaves before dark gaps
            leaf = noise3(x * 8.5, y * 8.5, z * 8.5, seed + 3) + 0.17
            if footprint < 0.03:
                leaf += 0.35 * (noise3(x * 21.0, y * 21.0, z * 21.0, seed + 5) - 0.5)
            step = min(max((leaf - 0.52) * 5.0, 0.0), 1.0)
            shade *= 1 + sharp * (1.05 * step - 0.65)
        shade *= 0.78 + 0.3 * (local[2] + 1) / 2
        return r * shade, g * shade, b * shade, 0.0, 0.8
    if material == BARK:
        shade = 0.7 + 0.6 * noise3(x * 9.0, y * 9.0, z * 2.0, seed)
        return r * shade, g * shade, b * shade, 0.0, 0.3
    if material == PAINT:
        shade = 0.96 + 0.08 * noise3(x * 1.5, y * 1.5, z * 3.0, seed)
        return r * shade, g * shade, b * shade, 0.16, 0.0
    if material == GLASS:
        return r, g, b, 0.55, 0.0
    if material == CLOTH:
        shade = 0.75 + 0.5 * noise3(local[0] * 2.0 + 9, local[1] * 2.0, z * 7.0, seed)
        return r * shade, g * shade, b * shade, 0.0, 0.2
    if material == CONE:
        band = (local[2] + 1) / 2
        if 0.38 < band < 0.58 or 0.72 < band < 0.86:
            return 0.75, 0.75, 0.75, 0.0, 0.0
        return r, g, b, 0.0, 0.0
    if material == BARRIER:
        if ((local[0] * half[0] + local[2] * half[2] + 10.0) % 0.4) < 0.2:
            return 0.65, 0.05, 0.04, 0.0, 0.0
        return r, g, b, 0.0, 0.0
    if material == CONCRETE:
        shade = 0.82 + 0.36 * noise3(x * 0.8, y * 0.8, z * 0.8, seed)
        return r * shade, g * shade, b * shade, 0.0, 0.05
    if material == ROOF:
        row = (z * 3.3) % 1.0
        shade = 0.8 + 0.3 * noise3(x * 1.2, y * 1.2, z * 1.2, seed) - 0.25 * fade(footprint, 0.15) * (row < 0.15)
        return r * shade, g * shade, b * shade, 0.0, 0.0
    if material == COACH:
        height = (local[2] + 1) / 2
        if 0.40 < height < 0.82 and abs(local[2]) < 0.9999:
            u = local[0] * half[0] + 50.0
            if abs(local[1]) > 0.9999 and (u % 1.55) > 0.09:
                return 0.05, 0.06, 0.07, 0.5, 0.0
        if 0.30 < height < 0.34:
            return 0.7, 0.7, 0.7, 0.1, 0.0
        return r, g, b, 0.14, 0.0
    if material == CARGO:
        u, v = local[0] * half[0], (local[2] + 1) * half[2]
        if abs(local[1]) > 0.9999 and abs(local[0]) < 0.72 and 0.45 < v / (2 * half[2]) < 0.72:
            letter = lattice(int(np.floor(u / 0.42)), 0, 0, seed)
            stroke = ((u / 0.42) % 1.0) > 0.22 and lattice(
                int(np.floor(u / 0.14)), int(np.floor(v / 0.22)), 0, seed
            ) > 0.35
            if letter > 0.25 and stroke:
                return 0.5 * letter, 0.08, 0.5 * (1 - letter), 0.0, 0.0
        if (u + 50.0) % 0.6 < 0.03:
            r, g, b = 0.8 * r, 0.8 * g, 0.8 * b
        return r, g, b, 0.03, 0.0
    return r, g, b, 0.05, 0.0


@compiled
def sky(dx: float, dy: float, dz: float, light: NDArray[Any], seed: int) -> Any:
    """Radiance of the sky in a unit direction: (r, g, b). ``light`` as made by ``camera.light_row``."""
    height = max(dz, 0.0)
    horizon = np.exp(-4.0 * height)
    clear_r = 0.18 + 0.50 * horizon
    clear_g = 0.36 + 0.40 * horizon
    clear_b = 0.74 + 0.12 * horizon
    clouds = light[10]
    if clouds > 0 and dz > 0.02:
        u, v = dx / (dz + 0.12), dy / (dz + 0.12)
        cover = 0.55 * noise2(u * 1.3, v * 1.3, seed) + 0.3 * noise2(u * 3.1, v * 3.1, seed + 1)
        cover += 0.15 * noise2(u * 7.3, v * 7.3, seed + 2)
        amount = min(max((cover - (0.78 - 0.55 * clouds)) * 5.0, 0.0), 1.0) * min(1.0, dz * 12)
        bright = 0.66 + 0.35 * (1 - cover)
        clear_r = clear_r * (1 - amount) + bright * amount
        clear_g = clear_g * (1 - amount) + bright * amount
        clear_b = clear_b * (1 - amount) + 1.02 * bright * amount
    toward = dx * light[0] + dy * light[1] + dz * light[2]
    if toward > 0.9:
        glow = (toward - 0.9) * 10.0
        glow = 1.2 * glow * glow * glow * (1 - 0.6 * clouds)
        clear_r, clear_g, clear_b = clear_r + glow, clear_g + 0.95 * glow, clear_b + 0.85 * glow
    return clear_r, clear_g, clear_b
