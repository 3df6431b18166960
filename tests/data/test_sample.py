from __future__ import annotations

import numpy as np
import pytest

from vlkd.data import Segment, SegmentationSample, void_label
from vlkd.errors import UserError


def make(ids, info):
    segments = np.array(ids, dtype=np.int32)
    return SegmentationSample("s", np.zeros((*segments.shape, 3), np.uint8), segments, info)


@pytest.mark.parametrize("big", [1, 5_000_000])
def test_semantic_looks_every_id_up(big):
    info = [Segment(7 * big, 4, True), Segment(2 * big, 0, False)]
    sample = make([[0, 7 * big, 2 * big], [7 * big, 9 * big, 0]], info)
    assert sample.semantic().tolist() == [[255, 4, 0], [4, 255, 255]]
    assert sample.semantic().dtype == np.int64
    assert sample.areas().tolist() == [2, 1]


def test_keep_turns_other_segments_void():
    sample = make([[1, 2], [2, 3]], [Segment(1, 0, True), Segment(2, 1, True), Segment(3, 2, False)])
    kept = sample.keep([True, False, True])
    assert kept.segments.tolist() == [[1, 0], [0, 3]] and kept.segments.dtype == np.int32
    assert [segment.id for segment in kept.info] == [1, 3]
    assert sample.segments.tolist() == [[1, 2], [2, 3]]


def test_sample_without_segments_is_all_void():
    assert make([[0, 3]], []).semantic().tolist() == [[255, 255]]


def test_class_255_needs_another_void_label():
    sample = make([[1, 0]], [Segment(1, 255, True)])
    with pytest.raises(UserError, match="collides with the void label 255"):
        sample.semantic()
    assert sample.semantic(void_label(300)).tolist() == [[255, 65535]]
    assert void_label(255) == 255
