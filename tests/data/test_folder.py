from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlkd.data import FolderSegmentation, check_dataset, open_segmentation
from vlkd.data.layouts import CITYSCAPES_LABEL_IDS, KINDS
from vlkd.errors import UserError

NAMES = ["car", "tree", "road"]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)


def labels(values, size=(4, 6)):
    return np.resize(np.array(values), size).astype(np.uint8)


def pair(root, image, label, values, size=(4, 6)):
    save(root / image, np.full((*size, 3), 90, np.uint8))
    save(root / label, labels(values, size))


@pytest.fixture
def folder(tmp_path):
    for i, values in enumerate([[0, 1, 255], [2]]):
        pair(tmp_path, f"images/a{i}.jpg", f"labels/a{i}.png", values)
    return tmp_path


def test_segments_are_classes(folder):
    dataset = FolderSegmentation(folder / "images", folder / "labels", NAMES, [True, False, False])
    assert len(dataset) == 2 and dataset.names == tuple(NAMES)
    sample = dataset[0]
    assert sample.id == "a0" and sample.image.shape == (4, 6, 3) and sample.image.dtype == np.uint8
    assert [(s.id, s.category, s.isthing) for s in sample.info] == [(1, 0, True), (2, 1, False)]
    assert sample.segments.dtype == np.int32
    assert np.array_equal(sample.semantic(), labels([0, 1, 255]))
    assert dataset.categories(1) == {2} and dataset[-1].id == "a1" and len(list(dataset)) == 2
    assert check_dataset(dataset) == [] and dataset.missing() == []
    with pytest.raises(IndexError):
        dataset[2]


def test_label_values_are_translated(folder):
    def semantic(**options):
        dataset = FolderSegmentation(folder / "images", folder / "labels", NAMES, **options)
        return dataset[0].semantic()[0, :3].tolist()

    assert semantic(reduce_zero_label=True) == [255, 0, 255]
    assert semantic(label_map={0: 2, 1: -1}) == [2, 255, 255]
    assert semantic(ignore=1, label_map={0: 0, 255: 1}) == [0, 255, 1]


def test_palette_png_gives_indices(folder):
    image = Image.fromarray(labels([2, 1])).convert("P")
    image.putdata([2, 1] * 12)
    image.save(folder / "labels" / "a0.png")
    dataset = FolderSegmentation(folder / "images", folder / "labels", NAMES)
    assert dataset[0].semantic()[0, :2].tolist() == [2, 1]


def test_names_from_file_and_packaged_list(folder):
    (folder / "names.txt").write_text("\ncar\ntree\n\nroad")
    dataset = FolderSegmentation(folder / "images", folder / "labels", folder / "names.txt")
    assert dataset.names == tuple(NAMES)
    assert len(FolderSegmentation(folder / "images", folder / "labels", "cityscapes_19").names) == 19


def damage_missing_mask(root):
    (root / "labels/a1.png").unlink()
    return "labels/a1.png: label file not found"


def damage_size(root):
    save(root / "labels/a1.png", labels([0], (4, 5)))
    return "labels/a1.png: 5x4 pixels, but its image"


def damage_value(root):
    save(root / "labels/a1.png", labels([0, 200, 201]))
    return "labels/a1.png: label value 200, 201 has no class"


def damage_truncated_image(root):
    path = root / "images/a1.jpg"
    save(path, np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:1500])
    save(root / "labels/a1.png", labels([0], (64, 64)))
    return "images/a1.jpg: image cannot be read .*truncated"


def damage_truncated_label(root):
    path = root / "labels/a1.png"
    save(path, np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:200])
    return "labels/a1.png: label file cannot be read"


def damage_not_an_image(root):
    (root / "images/a1.jpg").write_text("hello")
    return "images/a1.jpg: image cannot be read .not an image"


def damage_colour_label(root):
    save(root / "labels/a1.png", np.zeros((4, 6, 3), np.uint8))
    return "labels/a1.png: a label file needs one channel"


@pytest.mark.parametrize("damage", [f for name, f in list(globals().items()) if name.startswith("damage_")])
def test_damage_is_one_line_naming_the_file(folder, damage):
    expected = damage(folder)
    dataset = FolderSegmentation(folder / "images", folder / "labels", NAMES)
    with pytest.raises(UserError, match=expected) as caught:
        dataset[1]
    assert "\n" not in str(caught.value)
    assert check_dataset(dataset) == [str(caught.value)]


def test_check_finds_every_problem(folder):
    damage_value(folder)
    (folder / "images/a1.jpg").write_text("hello")
    (folder / "labels/a0.png").unlink()
    dataset = FolderSegmentation(folder / "images", folder / "labels", NAMES)
    problems = check_dataset(dataset)
    assert [p.split(": ")[0].split("/")[-1] for p in problems] == ["a0.png", "a1.jpg", "a1.png"]
    assert len(dataset.missing()) == 1 and "labels/a0.png: not found" in dataset.missing()[0]


def test_wrong_arguments(folder):
    images, masks = folder / "images", folder / "labels"
    with pytest.raises(UserError, match="no such folder"):
        FolderSegmentation(folder / "image", masks, NAMES)
    with pytest.raises(UserError, match="more than once: car"):
        FolderSegmentation(images, masks, ["car", "car"])
    with pytest.raises(UserError, match="cityscapes_19"):
        FolderSegmentation(images, masks, "cityscape_19")
    with pytest.raises(UserError, match=r"names\.txt: file of class names not found"):
        FolderSegmentation(images, masks, folder / "names.txt")
    with pytest.raises(UserError, match="isthing"):
        FolderSegmentation(images, masks, NAMES, [True])
    with pytest.raises(UserError, match="label_map points to class 3"):
        FolderSegmentation(images, masks, NAMES, label_map={0: 3})
    with pytest.raises(UserError, match="no image files whose names end in '_left'"):
        FolderSegmentation(images, masks, NAMES, image_tail="_left")
    save(images / "a0.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match="same name"):
        FolderSegmentation(images, masks, NAMES)


def test_unknown_kind_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r'nearest: "cityscapes"'):
        open_segmentation("cityscape", tmp_path, "train")
    with pytest.raises(UserError, match="no such folder; expected a camvid data set"):
        open_segmentation("camvid", tmp_path / "x", "train")
    with pytest.raises(UserError, match="ignore: for data of kind folder only"):
        open_segmentation("camvid", tmp_path, "train", ignore=3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "coco_panoptic"])
def test_layouts(tmp_path, kind):
    raw, expected, name = {
        "folder": ([0, 2, 255], [0, 2, 255], "car"),
        "coco_stuff": ([0, 91, 181, 255, 12], [0, 80, 170, 255, 11], "person"),
        "ade20k": ([0, 1, 150], [255, 0, 149], "wall"),
        "pascal_context": ([0, 1, 59], [255, 0, 58], "aeroplane"),
        "cityscapes": ([0, 7, 33, 29, 11], [255, 0, 18, 255, 2], "road"),
        "camvid": ([0, 10, 11], [0, 10, 255], "sky"),
    }[kind]
    image, label = {
        "folder": ("images/train/x.jpg", "labels/train/x.png"),
        "coco_stuff": ("train2017/x.jpg", "stuffthingmaps/train2017/x.png"),
        "ade20k": (
            "ADEChallengeData2016/images/training/x.jpg",
            "ADEChallengeData2016/annotations/training/x.png",
        ),
        "pascal_context": ("VOC2010/JPEGImages/x.jpg", "VOC2010/SegmentationClassContext/x.png"),
        "cityscapes": ("leftImg8bit/train/aa/x_leftImg8bit.png", "gtFine/train/aa/x_gtFine_labelIds.png"),
        "camvid": ("images/train/x.jpg", "labels/train/x.png"),
    }[kind]
    pair(tmp_path, image, label, raw, (1, len(raw)))
    (tmp_path / "names.txt").write_text("car\ntree\nroad")
    lists = tmp_path / "VOC2010" / "ImageSets" / "SegmentationContext"
    if kind == "pascal_context":
        with pytest.raises(UserError, match=r"train\.txt: list of samples not found"):
            open_segmentation(kind, tmp_path, "train")
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("x\n")
    dataset = open_segmentation(kind, tmp_path, "train")
    assert dataset[0].semantic()[0].tolist() == expected
    assert dataset.names[0] == name and dataset.missing() == []
    if kind == "pascal_context":
        (lists / "val.txt").write_text("x\ngone\n")
        assert len(open_segmentation(kind, tmp_path, "val").missing()) == 2
    else:
        with pytest.raises(UserError, match="no such folder"):
            open_segmentation(kind, tmp_path, "val")


def test_cityscapes_ids_and_things():
    assert len(CITYSCAPES_LABEL_IDS) == 19 and len(set(CITYSCAPES_LABEL_IDS)) == 19
