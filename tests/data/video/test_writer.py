from __future__ import annotations

import numpy as np
import pytest

from vlkd.data.video import check, open_dataset, write_world
from vlkd.data.video.writer import BURST_EVERY, WRITERS
from vlkd.data.world import NAMES, NOVEL, THINGS, World
from vlkd.errors import UserError

VIDEOS, FRAMES, SIZE = 2, 9, (40, 56)
LABEL_MAPS = ("vspw", "vipseg", "vipseg_720p", "camvid")


def scenes(number):
    return list(World(0).video(1_000_000 + number, FRAMES, SIZE))


def written(kind, root, split="val"):
    write_world(kind, root, split, VIDEOS, FRAMES, SIZE)
    return open_dataset(kind.removesuffix("_720p"), root, split)


def names_of(record, labels):
    return np.array([*record.names, "void"])[np.where(labels == 255, len(record.names), labels)]


@pytest.mark.parametrize("kind", LABEL_MAPS)
def test_label_maps_come_back(tmp_path, kind):
    dataset = written(kind, tmp_path)
    assert len(dataset) == VIDEOS and sorted(dataset.names) == sorted(NAMES)
    assert check(kind.removesuffix("_720p"), tmp_path, "val") == []
    for number, record in enumerate(dataset):
        assert len(record) == FRAMES and record.labelled == tuple(range(FRAMES)) and record.annotated
        for t, scene in enumerate(scenes(number)):
            assert np.array_equal(names_of(record, record.semantic(t)), np.array(NAMES)[scene.semantic])
            assert np.abs(record.frame(t).astype(int) - scene.image).mean() < 12  # JPEG
            if record.form == "panoptic":
                ids, categories = record.panoptic(t)
                pairs = np.unique(np.stack([ids, scene.panoptic]).reshape(2, -1), axis=1)
                assert len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1]  # one to one
                found = {segment: record.names[categories[id]] for id, segment in pairs.T}
                assert found == {segment: NAMES[c] for segment, c in scene.categories.items()}
            else:
                assert record.panoptic(t) is None and record.tracks == ()


@pytest.mark.parametrize("kind", ["vipseg", "vipseg_720p"])
def test_panoptic_ids_are_tracks(tmp_path, kind):
    record = written(kind, tmp_path)[0]
    expected = scenes(0)
    kept = {k for scene in expected for k, c in scene.categories.items() if c < THINGS}
    assert len(record.tracks) == len(kept) > 2
    for track in record.tracks:
        t = track.times[0]
        segment = int(expected[t].panoptic[track.mask(t)][0])
        assert [t for t, scene in enumerate(expected) if segment in scene.categories] == list(track.times)
        for t in track.times:
            assert np.array_equal(track.mask(t), expected[t].panoptic == segment)


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind not in LABEL_MAPS])
def test_tracks_come_back(tmp_path, kind):
    dataset = written(kind, tmp_path)
    assert dataset.names == NAMES[:THINGS] and check(kind, tmp_path, "val") == []
    for number, record in enumerate(dataset):
        step = BURST_EVERY if kind == "burst" else 1
        expected = scenes(number)
        assert len(record) == FRAMES and record.labelled == tuple(range(0, FRAMES, step))
        assert record.video_id == number + 1 and record.size == SIZE
        assert record.fps == (24 if kind == "burst" else None)
        assert record.semantic(0) is None and record.panoptic(0) is None
        segments = sorted({k for s in expected[::step] for k, c in s.categories.items() if c < THINGS})
        assert len(record.tracks) == len(segments)
        for track, segment in zip(record.tracks, segments, strict=True):
            shown = [t for t in record.labelled if segment in expected[t].categories]
            assert list(track.times) == shown
            assert track.category == expected[shown[0]].categories[segment]
            for t in range(FRAMES):
                mask = track.mask(t)
                assert (mask is None) == (t not in shown)
                assert mask is None or np.array_equal(mask, expected[t].panoptic == segment)


def test_lvvis_has_the_worlds_novel_classes(tmp_path):
    dataset = written("lvvis", tmp_path)
    assert {dataset.names[i] for i in dataset.novel} == set(NOVEL) & set(NAMES[:THINGS])
    assert dataset.base == frozenset(range(THINGS)) - dataset.novel


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind not in ("burst", "camvid")])
def test_labels_of_the_test_split_are_withheld(tmp_path, kind):
    record = written(kind, tmp_path, "test")[0]
    assert not record.annotated and record.labelled == () and record.tracks == ()
    assert record.semantic(0) is None and len(record) == FRAMES and record.frame(8).shape == (*SIZE, 3)
    assert check(kind.removesuffix("_720p"), tmp_path, "test") == []


def test_splits_share_no_video_and_the_same_call_writes_the_same_labels(tmp_path):
    train, val = written("vspw", tmp_path, "train"), written("vspw", tmp_path)
    assert not {r.id for r in train} & {r.id for r in val}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    written("vspw", tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    assert not list(tmp_path.rglob("*.part*"))


def test_wrong_arguments(tmp_path):
    with pytest.raises(UserError, match=r"layout 'vpsw' \(nearest: \"vspw\"\)"):
        write_world("vpsw", tmp_path)
    with pytest.raises(UserError, match="split 'vla'"):
        write_world("vspw", tmp_path, "vla")
