from __future__ import annotations

import numpy as np
import pytest
from toy_videos import vipseg_720p, vspw, write_json, ytvis, ytvis_frames

from vlkd.data.splits import NAMED_SPLITS, resolve_novel
from vlkd.data.video import open_dataset
from vlkd.data.video.masks import encode_mask
from vlkd.errors import UserError
from vlkd.text.names import class_list

# gkc.md section 8: 0-based VIPSeg ids of GKC's 12 novel classes
GKC_NOVEL = {78, 94, 112, 76, 102, 32, 122, 116, 80, 57, 34, 11}
RLE = encode_mask(np.ones((4, 6), bool))


def test_packaged_splits_have_the_published_classes():
    names = class_list("vipseg_124").names
    assert resolve_novel("vipseg_gkc", names) == GKC_NOVEL
    assert sum(class_list("vipseg_124").isthing[i] for i in GKC_NOVEL) == 5
    assert resolve_novel("vspw_ov2vss", names) == frozenset(range(80, 124))
    assert NAMED_SPLITS["vspw_ov2vss"][0] == "trash can" and NAMED_SPLITS["vspw_ov2vss"][-1] == "train"


# VSPW values: 1 wall and 2 ceiling are base, 81 trash can is novel
VIDEOS = {"both": [[1, 81], [81]], "base": [[1], [2]], "novel": [[81], [0]]}


def frames_of(dataset):
    return {
        record.id: [(int(path.stem), *sorted({*record.semantic(t).ravel().tolist()} - {255}))
                    for t, path in enumerate(record.frame_files)]
        for record in dataset
    }  # fmt: skip


def test_subsets_of_label_maps(tmp_path):
    vspw(tmp_path, VIDEOS)
    assert frames_of(open_dataset("vspw", tmp_path, "val")) == {
        "both": [(0, 0, 80), (1, 80)],
        "base": [(0, 0), (1, 1)],
        "novel": [(0, 80), (1,)],
    }
    ignore = open_dataset("vspw", tmp_path, "val", "ignore")
    assert frames_of(ignore) == {"both": [(0, 0)], "base": [(0, 0), (1, 1)], "novel": []}
    delete = open_dataset("vspw", tmp_path, "val", "delete")
    assert frames_of(delete) == {"base": [(0, 0), (1, 1)]}
    base = open_dataset("vspw", tmp_path, "val", "val_base")
    assert frames_of(base) == {"both": [(0, 0)], "base": [(0, 0), (1, 1)]}
    novel = open_dataset("vspw", tmp_path, "val", "val_novel")
    assert frames_of(novel) == {"both": [(0, 80), (1, 80)], "novel": [(0, 80)]}
    assert novel.candidates == frozenset(range(80, 124)) and base.candidates == frozenset(range(80))
    assert len(novel.names) == 124 and novel[0].semantic(0).min() == 80
    assert novel[0].check() == [] and novel[0].labelled == (0, 1)


def test_subsets_of_panoptic_labels(tmp_path):
    root = vipseg_720p(tmp_path, [[(5, 0, [0]), (300, 2, [1])], [(300, 2, [3])], [(5, 0, [2]), (9, 1, [3])]])
    record = open_dataset("vipseg", root, "val", "val_novel", novel=["door"])[0]
    assert [path.stem[-1] for path in record.frame_files] == ["0", "1"] and record.size == (4, 6)
    ids, categories = record.panoptic(1)
    assert categories == {300: 2} and np.unique(ids).tolist() == [0, 300]
    assert [(track.id, track.times) for track in record.tracks] == [(300, (0, 1))]
    assert record.tracks[0].mask(1).ravel().nonzero()[0].tolist() == [3]
    record = open_dataset("vipseg", root, "val", "ignore", novel=["door"])[0]
    assert [path.stem[-1] for path in record.frame_files] == ["0", "2"] and record.tracks == ()
    with pytest.raises(UserError, match='subset "delete" leaves no video'):
        open_dataset("vipseg", root, "val", "delete", novel=["door"])


def test_a_class_may_be_neither_base_nor_novel(tmp_path):
    root = vipseg_720p(tmp_path, [[(5, 0, [0]), (300, 2, [1]), (9, 1, [2])]])
    dataset = open_dataset("vipseg", root, "val", "val_base", base=["wall"], novel=["door"])
    assert (dataset.base, dataset.novel) == ({0}, {2})
    assert dataset[0].categories() == {0} and dataset[0].base == {0} and dataset[0].novel == {2}
    kept = open_dataset("vipseg", root, "val", "ignore", base=["wall"], novel=["door"])
    assert kept[0].categories() == {0, 1}


def test_subsets_of_tracks_keep_every_frame(tmp_path):
    content = ytvis(["cat", "dog"], [RLE, None])
    dog = {**content["annotations"][0], "id": 4, "category_id": 2, "segmentations": [None, RLE]}
    only_dog = {**content["videos"][0], "id": 8, "file_names": ["two/00000.jpg", "two/00001.jpg"]}
    content["annotations"] += [dog, {**dog, "id": 5, "video_id": 8}]
    content["videos"].append(only_dog)
    write_json(tmp_path / "valid.json", content)
    for video in ("vid", "two"):
        ytvis_frames(tmp_path / "valid/JPEGImages", 2, video)

    def tracks(subset):
        dataset = open_dataset("youtube_vis_2019", tmp_path, "valid", subset, novel=["dog"])
        assert all(len(record) == 2 and record.labelled == (0, 1) for record in dataset)
        return {record.video_id: [track.id for track in record.tracks] for record in dataset}

    assert tracks(None) == {7: [3, 4], 8: [5]}
    assert tracks("ignore") == {7: [3], 8: []}
    assert tracks("val_base") == {7: [3]} and tracks("val_novel") == {7: [4], 8: [5]}
    with pytest.raises(UserError, match='subset "delete" leaves no video'):
        tracks("delete")


def test_choices_of_classes(tmp_path):
    vspw(tmp_path, VIDEOS)
    file = tmp_path / "novel.lst"
    file.write_text("wall\n\ntrash_can")

    def chosen(**choice):
        dataset = open_dataset("vspw", tmp_path, "val", **choice)
        return len(dataset.base), sorted(dataset.novel)

    assert chosen(novel=file) == (122, [0, 80]) == chosen(novel=str(file))
    assert chosen(novel="vipseg_gkc") == (112, sorted(GKC_NOVEL))
    assert chosen(novel=["Playground slide"]) == (123, [6])
    assert chosen(base=["wall"], novel=["ceiling"]) == (1, [1])
    assert chosen(base=["wall", "ceiling"]) == (2, list(range(2, 124)))
    assert chosen(novel=[]) == (124, [])


def test_wrong_choices(tmp_path):
    vspw(tmp_path, VIDEOS)

    def refused(expected, subset=None, **choice):
        with pytest.raises(UserError, match=expected) as caught:
            open_dataset("vspw", tmp_path, "val", subset, **choice)
        assert "\n" not in str(caught.value)

    refused("classes are both base and novel: wall; take them out", base=["wall", "door"], novel=["wall"])
    refused(r"novel class 'trash cann' is not a class .*nearest: \"trash can\"", novel=["trash cann"])
    refused("base class 'walls' is not a class", base=["walls"])
    refused(r"unknown split 'vspw_ov2vs' \(nearest: \"vspw_ov2vss\"\)", novel="vspw_ov2vs")
    refused(r"none\.txt: file of class names not found", novel="none.txt")
    refused(r"unknown subset 'val_nov' \(nearest: \"val_novel\"\); known: ignore, delete", "val_nov")
    refused('subset "val_novel" needs novel classes', "val_novel", novel=[])
    (tmp_path / "twice.txt").write_text("wall\nwall")
    refused("class names occur more than once: wall", novel=tmp_path / "twice.txt")
