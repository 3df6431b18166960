from __future__ import annotations

import numpy as np
import pytest

from vlkd.data import (
    DatasetView,
    Segment,
    SegmentationDataset,
    SegmentationSample,
    apply_split,
    resolve_novel,
)
from vlkd.errors import UserError
from vlkd.text import class_names

NAMES = ("car", "tree", "wine glass")


class Toy(SegmentationDataset):
    """Each sample is a row with one pixel per listed class."""

    def __init__(self, rows):
        self.rows, self.names, self.isthing = rows, NAMES, (True, False, True)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        segments = np.arange(1, len(row) + 1, dtype=np.int32)[None]
        info = [Segment(i + 1, c, self.isthing[c]) for i, c in enumerate(row)]
        return SegmentationSample(str(index), np.zeros((1, len(row), 3), np.uint8), segments, info)


ROWS = [[0, 1], [1, 2, 1], [2]]


def labels(dataset):
    return {sample.id: sample.semantic()[0].tolist() for sample in dataset}


@pytest.mark.parametrize(
    ("handling", "expected"),
    [
        ("keep", {"0": [0, 1], "1": [1, 2, 1], "2": [2]}),
        ("ignore", {"0": [0, 1], "1": [1, 255, 1], "2": [255]}),
        ("delete", {"0": [0, 1]}),
        ("base", {"0": [0, 1], "1": [1, 255, 1]}),
        ("novel", {"1": [255, 2, 255], "2": [2]}),
    ],
)
def test_handling(handling, expected):
    dataset = apply_split(Toy(ROWS), ["wine_glass"], handling)
    assert labels(dataset) == expected
    assert dataset.novel == {2} and dataset.names == NAMES


def test_own_novel_classes_of_the_data_set_are_the_default():
    toy = Toy(ROWS)
    toy.novel = frozenset({0})
    assert labels(apply_split(toy, None, "delete")) == {"1": [1, 2, 1], "2": [2]}
    assert apply_split(toy).novel == {0}
    assert labels(apply_split(Toy(ROWS), None, "ignore")) == labels(Toy(ROWS))


def test_view_selects_samples():
    view = DatasetView(Toy(ROWS), [2, 0])
    assert [sample.id for sample in view] == ["2", "0"] and view.categories(1) == {0, 1}
    assert view.check(0) == [] and view.missing() == []


def test_coco_split_has_18_of_133():
    names = class_names("coco_panoptic_133")
    for spelling in (names, class_names("coco_panoptic_133", raw=True)):
        novel = resolve_novel("coco_gkc", spelling)
        assert len(novel) == 18
        assert {"bicycle", "wall stone", "playing field", "river"} <= {names[i] for i in novel}


def test_wrong_names():
    with pytest.raises(UserError, match=r'"wine glass"'):
        resolve_novel(["wineglass"], NAMES)
    with pytest.raises(UserError, match=r"unknown split 'coco_gck'.*coco_gkc"):
        resolve_novel("coco_gck", NAMES)
    with pytest.raises(UserError, match="leaves no image"):
        apply_split(Toy([[2]]), ["wine glass"], "delete")
