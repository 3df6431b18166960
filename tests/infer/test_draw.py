import numpy as np
import pytest
from PIL import Image

from vlkd.infer.draw import Legend, overlay, palette, picture


def test_palette_is_steady_and_distinct():
    assert np.array_equal(palette(5), palette(300)[:5]) and palette(300).dtype == np.uint8
    assert len(np.unique(palette(300), axis=0)) > 295
    near = np.abs(palette(24)[:, None].astype(int) - palette(24)[None]).sum(-1)
    assert near[~np.eye(24, dtype=bool)].min() > 25


def test_overlay_tints_and_outlines():
    image = np.full((40, 40, 3), 100, np.uint8)
    labels = np.zeros((40, 40), np.int64)
    labels[:, 20:] = 1
    drawn = overlay(image, labels, palette(2))
    for column, index in ((5, 0), (35, 1)):
        assert np.abs(drawn[10, column].astype(int) - (100 + palette(2)[index].astype(int)) / 2).max() <= 2
    edge = np.flatnonzero((drawn[10] != drawn[10, 5]).any(-1) & (drawn[10] != drawn[10, 35]).any(-1))
    assert edge.tolist() == [20]


@pytest.mark.parametrize("size", [(8, 8), (96, 128), (480, 640), (30, 900)])
def test_picture_keeps_the_image_and_adds_a_legend(size):
    labels = np.zeros(size, np.int64)
    labels[: size[0] // 2] = 2
    names = ["Straße", "空", "tree|shrub " * 9]
    drawn = picture(np.zeros((*size, 3), np.uint8), labels, names, np.array([0.5, 0.0, 0.5]))
    factor = drawn.shape[1] // size[1]
    assert drawn.shape[1] == factor * size[1] >= min(480, size[1])
    legend = drawn[factor * size[0] :]
    assert 20 <= len(legend) <= 0.5 * drawn.shape[0] or size[0] == 30
    colours = {tuple(int(v) for v in c) for c in np.unique(legend.reshape(-1, 3), axis=0)}
    assert all(tuple(int(v) for v in palette(3)[i]) in colours for i in (0, 2))
    assert tuple(int(v) for v in palette(3)[1]) not in colours  # absent


@pytest.mark.parametrize("count", [3, 60, 847])
def test_video_pictures_have_one_size(count):
    names = [f"class {i}" for i in range(count)]
    rng = np.random.default_rng(0)
    shapes = set()
    for present in (1, 2, count):
        labels = rng.integers(0, present, (120, 160))
        areas = np.bincount(labels.ravel(), minlength=count) / labels.size
        shapes.add(picture(np.zeros((120, 160, 3), np.uint8), labels, names, areas, steady=True).shape)
    assert len(shapes) == 1


def test_long_lists_say_how_many_are_left_out():
    legend = Legend(300, 200, [f"class {i}" for i in range(50)])
    assert legend.slots < 50
    all_of_them = legend.draw(range(50), np.full(50, 0.02), palette(50), False)
    few = legend.draw(range(4), np.full(50, 0.02), palette(50), False)
    assert all_of_them.shape[1] == few.shape[1] == 300
    assert few.shape[0] < all_of_them.shape[0] <= 0.4 * 200 + 2 * legend.line
    Image.fromarray(all_of_them)
