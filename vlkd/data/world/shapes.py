"""Contours that the objects of the world are put together from; unit coordinates, y down."""

from __future__ import annotations

import numpy as np

from vlkd.data.world.raster import Floats

_CIRCLE = np.stack(
    [
        np.cos(np.linspace(0, 2 * np.pi, 64, endpoint=False)),
        np.sin(np.linspace(0, 2 * np.pi, 64, endpoint=False)),
    ],
    axis=1,
).round(9)


def ellipse(x: float, y: float, rx: float, ry: float | None = None, points: int = 32) -> Floats:
    """Ellipse around (x, y)."""
    return _CIRCLE[:: 64 // points] * (rx, rx if ry is None else ry) + (x, y)


def rect(x0: float, y0: float, x1: float, y1: float) -> Floats:
    """Axis-parallel rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def poly(*points: tuple[float, float]) -> Floats:
    """Polygon through the points."""
    return np.array(points, float)


def half(x: float, y: float, rx: float, ry: float) -> Floats:
    """Upper half of an ellipse, flat side at y (ry < 0: lower half)."""
    return _CIRCLE[32:] * (rx, ry) + (x, y) if ry > 0 else _CIRCLE[:33] * (rx, -ry) + (x, y)


def bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Floats:
    """Straight stroke of a given width."""
    dx, dy = x1 - x0, y1 - y0
    length = (dx * dx + dy * dy) ** 0.5
    nx, ny = -dy / length * width / 2, dx / length * width / 2
    return poly((x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny))


def ring(x: float, y: float, outer: float, inner: float) -> list[Floats]:
    """Annulus as two contours: even-odd filling leaves the hole open."""
    return [ellipse(x, y, outer), ellipse(x, y, inner)]


def star(x: float, y: float, outer: float, inner: float, tips: int) -> Floats:
    """Star with the given number of tips."""
    angle = np.arange(2 * tips) * np.pi / tips
    radius = np.where(np.arange(2 * tips) % 2 == 0, outer, inner)
    return np.stack([x + radius * np.sin(angle), y - radius * np.cos(angle)], axis=1).round(9)


def wave(points: list[tuple[float, float]], width: list[float]) -> Floats:
    """Closed ribbon along a line of points with a width at each."""
    line, half_width = np.array(points, float), np.array(width, float)[:, None] / 2
    step = np.gradient(line, axis=0)
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1)
    normal /= np.sqrt((normal**2).sum(axis=1, keepdims=True))
    return np.concatenate([line + normal * half_width, (line - normal * half_width)[::-1]]).round(9)
