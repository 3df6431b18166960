from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vlkd.data import CocoPanoptic, check_dataset, collate, open_segmentation
from vlkd.errors import UserError

IDS = np.array([[0, 70_000, 70_000], [300, 300, 5]])


def write(root, segments=None, png=IDS, categories=None):
    for folder in ("train2017", "panoptic_train2017", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    colours = np.stack([png % 256, png // 256 % 256, png // 65536], -1).astype(np.uint8)
    Image.fromarray(colours).save(root / "panoptic_train2017" / "000000000009.png")
    Image.fromarray(np.zeros((*png.shape, 3), np.uint8)).save(root / "train2017" / "000000000009.jpg")
    segments = segments or [
        {"id": 70_000, "category_id": 1, "iscrowd": 0, "area": 2},
        {"id": 300, "category_id": 199, "iscrowd": 0, "area": 2},
        {"id": 5, "category_id": 1, "iscrowd": 1, "area": 1},
        {"id": 77, "category_id": 1, "iscrowd": 0, "area": 0},
    ]
    content = {
        "images": [{"id": 9, "file_name": "000000000009.jpg", "height": 2, "width": 3}],
        "annotations": [{"image_id": 9, "file_name": "000000000009.png", "segments_info": segments}],
        "categories": categories
        or [
            {"id": 1, "name": "person", "isthing": 1},
            {"id": 199, "name": "wall-other-merged", "isthing": 0},
        ],
    }
    (root / "annotations" / "panoptic_train2017.json").write_text(json.dumps(content))
    return root


def test_reads_ids_classes_crowds_and_drops_empty_segments(tmp_path):
    dataset = open_segmentation("coco_panoptic", write(tmp_path), "train")
    assert isinstance(dataset, CocoPanoptic)
    assert dataset.names == ("person", "wall") and dataset.isthing == (True, False)
    sample = dataset[0]
    assert sample.id == "000000000009"
    assert np.array_equal(sample.segments, IDS) and sample.segments.dtype == np.int32
    assert [(s.id, s.category, s.crowd) for s in sample.info] == [
        (70_000, 0, False),
        (300, 1, False),
        (5, 0, True),
    ]
    assert sample.semantic().tolist() == [[255, 0, 0], [1, 1, 0]]
    assert check_dataset(dataset) == []
    batch = collate([sample])
    assert batch["targets"][0]["regions"] == ["000000000009/70000", "000000000009/300"]
    assert batch["targets"][0]["masks"].sum((1, 2)).tolist() == [2, 2]


def test_stray_id_and_missing_files(tmp_path):
    dataset = open_segmentation("coco_panoptic", write(tmp_path, png=IDS + (IDS == 0) * 4242), "train")
    with pytest.raises(UserError, match=r"000000000009\.png: segment id 4242 is not listed"):
        dataset[0]
    (tmp_path / "train2017" / "000000000009.jpg").unlink()
    assert len(check_dataset(dataset)) == 2
    assert "000000000009.jpg: not found" in dataset.missing()[0]


def test_broken_annotations(tmp_path):
    write(tmp_path, segments=[{"id": 5, "category_id": 3}])
    with pytest.raises(UserError, match="category_id 3"):
        open_segmentation("coco_panoptic", tmp_path, "train")
    write(tmp_path, categories=[{"id": 1, "name": "person"}])
    with pytest.raises(UserError, match=r"not a COCO panoptic JSON .*isthing"):
        open_segmentation("coco_panoptic", tmp_path, "train")
    path = tmp_path / "annotations" / "panoptic_train2017.json"
    path.write_text("[1")
    with pytest.raises(UserError, match="not a readable JSON"):
        open_segmentation("coco_panoptic", tmp_path, "train")
    path.unlink()
    with pytest.raises(UserError, match="annotation file not found"):
        open_segmentation("coco_panoptic", tmp_path, "train")
    write(tmp_path)
    with pytest.raises(UserError, match="2 categories, but 3 names"):
        open_segmentation("coco_panoptic", tmp_path, "train", ["a", "b", "c"])


def test_grey_png_is_refused(tmp_path):
    write(tmp_path)
    Image.fromarray(IDS.astype(np.uint8)).save(tmp_path / "panoptic_train2017" / "000000000009.png")
    with pytest.raises(UserError, match="holds segment ids as RGB colours"):
        open_segmentation("coco_panoptic", tmp_path, "train")[0]
