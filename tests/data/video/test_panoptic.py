"""VIPSeg after its 720P conversion."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from toy_videos import SIZE, VIPSEG_CATEGORIES, frame, save, vipseg_720p, write_json

from vlkd.data.video import check, open_dataset
from vlkd.errors import UserError

# id 70000 is one door through the video, id 5 the wall
FRAMES = [[(5, 0, [0, 1]), (70000, 2, [2])], [(5, 0, [0]), (70000, 2, [2, 3]), (300, 2, [4])]]


def edited(root, change):
    path = root / "panoptic_gt_VIPSeg_val.json"
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)
    return root


def entry(content, t=1):
    return content["annotations"][0]["annotations"][t]


def test_labels(tmp_path):
    root = vipseg_720p(tmp_path, FRAMES)
    dataset = open_dataset("vipseg", root, "val")
    assert dataset.names == ("wall", "ceiling", "door") and dataset.isthing == (False, False, True)
    record = pickle.loads(pickle.dumps(dataset[0]))
    assert (record.id, len(record), record.size, record.labelled) == ("a", 2, SIZE, (0, 1))
    ids, categories = record.panoptic(1)
    assert ids[0].tolist() == [5, 0, 70000, 70000, 300, 0] and categories == {5: 0, 70000: 2, 300: 2}
    assert record.semantic(1)[0].tolist() == [0, 255, 2, 2, 2, 255]
    assert [(t.id, t.category, t.times) for t in record.tracks] == [(300, 2, (1,)), (70000, 2, (0, 1))]
    assert record.tracks[1].mask(1).sum() == 2 and record.tracks[0].mask(0) is None
    assert record.categories() == {0, 2} and check("vipseg", root, "val") == []


def test_an_id_keeps_its_class(tmp_path):
    root = vipseg_720p(tmp_path, [[(5, 0, [0])], [(5, 2, [0])]])
    expected = 'video a, frame 1: id 5 is "door", but "wall" in an earlier frame'
    with pytest.raises(UserError, match=expected) as caught:
        open_dataset("vipseg", root, "val")[0].tracks  # noqa: B018
    assert check("vipseg", root, "val") == [str(caught.value)]


def test_id_that_the_json_lacks(tmp_path):
    root = edited(vipseg_720p(tmp_path, FRAMES), lambda c: entry(c)["segments_info"].pop(1))
    expected = r"video a, frame 1: .*00000001\.png: segment id 70000 is not listed in .*VIPSeg_val\.json"
    with pytest.raises(UserError, match=expected) as caught:
        open_dataset("vipseg", root, "val")[0].panoptic(1)
    assert check("vipseg", root, "val") == [str(caught.value)]


def test_listed_segment_without_a_pixel_is_left_out(tmp_path):
    root = vipseg_720p(tmp_path, [[(5, 0, [0]), (9, 2, [])]])
    assert open_dataset("vipseg", root, "val")[0].panoptic(0)[1] == {5: 0}
    assert check("vipseg", root, "val") == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: entry(c)["segments_info"][0].update(category_id=8), "video a: .*has category_id 8"),
        (lambda c: entry(c).update(image_id="x"), "video a: .*annotated image x is not among its images"),
        (lambda c: c["videos"].clear(), "video a: .*annotated image 00000000 is not among its images"),
        (lambda c: c["videos"][0]["images"][0].pop("width"), "not a VIPSeg panoptic JSON .*'width'"),
        (lambda c: c["videos"][0].update(images=[]), "not a VIPSeg panoptic JSON"),
    ],
)  # fmt: skip
def test_faults_of_the_json_are_refused_at_once(tmp_path, change, expected):
    root = edited(vipseg_720p(tmp_path, FRAMES), change)
    with pytest.raises(UserError, match=expected) as caught:
        open_dataset("vipseg", root, "val")
    assert "\n" not in str(caught.value) and len(check("vipseg", root, "val")) >= 1


def test_images_and_annotations_that_differ_in_number(tmp_path):
    root = edited(vipseg_720p(tmp_path, FRAMES), lambda c: c["annotations"][0]["annotations"].pop())
    expected = "video a: .*2 images, but 1 annotated ones: 00000001 has no annotation"
    with pytest.raises(UserError, match=expected) as caught:
        open_dataset("vipseg", root, "val")[0].semantic(0)
    assert check("vipseg", root, "val") == [str(caught.value)]


def test_sizes_that_differ(tmp_path):
    root = vipseg_720p(tmp_path, FRAMES)
    frame(root / "images/a/00000000.jpg", (9, 6))
    save(root / "panomasksRGB/a/00000001.png", np.zeros((4, 7, 3), np.uint8))
    record = open_dataset("vipseg", root, "val")[0]
    with pytest.raises(UserError, match="6x9 pixels, but its annotation states 6x4"):
        record.frame(0)
    with pytest.raises(
        UserError, match=r"labels of .*00000001.jpg: 7x4 pixels, but its annotation states 6x4"
    ):
        record.panoptic(1)
    assert len(check("vipseg", root, "val")) == 2


def test_null_annotations_and_whole_file(tmp_path):
    root = edited(vipseg_720p(tmp_path, FRAMES), lambda c: c.update(annotations=None))
    record = open_dataset("vipseg", root, "val")[0]
    assert not record.annotated and record.panoptic(0) is None and record.tracks == ()
    vipseg_720p(root, FRAMES)
    (root / "panoptic_gt_VIPSeg_val.json").rename(root / "panoptic_gt_VIPSeg.json")
    (root / "train.txt").write_text("a")
    assert [r.id for r in open_dataset("vipseg", root, "train")] == ["a"]
    (root / "train.txt").write_text("b\na")
    with pytest.raises(UserError, match=r"video b: .*no such video in the JSON"):
        open_dataset("vipseg", root, "train")
    with pytest.raises(UserError, match="no split 'val'; there: train"):
        open_dataset("vipseg", root, "val")


def test_test_split_without_json(tmp_path):
    root = vipseg_720p(tmp_path, FRAMES)
    frame(root / "images/t/00000003.jpg")
    (root / "test.txt").write_text("t")
    write_json(root / "panoVIPSeg_categories.json", VIPSEG_CATEGORIES)
    (record,) = open_dataset("vipseg", root, "test")
    assert not record.annotated and len(record) == 1 and record.panoptic(0) is None
    assert record.names == ("wall", "ceiling", "door")
