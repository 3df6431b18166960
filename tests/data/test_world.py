"""The procedural world: exact, named, deterministic."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from vlkd.data.world import BACKGROUNDS, NAMES, NOVEL, OBJECTS, THINGS, World, world_synonyms
from vlkd.data.world.objects import RECIPES
from vlkd.data.world.raster import Edges, Part, fill
from vlkd.data.world.shapes import ellipse, rect, ring
from vlkd.data.world.textures import TEXTURES


def test_a_seed_gives_the_same_pixels_on_every_machine() -> None:
    world, digest = World(7), hashlib.sha256()
    for i in range(6):
        scene = world.scene(i, (96, 128))
        digest.update(scene.image.tobytes() + scene.panoptic.tobytes() + scene.caption.encode())
    for frame in world.video(0, frames=3, size=(64, 64)):
        digest.update(frame.image.tobytes() + frame.panoptic.tobytes())
    assert digest.hexdigest()[:16] == "949032a4fedb1681"


def test_seeds_and_numbers_differ() -> None:
    first = World(0).scene(0).image
    assert not np.array_equal(first, World(0).scene(1).image)
    assert not np.array_equal(first, World(1).scene(0).image)
    assert np.array_equal(first, World(0).scene(0).image)


@pytest.mark.parametrize("size", [(128, 128), (64, 200), (301, 77)])
def test_labels_are_exact_and_complete(size: tuple[int, int]) -> None:
    for i in range(8):
        scene = World(0).scene(i, size)
        assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
        assert scene.semantic.shape == scene.panoptic.shape == size
        assert set(np.unique(scene.panoptic)) == set(scene.categories)  # no void, no segment without pixels
        for segment, category in scene.categories.items():
            assert (scene.semantic[scene.panoptic == segment] == category).all()
            assert scene.isthing(segment) == (scene.names[category] in OBJECTS)


def test_captions_name_what_is_seen_with_synonyms() -> None:
    words: set[str] = set()
    for i in range(150):
        scene = World(0).scene(i, (64, 64))
        seen = {scene.names[c] for c in scene.categories.values() if c < THINGS}
        text = scene.caption
        words |= {s for name in NAMES for s in world_synonyms(name) if s in text}
        assert all(any(w in text for w in (name, *world_synonyms(name))) for name in seen), (text, seen)
    assert len(words) > 40


def test_enough_names_and_a_recipe_for_each() -> None:
    assert len(OBJECTS) >= 24 and len(BACKGROUNDS) >= 8 and len(set(NAMES)) == len(NAMES)
    assert set(RECIPES) == set(OBJECTS) and set(TEXTURES) == set(BACKGROUNDS)
    assert all(world_synonyms(name) for name in NAMES)
    assert (
        set(NOVEL) <= set(NAMES) and any(n in OBJECTS for n in NOVEL) and any(n in BACKGROUNDS for n in NOVEL)
    )
    for name in NAMES:
        assert set(world_synonyms(name, held_out=True)).isdisjoint(world_synonyms(name, held_out=False))


def test_objects_move_and_keep_their_track() -> None:
    enters = leaves = 0
    for i in range(12):
        frames = list(World(0).video(i, frames=24, size=(64, 64)))
        assert len(frames) == 24
        kept: dict[int, int] = {}
        for frame in frames:
            for segment, category in frame.categories.items():
                assert kept.setdefault(segment, category) == category
        first, last = set(frames[0].categories), set(frames[-1].categories)
        enters, leaves = enters + len(last - first), leaves + len(first - last)
        centre = [
            np.argwhere(f.panoptic == max(first)).mean(0) for f in frames if (f.panoptic == max(first)).any()
        ]
        assert np.abs(centre[0] - centre[-1]).sum() > 0
    assert enters > 0 and leaves > 0


def test_video_of_one_scene_is_the_same_twice() -> None:
    a, b = (list(World(3).video(5, frames=4, size=(48, 48))) for _ in range(2))
    assert all(np.array_equal(x.image, y.image) for x, y in zip(a, b, strict=True))


def test_polygons_fill_at_pixel_centres() -> None:
    edges = Edges.of([Part("main", [rect(2, 1, 5, 4)]), Part("dark", ring(8, 8, 4, 2))])
    filled = fill(edges, 16, 16)
    assert filled is not None
    window, top = filled
    canvas = np.full((16, 16), -1)
    canvas[window] = top
    y, x = np.mgrid[0:16, 0:16] + 0.5
    assert ((canvas == 0) == ((x > 2) & (x < 5) & (y > 1) & (y < 4))).all()
    radius = np.hypot(x - 8, y - 8)
    inside = (radius < 4) & (radius > 2)
    assert ((canvas == 1) != inside).sum() <= 12  # a 32-gon is not quite a circle


def test_nothing_is_drawn_outside_the_canvas() -> None:
    edges = Edges.of([Part("main", [ellipse(-30, -30, 3)])])
    assert fill(edges, 16, 16) is None
    half = fill(Edges.of([Part("main", [rect(-5, -5, 3, 3)])]), 16, 16)
    assert half is not None and (half[1] >= 0).sum() == 9
