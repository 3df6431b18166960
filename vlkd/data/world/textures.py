"""Textures of the world's backgrounds: tiles made once from integer-exact noise, then cropped and tinted."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Rng = np.random.Generator
Field = npt.NDArray[np.float64]
TILE = 256
VARIANTS, TINTS = 4, 5


def noise(rng: Rng, cells_y: int, cells_x: int | None = None) -> Field:
    """Tileable value noise (TILE, TILE) in [0, 1] with that many cells along y and x."""
    cells_x = cells_x or cells_y
    grid = rng.random((cells_y, cells_x))

    def axis(cells: int) -> tuple[npt.NDArray[np.int64], Field]:
        at = np.arange(TILE) * cells / TILE
        low = at.astype(np.int64)
        t = at - low
        return low, t * t * (3 - 2 * t)

    (y, ty), (x, tx) = axis(cells_y), axis(cells_x)
    y1, x1 = (y + 1) % cells_y, (x + 1) % cells_x
    rows = grid[y] * (1 - ty[:, None]) + grid[y1] * ty[:, None]
    return rows[:, x] * (1 - tx) + rows[:, x1] * tx


def triangle(values: Field) -> Field:
    """Triangle wave of period 1 in [0, 1]."""
    part = values % 1.0
    return 1 - np.abs(2 * part - 1)


def mix(t: Field, low: tuple[int, int, int], high: tuple[int, int, int]) -> Field:
    """Blend two RGB colours by t in [0, 1]: (TILE, TILE, 3)."""
    t = np.clip(t, 0, 1)[..., None]
    return np.array(low, float) * (1 - t) + np.array(high, float) * t


def _yx() -> tuple[Field, Field]:
    y, x = np.mgrid[0:TILE, 0:TILE] / TILE
    return y, x


def blue_sky(rng: Rng) -> Field:
    clouds = 0.6 * noise(rng, 4) + 0.3 * noise(rng, 9) + 0.1 * noise(rng, 21)
    y, _ = _yx()
    base = mix(triangle(y), (70, 138, 220), (140, 192, 240))
    cover = np.clip((clouds - 0.55) * 5, 0, 1)[..., None]
    return base * (1 - cover) + 246 * cover


def sunset(rng: Rng) -> Field:
    y, _ = _yx()
    bands = np.clip(triangle(y) + 0.25 * (noise(rng, 10, 2) - 0.5), 0, 1)
    low = mix(bands * 2, (92, 44, 116), (232, 92, 70))
    high = mix(bands * 2 - 1, (232, 92, 70), (252, 190, 92))
    return np.where((bands > 0.5)[..., None], high, low)


def mountain(rng: Rng) -> Field:
    y, x = _yx()
    ridge = triangle(3 * (x + y) + noise(rng, 6)) * 0.6 + 0.4 * noise(rng, 16)
    return mix(ridge, (88, 80, 84), (156, 146, 142))


def forest(rng: Rng) -> Field:
    crowns = 0.55 * noise(rng, 14) + 0.45 * noise(rng, 30)
    _, x = _yx()
    trunks = (triangle(11 * x + noise(rng, 4)) > 0.86) & (noise(rng, 6, 11) > 0.5)
    return np.where(trunks[..., None], (62, 44, 30), mix(crowns, (14, 58, 26), (66, 112, 48)))


def wall(rng: Rng) -> Field:
    y, x = _yx()
    row = np.floor(y * 16)
    mortar = (triangle(y * 16) < 0.2) | (triangle(x * 8 + 0.5 * (row % 2)) < 0.1)
    tone = rng.random((16, 9))[row.astype(int), np.floor(x * 8 + 0.5 * (row % 2)).astype(int)]
    return np.where(
        mortar[..., None],
        (202, 194, 182),
        mix(tone * 0.7 + 0.3 * noise(rng, 64), (142, 66, 50), (190, 104, 80)),
    )


def water(rng: Rng) -> Field:
    y, _ = _yx()
    waves = triangle(14 * y + 1.6 * noise(rng, 8, 5))
    foam = (waves > 0.93) & (noise(rng, 24, 12) > 0.55)
    return np.where(foam[..., None], (222, 236, 240), mix(waves, (18, 74, 128), (48, 136, 172)))


def grass(rng: Rng) -> Field:
    blades = 0.5 * noise(rng, 32, 128) + 0.5 * noise(rng, 12)
    return mix(blades, (52, 122, 30), (140, 192, 66))


def road(rng: Rng) -> Field:
    y, x = _yx()
    asphalt = mix(0.7 * noise(rng, 128) + 0.3 * noise(rng, 10), (70, 70, 74), (112, 112, 116))
    dash = (np.abs((x * 2) % 1 - 0.5) < 0.025) & (triangle(y * 5) > 0.45)
    return np.where(dash[..., None], (236, 232, 214), asphalt)


def sand(rng: Rng) -> Field:
    y, x = _yx()
    ripple = triangle(12 * (y + 0.3 * x) + 1.2 * noise(rng, 6))
    return mix(0.55 * ripple + 0.45 * noise(rng, 128), (204, 168, 106), (242, 216, 160))


def snow(rng: Rng) -> Field:
    drift = 0.7 * noise(rng, 5) + 0.3 * noise(rng, 24)
    glint = noise(rng, 128) > 0.93
    return np.where(glint[..., None], 255.0, mix(drift, (196, 212, 232), (248, 250, 252)))


def floor(rng: Rng) -> Field:
    y, x = _yx()
    plank = np.floor(y * 10).astype(int)
    seam = (triangle(y * 10) < 0.1) | (triangle(x * 3 + 0.37 * plank) < 0.03)
    tone = 0.5 * rng.random(10)[plank] + 0.5 * noise(rng, 80, 6)
    return np.where(seam[..., None], (84, 52, 28), mix(tone, (150, 98, 54), (206, 152, 96)))


def carpet(rng: Rng) -> Field:
    y, x = _yx()
    diamond = np.abs(((x * 8) % 1) - 0.5) + np.abs(((y * 8) % 1) - 0.5)
    pile = noise(rng, 128) * 0.25
    ground = mix(pile + 0.4, (110, 20, 40), (164, 44, 60))
    figure = mix(pile + 0.4, (190, 150, 80), (236, 206, 140))
    inner = mix(pile + 0.4, (26, 40, 92), (52, 70, 130))
    return np.where((diamond < 0.16)[..., None], inner, np.where((diamond < 0.3)[..., None], figure, ground))


TEXTURES: dict[str, Callable[[Rng], Field]] = {
    "blue sky": blue_sky, "sunset": sunset, "mountain": mountain, "forest": forest, "wall": wall,
    "water": water, "grass": grass, "road": road, "sand": sand, "snow": snow, "floor": floor,
    "carpet": carpet,
}  # fmt: skip


def pack(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Colours (...,3) uint8 as one little-endian uint32 each, so that painting moves one number per pixel."""
    value = rgb.astype(np.uint32)
    return (value[..., 0] | value[..., 1] << 8 | value[..., 2] << 16).astype("<u4")


def unpack(packed: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """Inverse of pack: (...,3) uint8."""
    return np.ascontiguousarray(packed).view(np.uint8).reshape(*packed.shape, 4)[..., :3]


@lru_cache(maxsize=64)
def _plain(name: str, variant: int) -> Field:
    return TEXTURES[name](np.random.default_rng([sum(map(ord, name)), variant]))


@lru_cache(maxsize=256)
def tile(name: str, variant: int, tint: int) -> npt.NDArray[np.uint32]:
    """One of the VARIANTS x TINTS tiles of a background, packed (TILE, TILE); the same on every machine."""
    rng = np.random.default_rng([variant, tint])
    shade = rng.uniform(0.85, 1.12) * rng.uniform(0.94, 1.06, 3)
    return pack(np.clip(np.floor(_plain(name, variant) * shade + 0.5), 0, 255).astype(np.uint8))


def patch(name: str, rng: Rng, height: int, width: int) -> npt.NDArray[np.uint32]:
    """Randomly shifted, scaled, flipped and tinted texture, packed (H,W); scaled with the image's height."""
    texture = tile(name, int(rng.integers(VARIANTS)), int(rng.integers(TINTS)))
    zoom = rng.uniform(0.7, 1.6) * 128 / height
    oy, ox = rng.integers(0, TILE, 2)
    flip = 1 if rng.random() < 0.5 else -1
    rows = (np.arange(height) * zoom).astype(np.int64) + oy
    columns = (np.arange(width) * zoom * flip).astype(np.int64) + ox
    return texture[(rows % TILE)[:, None], (columns % TILE)[None]]
