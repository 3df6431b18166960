"""World: scenes and videos by number, the same for a seed on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vlkd.data.world.captions import caption
from vlkd.data.world.names import BACKGROUNDS, NAMES, OBJECTS, THINGS
from vlkd.data.world.scene import (
    Item,
    Packed,
    category,
    draw_layers,
    layers,
    light,
    make_item,
    paint,
    place_items,
)

VOID = 255
_KINDS = ("scene", "object", "cutout", "swatch", "video")


@dataclass
class Scene:
    """A rendered image with exact labels.

    image (H,W,3) uint8, semantic (H,W) uint8 indexing names with 255 for void, panoptic (H,W) int32 segment
    ids with 0 for void, categories {segment id: class index}, and what a caption can tell: (name, colour) of
    the visible things, names of the visible stuff.
    """

    image: npt.NDArray[np.uint8]
    panoptic: npt.NDArray[np.int32]
    categories: dict[int, int]
    things: list[tuple[str, str]]
    stuff: list[str]
    caption_seed: int
    names: tuple[str, ...] = field(default=NAMES, repr=False)

    @property
    def caption(self) -> str:
        """One sentence about the image."""
        return self.captions(1)[0]

    def captions(self, count: int) -> list[str]:
        """That many wordings of the caption, the same ones each time."""
        rng = np.random.default_rng(self.caption_seed)
        return [caption(rng, self.things, self.stuff) for _ in range(count)]

    @property
    def semantic(self) -> npt.NDArray[np.uint8]:
        """Class index of each pixel (H,W), 255 for void."""
        table = np.full(max(self.categories, default=0) + 1, VOID, np.uint8)
        for segment, index in self.categories.items():
            table[segment] = index
        return table[self.panoptic]

    def isthing(self, segment: int) -> bool:
        """Whether a segment is an object rather than a background."""
        return self.categories[segment] < THINGS


@dataclass
class Video:
    """Frames of one scene in motion; segment ids stay with their object, so they are track ids."""

    world: World
    number: int
    length: int
    size: tuple[int, int]

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Scene]:
        rng = self.world.rng("video", self.number)
        height, width = self.size
        backdrop, ground, stuff = draw_layers(rng, layers(rng, height, width), height, width)
        items = place_items(rng, int(rng.integers(3, 7)))
        exposure, words = rng.integers(2**32, size=2)
        for time in range(self.length):
            canvas, ids = backdrop.copy(), ground.copy()
            for k, item in enumerate(items):
                paint(item, canvas, ids, len(stuff) + 1 + k, time - self.length / 2)
            yield _scene(np.random.default_rng(exposure), canvas, ids, stuff, items, int(words))


def _scene(rng: np.random.Generator, canvas: Packed, ids: npt.NDArray[np.int32], stuff: list[str],
           items: list[Item], caption_seed: int) -> Scene:  # fmt: skip
    named = {k + 1: name for k, name in enumerate([*stuff, *(item.name for item in items)])}
    visible = np.bincount(ids.ravel(), minlength=len(named) + 1) > 0
    categories = {k: category(name) for k, name in named.items() if visible[k]}
    things = [(item.name, item.colour) for k, item in enumerate(items) if visible[len(stuff) + 1 + k]]
    seen = [name for k, name in enumerate(stuff) if visible[k + 1]]
    return Scene(light(rng, canvas), ids, categories, things, seen, caption_seed)


class World:
    """Scenes, close-ups and videos by number; the same seed and number give the same pixels everywhere."""

    names = NAMES

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def rng(self, kind: str, number: int) -> np.random.Generator:
        """Random stream of one image or video."""
        return np.random.default_rng([self.seed, _KINDS.index(kind), number])

    def scene(self, i: int, size: tuple[int, int] = (128, 128)) -> Scene:
        """Scene number i with one to six objects before backgrounds, at (H, W)."""
        rng = self.rng("scene", i)
        canvas, ids, stuff = draw_layers(rng, layers(rng, *size), *size)
        items = place_items(rng, int(rng.integers(1, 7)))
        for k, item in enumerate(items):
            paint(item, canvas, ids, len(stuff) + 1 + k)
        return _scene(rng, canvas, ids, stuff, items, int(rng.integers(2**32)))

    def object_photo(self, i: int, size: tuple[int, int] = (64, 64), plain: bool = False) -> Scene:
        """One large object before one background, or before plain grey (plain: void)."""
        rng = self.rng("cutout" if plain else "object", i)
        stuff = [] if plain else [list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]]
        whole = np.ones(size, bool)
        canvas, ids, stuff = draw_layers(rng, [(name, whole) for name in stuff], *size)
        x, y = rng.uniform(0.42, 0.58, 2)
        item = make_item(
            rng,
            list(OBJECTS)[int(rng.integers(len(OBJECTS)))],
            float(x),
            float(y),
            float(rng.uniform(0.3, 0.52)),
        )
        paint(item, canvas, ids, len(stuff) + 1)
        return _scene(rng, canvas, ids, stuff, [item], int(rng.integers(2**32)))

    def swatch(self, i: int, size: tuple[int, int] = (64, 64)) -> Scene:
        """A background alone: filling the image, or as an irregular piece on plain grey (void)."""
        rng = self.rng("swatch", i)
        name = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
        mask = np.ones(size, bool)
        if rng.random() < 0.6:
            shapes = [m for _, m in layers(rng, *size)]
            mask = shapes[int(rng.integers(1, len(shapes)))] if rng.random() < 0.5 else ~shapes[-1]
            if rng.random() < 0.7:
                ids = np.zeros(size, np.int32)
                for item in place_items(rng, 3):
                    paint(item, np.zeros(size, "<u4"), ids, 1)
                mask = mask & (ids == 0)
        if not mask.any():
            mask[:] = True
        canvas, ids, stuff = draw_layers(rng, [(name, mask)], *size)
        return _scene(rng, canvas, ids, stuff, [], int(rng.integers(2**32)))

    def video(self, i: int, frames: int = 24, size: tuple[int, int] = (128, 128)) -> Video:
        """Video number i: objects move, enter, leave and cross before a still background."""
        return Video(self, i, frames, size)
