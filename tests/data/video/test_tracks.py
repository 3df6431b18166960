"""YouTube-VIS, OVIS, LV-VIS and BURST, with their traps."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from toy_videos import SIZE, frame, write_json, ytvis, ytvis_frames

from vlkd.data.video import check, open_dataset
from vlkd.data.video.masks import encode_mask
from vlkd.errors import UserError

MASK = np.zeros(SIZE, bool)
MASK[1:3, 2:5] = True
RLE = encode_mask(MASK)
POLYGON = [[2, 1, 5, 1, 5, 3, 2, 3]]
PLAIN = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}  # down the columns of MASK
FILES = {
    "youtube_vis_2019": ("valid.json", "valid/JPEGImages"),
    "youtube_vis_2021": ("valid.json", "valid/JPEGImages"),
    "ovis": ("annotations/annotations_valid.json", "valid"),
    "lvvis": ("val/val_instances.json", "val/JPEGImages"),
}


def made(root, kind, content, frames=3):
    write_json(root / FILES[kind][0], content)
    ytvis_frames(root / FILES[kind][1], frames)
    return root


@pytest.mark.parametrize("kind", FILES)
def test_tracks(tmp_path, kind):
    inner = {"youtube_vis_2019": "ytvis_2019", "youtube_vis_2021": "ytvis_2021", "lvvis": "LVVIS"}
    root = made(
        tmp_path / inner.get(kind, "ovis"), kind, ytvis(["person", "giant_panda"], [RLE, None, POLYGON])
    )
    for place in (root, tmp_path):
        dataset = open_dataset(kind, place, "val")
        assert dataset.names == ("person", "giant panda") and dataset.raw_names == ("person", "giant_panda")
    record = pickle.loads(pickle.dumps(dataset[0]))
    assert (record.id, record.video_id, len(record), record.size) == ("vid", 7, 3, SIZE)
    assert record.annotated and record.labelled == (0, 1, 2)
    (track,) = record.tracks
    assert (track.id, track.category, track.crowd, track.times) == (3, 0, False, (0, 2))
    assert track.mask(1) is None
    assert np.array_equal(track.mask(0), MASK) and np.array_equal(track.mask(2), MASK)
    assert record.semantic(0) is None and record.categories() == {0} and record.categories(1) == frozenset()
    assert pickle.loads(pickle.dumps(record)).tracks[0].mask(0).sum() == 6
    assert check(kind, root, "val") == []


def test_run_lengths_as_a_list(tmp_path):
    root = made(tmp_path, "lvvis", ytvis(["a"], [PLAIN, [], None]))
    (track,) = open_dataset("lvvis", root, "val")[0].tracks
    assert np.array_equal(track.mask(0), MASK) and track.times == (0,)


@pytest.mark.parametrize("kind", ["youtube_vis_2019", "ovis", "lvvis"])
def test_annotations_null_missing_and_empty_differ(tmp_path, kind):
    content = ytvis(["a"], [None] * 3, annotations=None)
    record = open_dataset(kind, made(tmp_path, kind, content), "val")[0]
    assert not record.annotated and record.labelled == () and record.tracks == ()
    del content["annotations"]
    assert not open_dataset(kind, made(tmp_path, kind, content), "val")[0].annotated
    content["annotations"] = []
    record = open_dataset(kind, made(tmp_path, kind, content), "val")[0]
    assert record.annotated and record.labelled == (0, 1, 2) and record.tracks == ()


@pytest.mark.parametrize("prefix", ["vid\\", "JPEGImages\\vid\\", "data/val/vid/", "..\\val/vid\\"])
def test_file_names_keep_their_last_two_parts(tmp_path, prefix):
    content = ytvis(["a"], [RLE, RLE, RLE])
    content["videos"][0]["file_names"] = [f"{prefix}{t:05d}.jpg" for t in range(3)]
    root = made(tmp_path, "lvvis", content)
    assert open_dataset("lvvis", root, "val")[0].frame(2).shape == (*SIZE, 3)
    content["videos"][0]["file_names"][1] = "00001.jpg"
    with pytest.raises(UserError, match=r"val_instances\.json: file name '00001\.jpg': expected VIDEO/FRAME"):
        open_dataset("lvvis", made(tmp_path, "lvvis", content), "val")


def test_areas_as_strings_and_no_boxes(tmp_path):
    content = ytvis(["a"], [RLE, None, RLE])
    content["annotations"][0]["areas"] = ["6", None, 6]
    root = made(tmp_path, "lvvis", content)
    assert open_dataset("lvvis", root, "val")[0].tracks[0].times == (0, 2)


def test_misspelt_names_are_mended_and_kept(tmp_path):
    root = made(tmp_path, "ovis", ytvis(["Person", "Giant_panda", "Vehical"], [None] * 3))
    dataset = open_dataset("ovis", root, "valid")
    assert dataset.names == ("person", "giant panda", "vehicle")
    assert dataset.raw_names == ("Person", "Giant_panda", "Vehical")


def test_lvvis_partitions(tmp_path):
    categories = [{"id": k + 1, "name": f"c{k}", "partition": k} for k in range(4)]
    dataset = open_dataset(
        "lvvis", made(tmp_path, "lvvis", ytvis([], [None] * 3, categories=categories)), "val"
    )
    assert dataset.base == {0, 1} and dataset.novel == {2, 3}
    categories = [{"id": k + 1, "name": f"c{k}"} for k in range(1212)]
    with pytest.raises(UserError, match="1212 categories, as LV-VIS was first announced"):
        open_dataset("lvvis", made(tmp_path, "lvvis", ytvis([], [None] * 3, categories=categories)), "val")


def test_ovis_in_its_other_place(tmp_path):
    write_json(tmp_path / "annotation_valid.json", ytvis(["a"], [RLE]))
    ytvis_frames(tmp_path / "valid", 1)
    assert len(open_dataset("ovis", tmp_path, "valid")[0].tracks) == 1
    with pytest.raises(UserError, match=r"no split 'valit' \(nearest: \"valid\"\); there: valid"):
        open_dataset("ovis", tmp_path, "valit")


def fault(content, key, value):
    content["annotations"][0][key] = value


WRONG = {
    "category": (
        lambda c: fault(c, "category_id", 9),
        "video vid: .*valid.json: annotation 3 has category_id 9, which its categories do not list",
    ),
    "video": (lambda c: fault(c, "video_id", 8), "video 8: .*annotation 3 belongs to no video of the JSON"),
    "count": (
        lambda c: fault(c, "segmentations", [RLE]),
        "video vid: .*annotation 3 has 1 segmentations, but the video has 3 frames",
    ),
    "length": (lambda c: c["videos"][0].update(length=4), "video vid: .*length 4, but 3 file_names"),
    "missing key": (lambda c: c["videos"][0].pop("width"), "not a YouTube-VIS JSON .*'width'"),
    "no categories": (lambda c: c.pop("categories"), "no usable categories .*'categories'"),
    "category twice": (lambda c: c["categories"].append(c["categories"][0]), "id of their own each, found 2"),
    "lost video": (
        lambda c: c["videos"].append({**c["videos"][0], "id": 9, "file_names": ["gone/0.jpg"] * 3}),
        "video gone: named in .*valid.json, but not in .*JPEGImages",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_faults_of_the_json_are_refused_at_once(tmp_path, case):
    damage, expected = WRONG[case]
    content = ytvis(["a"], [RLE, None, RLE])
    damage(content)
    root = made(tmp_path, "youtube_vis_2019", content)
    with pytest.raises(UserError, match=expected) as caught:
        open_dataset("youtube_vis_2019", root, "valid")
    assert "\n" not in str(caught.value)
    assert check("youtube_vis_2019", root, "valid") == [str(caught.value)]


def test_check_lists_all_faults_of_json_masks_and_frames(tmp_path):
    wrong_size = {**RLE, "size": [6, 4]}
    content = ytvis(["a"], [wrong_size, encode_mask(~np.ones(SIZE, bool)), RLE])
    other = {**content["annotations"][0], "id": 4, "category_id": 5}
    content["annotations"] += [other, {**other, "id": 5, "category_id": 1, "segmentations": []}]
    root = made(tmp_path, "ovis", content, frames=2)
    frame(root / "valid/vid/00000.jpg", (5, 5))
    lines = check("ovis", root, "valid")
    source = root / "annotations/annotations_valid.json"
    assert lines == [
        f"video vid: {source}: annotation 4 has category_id 5, which its categories do not list",
        f"video vid: {source}: annotation 5 has 0 segmentations, but the video has 3 frames",
        f"video vid: {root}/valid/vid/00000.jpg: 5x5 pixels, but its annotation states 6x4",
        f"video vid, frame 2: {root}/valid/vid/00002.jpg: image not found",
        f"video vid, frame 0: {source}: the mask of track 3 is an RLE of 4x6 pixels, but its video has 6x4",
        "video vid: the mask of track 3 in frame 1 is empty",
    ]
    with pytest.raises(UserError, match=r"annotation 4 has .*\(and 1 more: vlkd data check lists all\)"):
        open_dataset("ovis", root, "valid")


def burst(root, change=None):
    counts = RLE["counts"]
    sequence = {
        "id": 12,
        "seq_name": "clip-1",
        "dataset": "YFCC100M",
        "fps": 30,
        "width": SIZE[1],
        "height": SIZE[0],
        "all_image_paths": [f"frame{t:04d}.jpg" for t in range(5)],
        "annotated_image_paths": ["frame0001.jpg", "frame0004.jpg"],
        "neg_category_ids": [805],
        "not_exhaustive_category_ids": [4],
        "track_category_ids": {"1": 4, "2": 805, "9": 4},
        "segmentations": [
            {"1": {"rle": counts, "is_gt": True, "score": 1.0}},
            {
                "1": {"rle": counts, "is_gt": True, "score": 1.0},
                "2": {"rle": counts, "is_gt": False, "score": 0.5, "bbox": [0, 0, 1, 1]},
            },
        ],
    }
    content = {
        "sequences": [sequence],
        "categories": [{"id": 4, "name": "air_conditioner"}, {"id": 805, "name": "person"}],
        "split": "val",
    }
    if change:
        change(sequence)
    write_json(root / "annotations/val/all_classes.json", content)
    for name in sequence["all_image_paths"]:
        frame(root / "images/val/YFCC100M/clip-1" / name.rpartition("/")[2])
    return root


def test_burst(tmp_path):
    root = burst(tmp_path)
    dataset = open_dataset("burst", root, "val")
    assert dataset.names == ("air conditioner", "person") and dataset.vocabulary.ids == (4, 805)
    (record,) = dataset
    assert (record.id, record.video_id, record.fps, len(record)) == ("YFCC100M/clip-1", 12, 30.0, 5)
    assert record.labelled == (1, 4) and record.negative == {1} and record.not_exhaustive == {0}
    assert [(t.id, t.category, t.times) for t in record.tracks] == [(1, 0, (1, 4)), (2, 1, (4,))]
    assert np.array_equal(record.tracks[1].mask(4), MASK) and record.tracks[0].mask(0) is None
    assert check("burst", root, "val") == []


def test_burst_common_classes_and_withheld_labels(tmp_path):
    root = burst(tmp_path, lambda s: s.pop("segmentations"))
    record = open_dataset("burst", root, "val", "all")[0]
    assert not record.annotated and record.labelled == ()
    content = json.loads((root / "annotations/val/all_classes.json").read_text())
    content["categories"].pop(0)
    content["sequences"][0] |= {"track_category_ids": {}, "segmentations": [{}, {}]}
    write_json(root / "annotations/val/common_classes.json", content)
    assert open_dataset("burst", root, "val", "common").names == ("person",)
    with pytest.raises(UserError, match=r"uncommon_classes\.json: annotation file not found"):
        open_dataset("burst", root, "val", "uncommon")
    with pytest.raises(UserError, match=r"no split 'vla'.*there: val"):
        open_dataset("burst", root, "vla")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s["segmentations"].pop(), "1 segmentations, but 2 annotated frames"),
        (lambda s: s["segmentations"][0].update({"5": {"rle": "x"}}), "track 5 in frame frame0001.jpg is"),
        (lambda s: s["track_category_ids"].update({"9": 77}), "category_id 77, which is in no category"),
        (lambda s: s.update(annotated_image_paths=["frame0001.jpg", "x.jpg"]), "x.jpg is not among"),
    ],
)  # fmt: skip
def test_burst_faults(tmp_path, change, expected):
    root = burst(tmp_path, change)
    with pytest.raises(UserError, match=f"video YFCC100M/clip-1: .*all_classes.json: .*{expected}") as caught:
        open_dataset("burst", root, "val")
    assert check("burst", root, "val") == [str(caught.value)]


def test_burst_paths_and_shape(tmp_path):
    def windows(sequence):
        for key in ("all_image_paths", "annotated_image_paths"):
            sequence[key] = [f"val\\YFCC100M\\clip-1\\{name}" for name in sequence[key]]

    root = burst(tmp_path, windows)
    for path in (root / "images/val/YFCC100M/clip-1").iterdir():
        path.rename(path.with_name(path.name.rpartition("\\")[2]))
    assert open_dataset("burst", root, "val")[0].frame(4).shape == (*SIZE, 3)
    with pytest.raises(UserError, match=r"not a BURST JSON \(missing or wrong entry 'height'\)"):
        open_dataset("burst", burst(tmp_path, lambda s: s.pop("height")), "val")
