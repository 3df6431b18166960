"""Recipes of the world's objects: painted parts in [-1, 1], with small variations drawn from rng."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from vlkd.data.world.raster import Part
from vlkd.data.world.shapes import bar, ellipse, half, poly, rect, ring, star, wave

Rng = np.random.Generator
Recipe = Callable[[Rng], list[Part]]

BLACK, GREY, WHITE = (38, 38, 42), (150, 152, 156), (240, 240, 236)
GLASS, WOOD, GOLD, LEAF = (168, 208, 226), (120, 78, 44), (232, 190, 60), (58, 138, 62)
RED, CREAM, FLAME = (200, 50, 44), (244, 228, 190), (252, 206, 70)


def _wheels(xs: tuple[float, ...], y: float, radius: float) -> list[Part]:
    return [
        Part(BLACK, [ellipse(x, y, radius) for x in xs]),
        Part(GREY, [ellipse(x, y, radius * 0.45) for x in xs]),
    ]


def car(rng: Rng) -> list[Part]:
    roof = rng.uniform(-0.5, -0.38)
    cabin = poly((-0.55, -0.02), (-0.35, roof), (0.3, roof), (0.58, -0.02))
    windows = [poly((-0.42, -0.04), (-0.28, roof + 0.09), (-0.05, roof + 0.09), (-0.05, -0.04)),
               poly((0.04, -0.04), (0.04, roof + 0.09), (0.25, roof + 0.09), (0.43, -0.04))]  # fmt: skip
    body = poly((-0.97, 0.02), (-0.6, -0.06), (0.6, -0.06), (0.97, 0.06), (0.97, 0.34), (-0.97, 0.34))
    lamp = ellipse(0.9, 0.13, 0.07)
    return [Part("main", [cabin]), Part("main", [body]), Part(GLASS, windows), Part(FLAME, [lamp]),
            *_wheels((-0.55, 0.55), 0.36, 0.22)]  # fmt: skip


def bus(rng: Rng) -> list[Part]:
    count = int(rng.integers(4, 6))
    edges = np.linspace(-0.86, 0.86, count + 1)
    windows = [rect(a + 0.04, -0.36, b - 0.04, -0.06) for a, b in pairwise(edges)]
    return [Part("main", [rect(-0.97, -0.5, 0.97, 0.4)]), Part("dark", [rect(-0.97, 0.06, 0.97, 0.16)]),
            Part(GLASS, windows), *_wheels((-0.6, 0.6), 0.42, 0.17)]  # fmt: skip


def truck(rng: Rng) -> list[Part]:
    cut = rng.uniform(0.2, 0.3)
    cab = poly((cut + 0.05, -0.2), (0.7, -0.2), (0.95, 0.08), (0.95, 0.38), (cut + 0.05, 0.38))
    window = poly((cut + 0.16, -0.1), (0.65, -0.1), (0.82, 0.1), (cut + 0.16, 0.1))
    return [Part("light", [rect(-0.97, -0.58, cut, 0.3)]), Part(GREY, [rect(-0.97, 0.28, 0.5, 0.38)]),
            Part("main", [cab]), Part(GLASS, [window]), *_wheels((-0.66, -0.25, 0.66), 0.42, 0.17)]  # fmt: skip


def bicycle(rng: Rng) -> list[Part]:
    seat = rng.uniform(-0.42, -0.34)
    frame = [(-0.55, 0.25, -0.15, -0.15), (-0.15, -0.15, 0.38, -0.2), (0.38, -0.2, 0.0, 0.27),
             (0.0, 0.27, -0.55, 0.25), (0.0, 0.27, -0.2, seat), (0.55, 0.25, 0.34, -0.42)]  # fmt: skip
    parts = [Part(BLACK, [*ring(-0.55, 0.25, 0.4, 0.32), *ring(0.55, 0.25, 0.4, 0.32)])]
    parts += [Part("main", [bar(*s, 0.09)]) for s in frame]
    return [
        *parts,
        Part(BLACK, [bar(-0.34, seat, -0.08, seat, 0.09)]),
        Part(BLACK, [bar(0.2, -0.45, 0.5, -0.42, 0.08)]),
    ]


def airplane(rng: Rng) -> list[Part]:
    sweep = rng.uniform(0.25, 0.4)
    body = poly((-0.95, 0.0), (-0.8, -0.1), (0.7, -0.12), (0.97, 0.0), (0.7, 0.1), (-0.8, 0.06))
    wing = poly((0.2, 0.0), (-0.05 - sweep, 0.62), (-0.25 - sweep, 0.62), (-0.15, 0.0))
    far = poly((0.2, -0.06), (0.0 - sweep, -0.5), (-0.14 - sweep, -0.5), (-0.1, -0.06))
    tail = poly((-0.6, -0.08), (-0.82, -0.45), (-0.96, -0.45), (-0.9, -0.02))
    panes = [ellipse(x, -0.04, 0.035, points=8) for x in np.linspace(-0.45, 0.6, 7)]
    return [
        Part("dark", [far]),
        Part("main", [body]),
        Part("main", [tail]),
        Part("dark", [wing]),
        Part(GLASS, panes),
    ]


def helicopter(rng: Rng) -> list[Part]:
    tilt = rng.uniform(-0.08, 0.08)
    boom = poly((-0.95, -0.16), (0.0, -0.14), (0.0, 0.14), (-0.95, -0.06))
    skid = [bar(-0.2, 0.58, 0.72, 0.58, 0.06), bar(0.0, 0.3, 0.0, 0.58, 0.05), bar(0.45, 0.3, 0.45, 0.58, 0.05)]  # fmt: skip
    pane = poly((0.3, -0.2), (0.5, -0.2), (0.66, 0.04), (0.3, 0.06))
    return [Part("main", [boom]), Part("main", [ellipse(0.25, 0.06, 0.46, 0.36)]), Part(GLASS, [pane]),
            Part("dark", [ellipse(-0.9, -0.12, 0.16)]), *[Part(BLACK, [s]) for s in skid],
            Part(BLACK, [bar(0.25, -0.5, 0.25, -0.28, 0.07)]),
            Part(BLACK, [bar(-0.5, -0.5 + tilt, 0.97, -0.5 - tilt, 0.07)])]  # fmt: skip


def sailboat(rng: Rng) -> list[Part]:
    top = rng.uniform(-0.95, -0.85)
    hull = poly((-0.85, 0.45), (0.85, 0.45), (0.55, 0.8), (-0.6, 0.8))
    return [Part(WOOD, [rect(-0.05, top, 0.01, 0.47)]), Part(WHITE, [poly((0.06, top + 0.08), (0.72, 0.36), (0.06, 0.36))]),
            Part("light", [poly((-0.1, top + 0.2), (-0.1, 0.36), (-0.62, 0.36))]), Part("main", [hull])]  # fmt: skip


def house(rng: Rng) -> list[Part]:
    eave = rng.uniform(-0.15, 0.0)
    chimney = rect(0.38, -0.75, 0.56, -0.2)
    windows = [rect(-0.55, eave + 0.2, -0.2, eave + 0.5), rect(0.25, eave + 0.2, 0.6, eave + 0.5)]
    bars = [rect(-0.4, eave + 0.2, -0.35, eave + 0.5), rect(0.4, eave + 0.2, 0.45, eave + 0.5)]
    return [Part(RED, [chimney]), Part("light", [rect(-0.75, eave, 0.75, 0.9)]), Part("main", [poly((-0.97, eave), (0, -0.85), (0.97, eave))]),
            Part(GLASS, windows), Part(WHITE, bars), Part(WOOD, [rect(-0.12, 0.42, 0.16, 0.9)])]  # fmt: skip


def lighthouse(rng: Rng) -> list[Part]:
    slope = rng.uniform(0.12, 0.2)

    def band(y0: float, y1: float) -> np.ndarray:
        wide = [0.2 + slope * (y + 0.5) / 1.4 for y in (y0, y1)]
        return poly((-wide[0], y0), (wide[0], y0), (wide[1], y1), (-wide[1], y1))

    return [Part(WHITE, [band(-0.5, 0.95)]), Part("main", [band(-0.3, -0.02), band(0.28, 0.58)]),
            Part(BLACK, [rect(-0.3, -0.56, 0.3, -0.48)]), Part(FLAME, [rect(-0.16, -0.78, 0.16, -0.56)]),
            Part("main", [poly((-0.22, -0.78), (0, -0.98), (0.22, -0.78))])]  # fmt: skip


def windmill(rng: Rng) -> list[Part]:
    turn = rng.uniform(0, np.pi / 2)
    blades = []
    for k in range(4):
        c, s = np.cos(turn + k * np.pi / 2).round(9), np.sin(turn + k * np.pi / 2).round(9)
        shape = np.array([(0.08, -0.02), (0.78, -0.04), (0.78, -0.26), (0.14, -0.2)])
        blades.append(
            np.stack([shape[:, 0] * c - shape[:, 1] * s, shape[:, 0] * s + shape[:, 1] * c - 0.3], axis=1)
        )
    tower = poly((-0.16, -0.35), (0.16, -0.35), (0.3, 0.95), (-0.3, 0.95))
    return [Part("main", [tower]), Part(WOOD, [rect(-0.09, 0.6, 0.09, 0.95)]), Part("dark", [half(0, -0.33, 0.2, 0.2)]),
            *[Part(CREAM, [b]) for b in blades], Part(BLACK, [ellipse(0, -0.3, 0.08)])]  # fmt: skip


def castle(rng: Rng) -> list[Part]:
    top = rng.uniform(-0.5, -0.35)
    teeth = [rect(x, top + 0.1, x + 0.13, top + 0.25) for x in (-0.42, -0.18, 0.06, 0.3)]
    towers = [rect(-0.9, top - 0.1, -0.5, 0.9), rect(0.5, top - 0.1, 0.9, 0.9)]
    roofs = [
        poly((-0.98, top - 0.1), (-0.7, -0.97), (-0.42, top - 0.1)),
        poly((0.42, top - 0.1), (0.7, -0.97), (0.98, top - 0.1)),
    ]
    gate = [half(0, 0.5, 0.2, 0.24), rect(-0.2, 0.5, 0.2, 0.9)]
    slits = [rect(-0.75, 0.0, -0.65, 0.28), rect(0.65, 0.0, 0.75, 0.28)]
    return [Part(GREY, [rect(-0.6, top + 0.24, 0.6, 0.9), *teeth]), Part((172, 174, 178), towers), Part("main", roofs),
            Part(BLACK, [*gate, *slits])]  # fmt: skip


def tent(rng: Rng) -> list[Part]:
    x = rng.uniform(-0.15, 0.05)
    return [Part("main", [poly((x, -0.65), (0.97, 0.7), (-0.97, 0.7))]), Part("dark", [poly((x, -0.65), (0.97, 0.7), (0.4, 0.7))]),
            Part(BLACK, [poly((x, -0.2), (x + 0.2, 0.7), (x - 0.32, 0.7))]), Part(WOOD, [bar(x, -0.85, x, -0.6, 0.05)])]  # fmt: skip


def flower(rng: Rng) -> list[Part]:
    n = int(rng.integers(5, 8))
    angle = np.arange(n) * 2 * np.pi / n + rng.uniform(0, 1)
    petals = [
        ellipse(0.36 * a, -0.4 + 0.36 * b, 0.24, points=16)
        for a, b in zip(np.cos(angle).round(9), np.sin(angle).round(9), strict=True)
    ]
    return [Part(LEAF, [bar(0, -0.3, 0, 0.95, 0.09)]), Part(LEAF, [ellipse(0.26, 0.5, 0.24, 0.1)]), Part(LEAF, [ellipse(-0.26, 0.66, 0.24, 0.1)]),
            *[Part("main", [p]) for p in petals], Part(GOLD, [ellipse(0, -0.4, 0.2)])]  # fmt: skip


def palm(rng: Rng) -> list[Part]:
    lean = rng.uniform(-0.15, 0.15)
    trunk = wave([(lean, -0.4), (lean / 2 + 0.06, 0.1), (0.0, 0.5), (-0.05, 0.95)], [0.12, 0.14, 0.16, 0.22])
    fronds = []
    for dx, dy in ((-0.85, 0.1), (-0.8, -0.32), (-0.3, -0.5), (0.35, -0.5), (0.82, -0.3), (0.85, 0.12)):
        middle = (lean + dx * 0.55, -0.4 + dy * 0.55 - 0.17)
        fronds.append(wave([(lean, -0.4), middle, (lean + dx, -0.4 + dy)], [0.05, 0.24, 0.02]))
    return [
        Part(WOOD, [trunk]),
        *[Part("leaf", [f]) for f in fronds],
        Part((96, 58, 30), [ellipse(lean - 0.08, -0.33, 0.09), ellipse(lean + 0.1, -0.3, 0.09)]),
    ]


def fir(rng: Rng) -> list[Part]:
    w = rng.uniform(0.5, 0.68)
    tiers = [
        poly((0, -0.97), (w * 0.62, -0.35), (-w * 0.62, -0.35)),
        poly((0, -0.6), (w * 0.85, 0.15), (-w * 0.85, 0.15)),
        poly((0, -0.2), (w, 0.7), (-w, 0.7)),
    ]
    return [
        Part(WOOD, [rect(-0.1, 0.6, 0.1, 0.97)]),
        Part("leaf", [tiers[2]]),
        Part("leaf dark", [tiers[1]]),
        Part("leaf", [tiers[0]]),
    ]


def corn(rng: Rng) -> list[Part]:
    tip = rng.uniform(-0.95, -0.85)
    kernels = [ellipse(x, y, 0.055, points=8) for x in (-0.16, 0.0, 0.16) for y in np.arange(-0.6, 0.3, 0.18)]
    return [Part(GOLD, [ellipse(0, (tip + 0.55) / 2, 0.3, (0.55 - tip) / 2)]), Part((206, 150, 30), kernels),
            Part("leaf", [poly((0, 0.97), (-0.2, 0.75), (-0.5, -0.15), (-0.12, 0.3))]), Part("leaf", [poly((0, 0.97), (0.2, 0.75), (0.5, -0.15), (0.12, 0.3))]),
            Part("leaf dark", [poly((0, 0.97), (-0.24, 0.55), (0, 0.05), (0.24, 0.55))])]  # fmt: skip


def pineapple(rng: Rng) -> list[Part]:
    low = rng.uniform(0.85, 0.95)
    body = ellipse(0, low - 0.62, 0.48, 0.62)
    lines = [bar(-0.42, y, 0.3, y + 0.45, 0.05) for y in (-0.15, 0.1, 0.35)] + [
        bar(0.42, y, -0.3, y + 0.45, 0.05) for y in (-0.15, 0.1, 0.35)
    ]
    leaves = [
        poly((-0.14, -0.22), (x, -0.95 + abs(x) * 0.5), (0.14, -0.22)) for x in (-0.5, -0.25, 0.0, 0.25, 0.5)
    ]
    return [
        *[Part("leaf", [leaf]) for leaf in leaves],
        Part((226, 164, 44), [body]),
        *[Part((160, 100, 26), [s]) for s in lines],
    ]


def doughnut(rng: Rng) -> list[Part]:
    angle, radius = rng.uniform(0, 2 * np.pi, 14), rng.uniform(0.4, 0.66, 14)
    sprinkles = [
        ellipse(r * a, r * b, 0.05, 0.05, points=8)
        for r, a, b in zip(radius, np.cos(angle).round(9), np.sin(angle).round(9), strict=True)
    ]
    return [
        Part((206, 152, 92), ring(0, 0, 0.92, 0.26)),
        Part("main", ring(0, 0, 0.8, 0.34)),
        *[Part(WHITE, [s]) for s in sprinkles],
    ]


def hamburger(rng: Rng) -> list[Part]:
    seeds = [
        ellipse(x, y, 0.05, 0.03, points=8) for x, y in rng.uniform((-0.55, -0.55), (0.55, -0.25), (7, 2))
    ]
    salad = poly((-0.92, 0.02), (0.92, 0.02), (0.75, 0.18), (0.5, 0.05), (0.25, 0.2), (0.0, 0.05),
                 (-0.25, 0.2), (-0.5, 0.05), (-0.75, 0.18))  # fmt: skip
    return [Part((214, 150, 76), [half(0, -0.02, 0.9, 0.7)]), Part(CREAM, seeds), Part((92, 54, 34), [rect(-0.85, 0.12, 0.85, 0.36)]),
            Part(LEAF, [salad]), Part(RED, [rect(-0.8, -0.06, 0.8, 0.04)]), Part((214, 150, 76), [half(0, 0.36, 0.85, -0.36)])]  # fmt: skip


def lollipop(rng: Rng) -> list[Part]:
    turn = rng.uniform(0, np.pi)
    swirl = [wave([(0, -0.42), (0.28 * np.cos(a), -0.42 + 0.28 * np.sin(a)), (0.5 * np.cos(a + 0.8), -0.42 + 0.5 * np.sin(a + 0.8))], [0.02, 0.12, 0.2])
             for a in turn + np.arange(4) * np.pi / 2]  # fmt: skip
    return [
        Part(CREAM, [bar(0, 0, 0, 0.97, 0.1)]),
        Part("main", [ellipse(0, -0.42, 0.54)]),
        *[Part(WHITE, [s]) for s in swirl],
    ]


def snake(rng: Rng) -> list[Part]:
    bend = rng.uniform(0.28, 0.42)
    xs = np.linspace(-0.92, 0.8, 15)
    ys = bend * np.sin(xs * 5.2).round(9)
    line = list(zip(xs.tolist(), ys.tolist(), strict=True))
    bands = [ellipse(x, y, 0.07, 0.07, points=8) for x, y in line[1:-1:2]]
    head = (line[-1][0] + 0.06, line[-1][1])
    return [Part("main", [wave(line, [0.02, 0.12, *[0.2] * 12, 0.18])]), Part("dark", bands), Part("main", [ellipse(*head, 0.17, 0.13)]),
            Part(RED, [bar(head[0] + 0.1, head[1], min(head[0] + 0.3, 0.99), head[1] + 0.02, 0.04)]), Part(BLACK, [ellipse(head[0] + 0.04, head[1] - 0.05, 0.035, points=8)])]  # fmt: skip


def ladybug(rng: Rng) -> list[Part]:
    spots = [
        ellipse(x * 0.9, y, 0.12, points=16)
        for x, y in ((-0.4, -0.1), (0.4, -0.1), (-0.35, 0.4), (0.35, 0.4), (-0.62, 0.18), (0.62, 0.18))
    ]
    legs = [bar(s * 0.6, y, s * 0.97, y + 0.1, 0.07) for s in (-1, 1) for y in (-0.3, 0.1, 0.45)]
    return [*[Part(BLACK, [leg]) for leg in legs], Part(BLACK, [ellipse(0, -0.66, 0.36, 0.28)]), Part("main", [ellipse(0, 0.12, 0.76, 0.74)]),
            Part(BLACK, spots[: int(rng.integers(4, 7))]), Part(BLACK, [rect(-0.03, -0.6, 0.03, 0.86)]), Part(WHITE, [ellipse(-0.16, -0.76, 0.07), ellipse(0.16, -0.76, 0.07)])]  # fmt: skip


def owl(rng: Rng) -> list[Part]:
    w = rng.uniform(0.56, 0.66)
    ears = [
        poly((-w, -0.95), (-0.15, -0.65), (-w + 0.05, -0.4)),
        poly((w, -0.95), (0.15, -0.65), (w - 0.05, -0.4)),
    ]
    return [Part("main", [ellipse(0, 0.05, w + 0.04, 0.86)]), *[Part("main", [e]) for e in ears], Part("light", [ellipse(0, 0.36, 0.38, 0.46)]),
            Part("dark", [ellipse(-w, 0.2, 0.16, 0.5)]), Part("dark", [ellipse(w, 0.2, 0.16, 0.5)]), Part(WHITE, [ellipse(-0.27, -0.35, 0.26), ellipse(0.27, -0.35, 0.26)]),
            Part(BLACK, [ellipse(-0.27, -0.35, 0.12), ellipse(0.27, -0.35, 0.12)]), Part(GOLD, [poly((-0.1, -0.2), (0.1, -0.2), (0, 0.04))]), Part(GOLD, [rect(-0.3, 0.86, -0.08, 0.96), rect(0.08, 0.86, 0.3, 0.96)])]  # fmt: skip


def octopus(rng: Rng) -> list[Part]:
    arms = []
    for x in (-0.75, -0.45, -0.15, 0.15, 0.45, 0.75):
        curl = rng.uniform(-0.12, 0.12)
        arms.append(
            wave(
                [(x * 0.6, 0.05), (x * 0.9 + curl, 0.45), (x, 0.75), (x * 1.15 + curl, 0.95)],
                [0.22, 0.18, 0.13, 0.04],
            )
        )
    return [*[Part("main", [a]) for a in arms], Part("main", [ellipse(0, -0.3, 0.56, 0.62)]), Part(WHITE, [ellipse(-0.2, -0.2, 0.15), ellipse(0.2, -0.2, 0.15)]),
            Part(BLACK, [ellipse(-0.2, -0.17, 0.07), ellipse(0.2, -0.17, 0.07)]), Part("dark", [half(0, 0.08, 0.14, -0.1)])]  # fmt: skip


def rabbit(rng: Rng) -> list[Part]:
    e = rng.uniform(0.02, 0.12)
    return [Part("main", [ellipse(-0.2 - e, -0.62, 0.13, 0.36)]), Part("main", [ellipse(0.2 + e, -0.62, 0.13, 0.36)]), Part((238, 170, 180), [ellipse(-0.2 - e, -0.6, 0.06, 0.24), ellipse(0.2 + e, -0.6, 0.06, 0.24)]),
            Part("main", [ellipse(0, 0.55, 0.52, 0.42)]), Part("main", [ellipse(0, -0.08, 0.4, 0.36)]), Part(WHITE, [ellipse(0, 0.62, 0.28, 0.28)]),
            Part(BLACK, [ellipse(-0.15, -0.14, 0.06), ellipse(0.15, -0.14, 0.06)]), Part((238, 150, 165), [ellipse(0, 0.02, 0.07, 0.05)]), Part(WHITE, [rect(-0.06, 0.08, 0.06, 0.2)]), Part("light", [ellipse(-0.3, 0.9, 0.22, 0.09), ellipse(0.3, 0.9, 0.22, 0.09)])]  # fmt: skip


def cat(rng: Rng) -> list[Part]:
    side = 1.0 if rng.random() < 0.5 else -1.0
    tail = wave(
        [(side * 0.4, 0.75), (side * 0.8, 0.6), (side * 0.85, 0.2), (side * 0.7, 0.0)],
        [0.14, 0.15, 0.13, 0.08],
    )
    whiskers = [
        bar(s * 0.12, y, s * 0.55, y + dy, 0.03) for s in (-1, 1) for y, dy in ((-0.12, -0.06), (-0.08, 0.05))
    ]
    return [Part("main", [tail]), Part("main", [ellipse(0, 0.5, 0.48, 0.46)]), Part("main", [poly((-0.48, -0.85), (-0.1, -0.55), (-0.44, -0.25))]), Part("main", [poly((0.48, -0.85), (0.1, -0.55), (0.44, -0.25))]),
            Part("main", [ellipse(0, -0.25, 0.46, 0.38)]), Part((126, 190, 70), [ellipse(-0.18, -0.32, 0.1, 0.08), ellipse(0.18, -0.32, 0.1, 0.08)]), Part(BLACK, [ellipse(-0.18, -0.32, 0.035, 0.07), ellipse(0.18, -0.32, 0.035, 0.07)]),
            Part((232, 140, 150), [poly((-0.06, -0.18), (0.06, -0.18), (0, -0.1))]), *[Part(WHITE, [w]) for w in whiskers], Part("light", [ellipse(-0.2, 0.9, 0.16, 0.08), ellipse(0.2, 0.9, 0.16, 0.08)])]  # fmt: skip


def sun(rng: Rng) -> list[Part]:
    tips = int(rng.integers(10, 15))
    return [Part((246, 178, 40), [star(0, 0, 0.97, 0.62, tips)]), Part((252, 224, 88), [ellipse(0, 0, 0.58)])]


def hat(rng: Rng) -> list[Part]:
    top = rng.uniform(-0.75, -0.55)
    crown = poly((-0.42, 0.35), (-0.46, top), (0.46, top), (0.42, 0.35))
    return [
        Part("main", [crown]),
        Part("light", [poly((-0.425, 0.06), (0.425, 0.06), (0.42, 0.32), (-0.42, 0.32))]),
        Part("main", [ellipse(0, 0.42, 0.95, 0.18)]),
        Part("dark", [ellipse(0, top, 0.46, 0.1)]),
    ]


def handbag(rng: Rng) -> list[Part]:
    drop = rng.uniform(-0.2, -0.1)
    handle = [half(0, drop + 0.05, 0.46, 0.68), half(0, drop + 0.05, 0.34, 0.55)]
    bag = poly((-0.66, drop), (0.66, drop), (0.85, 0.85), (-0.85, 0.85))
    return [
        Part("dark", handle),
        Part("main", [bag]),
        Part("dark", [poly((-0.67, drop), (0.67, drop), (0.5, drop + 0.4), (-0.5, drop + 0.4))]),
        Part(GOLD, [ellipse(0, drop + 0.4, 0.1)]),
    ]


def spectacles(rng: Rng) -> list[Part]:
    r = rng.uniform(0.34, 0.4)
    return [Part(GLASS, [ellipse(-0.5, 0, r), ellipse(0.5, 0, r)]), Part("main", ring(-0.5, 0, r + 0.08, r - 0.02)), Part("main", ring(0.5, 0, r + 0.08, r - 0.02)),
            Part("main", [bar(-0.12, -0.05, 0.12, -0.05, 0.1)]), Part("main", [bar(-0.88, -0.12, -0.99, -0.3, 0.08)]), Part("main", [bar(0.88, -0.12, 0.99, -0.3, 0.08)])]  # fmt: skip


def sofa(rng: Rng) -> list[Part]:
    back = rng.uniform(-0.5, -0.38)
    return [Part("main", [rect(-0.8, back, 0.8, 0.2)]), Part("light", [rect(-0.68, 0.08, -0.02, 0.34), rect(0.02, 0.08, 0.68, 0.34)]), Part("dark", [rect(-0.8, 0.32, 0.8, 0.55)]),
            Part("main", [rect(-0.97, -0.08, -0.66, 0.55), half(-0.815, -0.07, 0.155, 0.12)]), Part("main", [rect(0.66, -0.08, 0.97, 0.55), half(0.815, -0.07, 0.155, 0.12)]), Part(WOOD, [rect(-0.9, 0.55, -0.76, 0.7), rect(0.76, 0.55, 0.9, 0.7)])]  # fmt: skip


def television(rng: Rng) -> list[Part]:
    x = rng.uniform(-0.6, 0.1)
    return [Part(BLACK, [bar(0, -0.5, -0.4, -0.95, 0.06)]), Part(BLACK, [bar(0, -0.5, 0.4, -0.95, 0.06)]), Part("main", [rect(-0.92, -0.55, 0.92, 0.7)]), Part((70, 96, 120), [rect(-0.78, -0.42, 0.5, 0.56)]),
            Part((150, 190, 210), [poly((x, -0.42), (x + 0.22, -0.42), (x - 0.0, 0.56), (x - 0.18, 0.56))]), Part(WHITE, [ellipse(0.71, -0.22, 0.1), ellipse(0.71, 0.1, 0.1)]), Part(BLACK, [rect(-0.7, 0.7, -0.5, 0.85), rect(0.5, 0.7, 0.7, 0.85)])]  # fmt: skip


def bucket(rng: Rng) -> list[Part]:
    w = rng.uniform(0.42, 0.52)
    return [
        Part(GREY, [half(0, -0.3, 0.68, 0.62), half(0, -0.3, 0.6, 0.54)]),
        Part("main", [poly((-0.74, -0.3), (0.74, -0.3), (w, 0.9), (-w, 0.9))]),
        Part("dark", [ellipse(0, -0.3, 0.74, 0.16)]),
        Part("light", [poly((-0.66, 0.1), (0.66, 0.1), (0.62, 0.26), (-0.62, 0.26))]),
    ]


def candle(rng: Rng) -> list[Part]:
    w, top = rng.uniform(0.2, 0.28), rng.uniform(-0.35, -0.2)
    flame = poly((0, -0.97), (0.15, -0.62), (0.1, -0.48), (-0.1, -0.48), (-0.15, -0.62))
    return [Part("main", [rect(-w, top, w, 0.75)]), Part("light", [ellipse(0, top, w, 0.07)]), Part(BLACK, [bar(0, top, 0, -0.5, 0.04)]), Part((250, 150, 40), [flame]), Part((255, 236, 140), [ellipse(0, -0.6, 0.07, 0.13)]),
            Part(GOLD, [ellipse(0, 0.8, 0.62, 0.15)])]  # fmt: skip


RECIPES: dict[str, Recipe] = {
    f.__name__: f
    for f in (
        car, bus, truck, bicycle, airplane, helicopter, sailboat, house, lighthouse, windmill, castle, tent,
        flower, palm, fir, corn, pineapple, doughnut, hamburger, lollipop, snake, ladybug, owl, octopus, rabbit, cat,
        sun, hat, handbag, spectacles, sofa, television, bucket, candle,
    )
}  # fmt: skip
