"""Polygons to masks: even-odd fill at pixel centres, all parts of an object in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Part(NamedTuple):
    """Painted part of an object: contours in [-1, 1] (y down), filled even-odd, and a colour role or RGB."""

    colour: str | tuple[int, int, int]
    contours: list[Floats]


@dataclass(frozen=True)
class Edges:
    """Edges of all parts, precomputed once per drawn object: part (E,), start and end points (E,2)."""

    part: npt.NDArray[np.int64]
    start: Floats
    end: Floats
    count: int

    @classmethod
    def of(cls, parts: list[Part]) -> Edges:
        contours = [(k, c) for k, part in enumerate(parts) for c in part.contours]
        part = np.concatenate([np.full(len(c), k) for k, c in contours])
        start = np.concatenate([c for _, c in contours])
        end = np.concatenate([piece for _, c in contours for piece in (c[1:], c[:1])])
        return cls(part, start, end, len(parts))

    def transform(self, matrix: Floats, offset: Floats) -> Edges:
        """Apply x -> matrix x + offset; the result is rounded to 1/64 pixel so that every machine agrees."""

        def move(p: Floats) -> Floats:
            x = p[:, :1] * matrix[0, 0] + p[:, 1:] * matrix[0, 1] + offset[0]
            y = p[:, :1] * matrix[1, 0] + p[:, 1:] * matrix[1, 1] + offset[1]
            return np.round(np.concatenate([x, y], axis=1) * 64) / 64

        return Edges(self.part, move(self.start), move(self.end), self.count)


def fill(edges: Edges, height: int, width: int) -> tuple[tuple[slice, slice], npt.NDArray[np.int8]] | None:
    """Top-most part at each pixel of the clipped bounding box: (rows, columns), index map (h,w), -1 outside.

    Later parts cover earlier ones. None when nothing of the object is inside the canvas.
    """
    low, high = edges.start.min(axis=0), edges.start.max(axis=0)
    x0, y0 = max(int(low[0]) - 1, 0), max(int(low[1]) - 1, 0)
    x1, y1 = min(int(high[0]) + 2, width), min(int(high[1]) + 2, height)
    if x1 <= x0 or y1 <= y0:
        return None
    h, w = y1 - y0, x1 - x0
    centre = np.arange(y0, y1) + 0.5
    ya, yb = edges.start[:, 1:], edges.end[:, 1:]
    edge, row = np.nonzero((ya <= centre) != (yb <= centre))
    if edge.size == 0:
        return None
    a, b = edges.start[edge], edges.end[edge]
    x = a[:, 0] + (centre[row] - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
    column = np.clip(np.ceil(x - 0.5).astype(np.int64) - x0, 0, w)
    cell = (edges.part[edge] * h + row) * (w + 1) + column
    toggles = np.bincount(cell, minlength=edges.count * h * (w + 1)).astype(np.uint8)
    inside = np.cumsum(toggles.reshape(edges.count, h, w + 1), axis=2, dtype=np.uint8)[:, :, :w] & 1
    top = np.full((h, w), -1, np.int8)
    for k in range(edges.count):
        np.copyto(top, np.int8(k), where=inside[k].view(bool))
    return (slice(y0, y1), slice(x0, x1)), top
