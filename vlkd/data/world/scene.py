"""Composition of scenes: where backgrounds and objects go, how they are painted, what they are called."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vlkd.data.world.names import COLOURS, NAMES, OBJECTS
from vlkd.data.world.objects import RECIPES
from vlkd.data.world.raster import Edges, fill
from vlkd.data.world.textures import pack, patch, unpack

Rng = np.random.Generator
Mask = npt.NDArray[np.bool_]
Packed = npt.NDArray[np.uint32]
SHADES = 12
FLYING = frozenset({"airplane", "helicopter", "sun"})
SKIES = ("blue sky", "sunset")
GROUNDS = ("water", "grass", "road", "sand", "snow")
PATTERNS = ("plain", "plain", "plain", "stripes", "dots", "checks")


@dataclass(frozen=True)
class Item:
    """One object before it is painted: what, where (fractions of the image), how it moves and looks."""

    name: str
    colour: str
    edges: Edges
    palette: Packed
    pattern: str
    x: float
    y: float
    scale: float
    angle: float
    flip: int
    aspect: float
    velocity: tuple[float, float, float]


def make_item(rng: Rng, name: str, x: float, y: float, scale: float) -> Item:
    """Draw the looks of one object."""
    colours = list(COLOURS)
    colour = colours[int(rng.integers(len(colours)))]
    accent = COLOURS[colours[(colours.index(colour) + int(rng.integers(1, len(colours)))) % len(colours)]]
    main = np.array(COLOURS[colour]) * rng.uniform(0.85, 1.15)
    leaf = np.array((58, 138, 62)) * rng.uniform(0.7, 1.25, 3)
    roles = {"main": main, "dark": main * 0.68, "light": main * 0.6 + 100, "accent": np.array(accent),
             "leaf": leaf, "leaf dark": leaf * 0.75}  # fmt: skip
    parts = RECIPES[name](rng)
    plain = np.array([roles[p.colour] if isinstance(p.colour, str) else p.colour for p in parts])
    painted = np.array([p.colour == "main" for p in parts])
    marked = np.where(painted[:, None], np.array(accent), plain)
    shaded = np.concatenate([plain, marked]) * np.linspace(1.1, 0.88, SHADES)[:, None, None]
    return Item(
        name=name,
        colour=colour if painted.any() else "",
        edges=Edges.of(parts),
        palette=pack(np.clip(shaded, 0, 255).astype(np.uint8)),
        pattern=PATTERNS[int(rng.integers(len(PATTERNS)))],
        x=x,
        y=y,
        scale=scale,
        angle=float(rng.normal(0, 0.12)),
        flip=1 if rng.random() < 0.5 else -1,
        aspect=float(rng.uniform(0.85, 1.18)),
        velocity=(
            float(rng.uniform(-0.03, 0.03)),
            float(rng.uniform(-0.012, 0.012)),
            float(rng.normal(0, 0.02)),
        ),
    )


def paint(item: Item, canvas: Packed, ids: npt.NDArray[np.int32], segment: int, time: float = 0) -> None:
    """Paint an item at a time (frames) onto the packed canvas (H,W); write its segment id where seen."""
    height, width = ids.shape
    angle = item.angle + time * item.velocity[2]
    c, s = round(float(np.cos(angle)), 9), round(float(np.sin(angle)), 9)
    size = item.scale * min(height, width)
    matrix = size * np.array(
        [[c * item.flip * item.aspect, -s / item.aspect], [s * item.flip * item.aspect, c / item.aspect]]
    )
    centre = np.array(
        [(item.x + time * item.velocity[0]) * width, (item.y + time * item.velocity[1]) * height]
    )
    filled = fill(item.edges.transform(matrix, centre), height, width)
    if filled is None:
        return
    window, top = filled
    seen = top >= 0
    index = top.astype(np.int64)
    if item.pattern != "plain":
        y = np.arange(window[0].start, window[0].stop)[:, None] - int(centre[1])
        x = np.arange(window[1].start, window[1].stop)[None] - int(centre[0])
        index += item.edges.count * _marks(item.pattern, y, x, max(int(size / 4), 2))
    shade = np.arange(top.shape[0]) * SHADES // top.shape[0]
    np.copyto(canvas[window], item.palette[shade[:, None], index], where=seen)
    np.copyto(ids[window], np.int32(segment), where=seen)


def _marks(
    pattern: str, y: npt.NDArray[np.int64], x: npt.NDArray[np.int64], step: int
) -> npt.NDArray[np.int64]:
    """1 where a pattern shows the second colour."""
    if pattern == "stripes":
        return y // step % 2
    if pattern == "checks":
        return (y // step + x // step) % 2
    return ((y % (2 * step) - step) ** 2 + (x % (2 * step) - step) ** 2 < step * step // 3).astype(np.int64)


def _profile(rng: Rng, width: int, level: float, rough: float, height: int) -> npt.NDArray[np.int64]:
    """Row of a rough horizon line for every column."""
    knots = level + rough * (rng.random(8) - 0.5)
    at = np.arange(width) * 7 / max(width - 1, 1)
    low = np.minimum(at.astype(np.int64), 6)
    return np.floor((knots[low] * (1 - (at - low)) + knots[low + 1] * (at - low)) * height).astype(np.int64)


def layers(rng: Rng, height: int, width: int) -> list[tuple[str, Mask]]:
    """Background layers from back to front as (name, mask)."""
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    whole = np.ones((height, width), bool)
    horizon = rng.uniform(0.3, 0.62)
    below = rows >= _profile(rng, width, horizon, rng.uniform(0, 0.05), height)
    if rng.random() < 0.25:
        found = [("wall", whole), ("floor", below)]
        if rng.random() < 0.6:
            cx, ry = rng.uniform(0.3, 0.7) * width, rng.uniform(0.1, 0.2) * height
            cy = (horizon + 1) / 2 * height
            found.append(
                ("carpet", below & (((columns - cx) / (0.42 * width)) ** 2 + ((rows - cy) / ry) ** 2 < 1))
            )
        return found
    found = [(SKIES[int(rng.integers(2))], whole)]
    choice = rng.random()
    if choice < 0.3:
        found.append(("mountain", rows >= _profile(rng, width, horizon - 0.2, 0.35, height)))
    elif choice < 0.6:
        found.append(("forest", rows >= _profile(rng, width, horizon - 0.16, 0.12, height)))
    elif choice < 0.7:
        found.append(("wall", rows >= int((horizon - 0.18) * height)))
    ground = GROUNDS[int(rng.integers(len(GROUNDS)))]
    found.append((ground, below))
    if ground in ("grass", "sand", "snow") and rng.random() < 0.45:
        other = ("road", "water")[int(rng.integers(2))]
        depth = np.clip((rows / height - horizon) / (1 - horizon), 0, 1)
        centre = (rng.uniform(0.3, 0.7) + depth * rng.uniform(-0.4, 0.4)) * width
        found.append(
            (other, below & (np.abs(columns - centre) < (0.05 + rng.uniform(0.15, 0.35) * depth) * width))
        )
    return found


def place_items(rng: Rng, count: int) -> list[Item]:
    """Objects of a scene from far to near."""
    items = []
    for _ in range(count):
        name = list(OBJECTS)[int(rng.integers(len(OBJECTS)))]
        anywhere = rng.random() < 0.25
        low, high = (0.1, 0.9) if anywhere else (0.08, 0.4) if name in FLYING else (0.45, 0.88)
        y, x = rng.uniform(low, high), rng.uniform(0.06, 0.94)
        items.append(
            make_item(rng, name, float(x), float(y), float(rng.uniform(0.11, 0.27) * (0.7 + 0.5 * y)))
        )
    return sorted(items, key=lambda item: item.y)


def light(rng: Rng, canvas: Packed) -> npt.NDArray[np.uint8]:
    """Soften edges, then apply exposure, colour cast, a slow gradient and sensor noise: (H,W,3) uint8."""
    soft = unpack(np.pad(canvas, 1, mode="edge")).astype(np.uint16)
    soft = soft[:-2] + 2 * soft[1:-1] + soft[2:]
    soft = soft[:, :-2] + 2 * soft[:, 1:-1] + soft[:, 2:]
    gain = np.floor(rng.uniform(0.72, 1.2) * rng.uniform(0.93, 1.07, 3) * 256)
    slope = rng.uniform(-0.12, 0.12)
    rows = np.floor(np.linspace(1 - slope, 1 + slope, canvas.shape[0]) * 256)[:, None, None]
    lit = soft.astype(np.float32) * (gain / 4096).astype(np.float32) * (rows / 256).astype(np.float32)
    lit += rng.integers(-5, 6, lit.shape, dtype=np.int8)
    return np.clip(lit, 0, 255).astype(np.uint8)


def category(name: str) -> int:
    """Index of a name in NAMES."""
    return NAMES.index(name)


def draw_layers(
    rng: Rng, found: list[tuple[str, Mask]], height: int, width: int
) -> tuple[Packed, npt.NDArray[np.int32], list[str]]:
    """Paint background layers: packed canvas (H,W), segment ids (H,W) from 1, names by segment."""
    canvas = np.full((height, width), 0x808080, "<u4")
    ids = np.zeros((height, width), np.int32)
    names: list[str] = []
    for name, mask in found:
        if name not in names:
            names.append(name)
        np.copyto(canvas, patch(name, rng, height, width), where=mask)
        np.copyto(ids, np.int32(names.index(name) + 1), where=mask)
    return canvas, ids, names
