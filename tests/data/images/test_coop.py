"""CoOp's layouts: every reader on a small made folder, class halves, few shots, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlkd.data import CoOpData
from vlkd.data.images.coop import COOP_SETS, open_coop, select_classes
from vlkd.errors import UserError
from vlkd.text import class_names

# Data set: folder, images, split file, path of an image of class k, names in the split file, names shown.
JSON_SETS: dict[str, tuple[str, str, str, str, list[str], list[str]]] = {
    "caltech101": (
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        "{name}/image_{k:04d}.jpg",
        ["face", "Leopards", "car_side"],
        ["face", "leopard", "car side"],
    ),
    "oxford_pets": (
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        "{name}_{k}.jpg",
        ["abyssinian", "american_bulldog", "beagle"],
        ["abyssinian", "american bulldog", "beagle"],
    ),
    "stanford_cars": (
        "stanford_cars",
        "",
        "split_zhou_StanfordCars.json",
        "cars_train/{k:05d}.jpg",
        ["2000 AM General Hummer SUV", "Acura RL Sedan 2012", "2012 Acura TL Sedan"],
        ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Acura TL Sedan"],
    ),
    "oxford_flowers": (
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        "image_{k:05d}.jpg",
        ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"],
        ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"],
    ),
    "food101": (
        "food-101",
        "images",
        "split_zhou_Food101.json",
        "{name}/{k}.jpg",
        ["apple_pie", "baby_back_ribs", "baklava"],
        ["apple pie", "baby back ribs", "baklava"],
    ),
    "sun397": (
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        "a/{name}/sun_{k}.jpg",
        ["abbey", "indoor_apse", "airplane_cabin"],
        ["abbey", "indoor apse", "airplane cabin"],
    ),
    "dtd": (
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        "{name}/{name}_{k:04d}.jpg",
        ["banded", "blotchy", "braided"],
        ["banded", "blotchy", "braided"],
    ),
    "eurosat": (
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        "{name}/{name}_{k}.jpg",
        ["Annual Crop Land", "Forest", "SeaLake"],
        ["Annual Crop Land", "Forest", "Sea or Lake"],
    ),
    "ucf101": (
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        "{name}/v_{name}_g{k:02d}_c01.jpg",
        ["Apply_Eye_Makeup", "YoYo", "BabyCrawling"],
        ["Apply Eye Makeup", "Yo Yo", "Baby Crawling"],
    ),
}
COUNTS = {"train": 5, "val": 2, "test": 1}  # of each class
WNIDS = {"n01440764": "tench", "n01443537": "goldfish", "n01484850": "great white shark"}
VARIANTS = {
    "imagenet_sketch": ("imagenet-sketch", "images"),
    "imagenet_a": ("imagenet-adversarial", "imagenet-a"),
    "imagenet_r": ("imagenet-rendition", "imagenet-r"),
}


def save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 7, 3), value, np.uint8)).save(path)


def make_json_set(root: Path, dataset: str) -> Path:
    folder, images, split_file, pattern, names, _ = JSON_SETS[dataset]
    splits: dict[str, list[list[Any]]] = {}
    number = 0
    for split, count in COUNTS.items():
        splits[split] = []
        for k in range(3 * count):
            label = k % 3
            file = pattern.format(name=names[label], k=number)
            save(root / folder / images / file, 10 * label)
            splits[split].append([file, label, names[label]])
            number += 1
    path = root / folder / split_file
    path.write_text(json.dumps(splits))
    return path


def make_imagenet(root: Path) -> None:
    for label, wnid in enumerate(WNIDS):
        for k in range(2):
            save(root / f"imagenet/images/train/{wnid}/{wnid}_{k}.JPEG", 10 * label)
        save(root / f"imagenet/images/val/{wnid}/ILSVRC2012_val_{label:08d}.JPEG", 10 * label)
    write_names(root / "imagenet")


def write_names(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in WNIDS.items()))


def change(path: Path, split: str, number: int, item: Any) -> None:
    stored = json.loads(path.read_text())
    stored[split][number] = item
    path.write_text(json.dumps(stored))


# --- readers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", JSON_SETS)
def test_sets_with_a_split_file(dataset: str, tmp_path: Path) -> None:
    make_json_set(tmp_path, dataset)
    for split, count in COUNTS.items():
        data = open_coop(tmp_path, dataset, split)
        assert list(data.names) == JSON_SETS[dataset][5]
        assert data.labels.tolist() == [0, 1, 2] * count and len(data) == 3 * count
        shades = [int(data.image(k).mean().round()) for k in range(3)]
        assert shades == [0, 10, 20]


def test_a_leading_slash_in_the_split_file_stays_below_the_images(tmp_path: Path) -> None:
    path = make_json_set(tmp_path, "sun397")
    file, label, name = json.loads(path.read_text())["test"][1]
    change(path, "test", 1, ["/" + file, label, name])
    assert open_coop(tmp_path, "sun397", "test").image(1).shape == (6, 7, 3)


def test_aircraft_reads_its_variant_lists(tmp_path: Path) -> None:
    base = tmp_path / "fgvc_aircraft"
    base.mkdir()
    (base / "variants.txt").write_text("707-320\n727-200\nF/A-18\nDash 8\n")
    lines = {
        "train": "0000001 Dash 8\n0000002 707-320\n",
        "val": "0000003 F/A-18\n",
        "test": "0000004 727-200\n",
    }
    for split, text in lines.items():
        (base / f"images_variant_{split}.txt").write_text(text)
    for k in range(1, 5):
        save(base / f"images/{k:07d}.jpg", k)
    train = open_coop(tmp_path, "fgvc_aircraft", "train")
    assert train.names == ("707-320", "727-200", "F/A-18", "Dash 8") and train.labels.tolist() == [3, 0]
    assert int(train.image(1)[0, 0, 0]) == 2
    assert open_coop(tmp_path, "fgvc_aircraft", "val").labels.tolist() == [2]
    assert open_coop(tmp_path, "fgvc_aircraft", "test").labels.tolist() == [1]
    (base / "images_variant_test.txt").write_text("0000004 727-300\n")
    with pytest.raises(UserError, match=r'test\.txt:1: variant "727-300" .*nearest: "727-200"'):
        open_coop(tmp_path, "fgvc_aircraft", "test")
    (base / "images_variant_test.txt").write_text("0000009 727-200\n")
    with pytest.raises(UserError, match=r"1 of its images not found, first .*0000009\.jpg"):
        open_coop(tmp_path, "fgvc_aircraft", "test")


def test_imagenet_classes_of_one_name_take_the_packaged_names(tmp_path: Path) -> None:
    """CoOp's list has "sunglasses" and "missile" twice; class vectors need names that differ."""
    make_imagenet(tmp_path)
    packaged = class_names("imagenet_1000")
    wnids = [*WNIDS, *(f"n1{k:07d}" for k in range(997))]
    shown = {wnid: packaged[k] for k, wnid in enumerate(wnids)}
    shown[wnids[1]] = shown[wnids[2]] = "sunglasses, dark"
    path = tmp_path / "imagenet" / "classnames.txt"
    path.write_text("".join(f"{wnid} {shown[wnid]}\n" for wnid in reversed(wnids)))
    assert open_coop(tmp_path, "imagenet", "test").names == tuple(packaged[:3])
    path.write_text("".join(f"{wnid} fish\n" for wnid in WNIDS))
    with pytest.raises(UserError, match=r'classnames.txt: two classes are named "fish"'):
        open_coop(tmp_path, "imagenet", "test")


def test_imagenet_tests_on_its_validation_images(tmp_path: Path) -> None:
    make_imagenet(tmp_path)
    train, test = (open_coop(tmp_path, "imagenet", split) for split in ("train", "test"))
    assert train.names == test.names == ("tench", "goldfish", "great white shark")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and test.labels.tolist() == [0, 1, 2]
    assert "ILSVRC2012_val_00000002" in test.files[2]
    with pytest.raises(UserError, match=r"imagenet has no val split.*val_split=test"):
        open_coop(tmp_path, "imagenet", "val")
    save(tmp_path / "imagenet/images/train/n09999999/a.JPEG")
    with pytest.raises(UserError, match=r"n09999999: no name for this class in .*classnames\.txt"):
        open_coop(tmp_path, "imagenet", "train")


@pytest.mark.parametrize("dataset", VARIANTS)
def test_variants_name_the_classes_that_they_have(dataset: str, tmp_path: Path) -> None:
    folder, images = VARIANTS[dataset]
    write_names(tmp_path / folder)
    for wnid, value in (("n01443537", 30), ("n01484850", 60)):
        save(tmp_path / folder / images / wnid / "x.jpg", value)
    (tmp_path / folder / images / "README.txt").write_text("no class")
    test = open_coop(tmp_path, dataset, "test")
    assert test.names == ("goldfish", "great white shark") and test.labels.tolist() == [0, 1]
    assert int(test.image(1).mean().round()) == 60
    assert open_coop(tmp_path, dataset, "train").fingerprint() == test.fingerprint()


def test_v2_folders_are_numbers_not_words(tmp_path: Path) -> None:
    base = tmp_path / "imagenetv2"
    base.mkdir()
    (base / "classnames.txt").write_text("".join(f"n{k:08d} name_{k}\n" for k in range(12)))
    for k in (0, 2, 10, 11):
        save(base / f"imagenetv2-matched-frequency-format-val/{k}/x.jpeg", 20 * k)
    data = open_coop(tmp_path, "imagenetv2", "test")
    assert len(data.names) == 12 and data.names[10] == "name 10"
    assert sorted(data.labels.tolist()) == [0, 2, 10, 11]
    for k, label in enumerate(data.labels.tolist()):
        assert abs(int(data.image(k).mean().round()) - 20 * label) <= 1
    save(base / "imagenetv2-matched-frequency-format-val/12/x.jpeg")
    with pytest.raises(UserError, match=r"12: label out of range; expected 0 to 11"):
        open_coop(tmp_path, "imagenetv2", "test")


def test_every_set_has_a_reader_here() -> None:
    assert {*JSON_SETS, *VARIANTS, "fgvc_aircraft", "imagenet", "imagenetv2"} == set(COOP_SETS)
    assert len(COOP_SETS) == 15


# --- parts -------------------------------------------------------------------------------------------------


def test_select_classes(tmp_path: Path) -> None:
    make_json_set(tmp_path, "dtd")
    data = open_coop(tmp_path, "dtd", "test")
    base, novel = select_classes(data, "base"), select_classes(data, "novel")
    assert base.names == ("banded", "blotchy") and base.labels.tolist() == [0, 1]
    assert novel.names == ("braided",) and novel.labels.tolist() == [0]
    assert int(novel.image(0).mean().round()) == 20
    kept = select_classes(data, "novel", relabel=False)
    assert kept.names == data.names and kept.labels.tolist() == [2]


# --- the module --------------------------------------------------------------------------------------------


def module(root: Path, **options: Any) -> CoOpData:
    data = CoOpData(str(root), "dtd", **{"batch_size": 2, "image_size": 8, "num_workers": 0, **options})
    data.setup()
    return data


def test_module_trains_on_all_and_scores_a_half(tmp_path: Path) -> None:
    make_json_set(tmp_path, "dtd")
    data = module(tmp_path, val_classes="novel")
    assert data.names == ("banded", "blotchy", "braided") and data.class_counts.tolist() == [5, 5, 5]
    batch = next(iter(data.val_dataloader()))
    assert batch["labels"].tolist() == [2] and batch["images"].shape == (1, 3, 8, 8)
    assert len(list(data.train_dataloader())) == 7


def test_module_shots_and_splits(tmp_path: Path) -> None:
    make_json_set(tmp_path, "dtd")
    data = module(tmp_path, shots=1, classes="base", relabel=True, val_split="val")
    assert data.names == ("banded", "blotchy") and data.class_counts.tolist() == [1, 1]
    assert data.val_dataset is not None and sorted(data.val_dataset.labels.tolist()) == [0, 1]
    many = module(tmp_path, shots=16)
    assert many.class_counts.tolist() == [5, 5, 5]
    assert many.val_dataset is not None and len(many.val_dataset) == 3
    chosen = {module(tmp_path, shots=2, shots_seed=seed).train_fingerprint() for seed in (0, 0, 1)}
    assert len(chosen) == 2
    # The halves of a few-shot set are those of the whole few-shot set.
    half = module(tmp_path, shots=2, classes="novel").build("train")
    assert set(half.files) < set(module(tmp_path, shots=2).build("train").files)


def test_the_second_half_is_novel_whatever_is_trained_on(tmp_path: Path) -> None:
    make_json_set(tmp_path, "dtd")
    assert module(tmp_path).novel == frozenset()
    for options in ({}, {"shots": 1, "classes": "base"}, {"val_classes": "novel"}):
        assert module(tmp_path, novel_half=True, **options).novel == {2}
    few = module(tmp_path, novel_half=True, shots=2, classes="base", val_classes="all")
    assert few.class_counts.tolist() == [2, 2, 0] and len(few.names) == 3
    assert few.val_dataset is not None and few.val_dataset.labels.tolist() == [0, 1, 2]


def test_a_variant_trains_on_its_test_images(tmp_path: Path) -> None:
    folder, images = VARIANTS["imagenet_r"]
    write_names(tmp_path / folder)
    for k, wnid in enumerate(WNIDS):
        save(tmp_path / folder / images / wnid / "x.jpg", 50 * k)
    options = {"classes": "all", "val_split": "test", "image_size": 8, "num_workers": 0, "batch_size": 3}
    data = CoOpData(str(tmp_path), "imagenet_r", **options)  # type: ignore[arg-type]
    data.setup()
    assert data.names == tuple(WNIDS.values()) and data.novel == frozenset()
    assert data.train_dataset is not None and data.val_dataset is not None
    assert data.train_dataset.fingerprint() == data.val_dataset.fingerprint()
    assert next(iter(data.train_dataloader()))["images"].shape == (3, 3, 8, 8)
    assert next(iter(data.val_dataloader()))["labels"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "new"}, r"data\.classes=new: expected one of all, base, novel"),
        ({"val_classes": "new"}, r"data\.val_classes=new"),
        ({"classes": "base", "val_classes": "novel", "relabel": True}, r"data\.relabel: classes=base"),
        ({"val_split": "train"}, r"data\.val_split=train: expected val or test"),
        ({"shots": 0}, r"data\.shots=0: expected at least 1"),
        ({"novel_half": True, "relabel": True}, r"data\.novel_half: relabel names a half"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        CoOpData(str(tmp_path), "dtd", **options)


# --- faults ------------------------------------------------------------------------------------------------


def test_unknown_sets_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'data\.dataset=oxford_pet: unknown \(nearest: "oxford_pets"\)'):
        open_coop(tmp_path, "oxford_pet", "train")
    with pytest.raises(UserError, match=r"dtd: no such folder; expected the data set dtd"):
        open_coop(tmp_path, "dtd", "train")
    path = make_json_set(tmp_path, "dtd")
    with pytest.raises(UserError, match=r"split tset: unknown"):
        open_coop(tmp_path, "dtd", "tset")
    (tmp_path / "dtd/images/banded/banded_0000.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of its images not found, first .*banded_0000\.jpg"):
        open_coop(tmp_path, "dtd", "test")
    path.unlink()
    with pytest.raises(UserError, match=r"split_zhou_DescribableTextures\.json: not found; datasets/README"):
        open_coop(tmp_path, "dtd", "train")


@pytest.mark.parametrize(
    ("split", "item", "message"),
    [
        ("train", ["banded/x.jpg", "0", "banded"], r"train item 0 is .*expected"),
        ("train", ["banded/x.jpg", 0], r"train item 0 is"),
        ("train", ["banded/banded_0000.jpg", 0, "blotchy"], r'label 0 is "blotchy" and also "banded"'),
        (
            "train",
            ["banded/banded_0000.jpg", 7, "seven"],
            r"labels out of range: 4 classes have labels 0 to 7",
        ),
        ("train", ["banded/banded_0000.jpg", -1, "below"], r"labels out of range: .* -1 to 2"),
        ("test", ["banded/banded_0000.jpg", 3, "new"], r"label 3 has no images in train"),
    ],
)
def test_faults_of_a_split_file(split: str, item: list[Any], message: str, tmp_path: Path) -> None:
    path = make_json_set(tmp_path, "dtd")
    change(path, split, 0, item)
    with pytest.raises(UserError, match=message) as caught:
        open_coop(tmp_path, "dtd", "train")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_split_file_of_another_form(tmp_path: Path) -> None:
    path = make_json_set(tmp_path, "dtd")
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({"train": stored["train"], "test": stored["test"]}))
    with pytest.raises(UserError, match=r'expected \{"train": \[\[PATH, LABEL, NAME\]'):
        open_coop(tmp_path, "dtd", "train")
    path.write_text("{")
    with pytest.raises(UserError, match="no valid JSON"):
        open_coop(tmp_path, "dtd", "train")
    path.write_text(json.dumps({**stored, "train": [["a.jpg", 0, "_"]], "val": [], "test": []}))
    save(tmp_path / "dtd/images/a.jpg")
    with pytest.raises(UserError, match="a class name is empty"):
        open_coop(tmp_path, "dtd", "train")


def test_two_classes_of_one_name(tmp_path: Path) -> None:
    path = make_json_set(tmp_path, "dtd")
    stored = json.loads(path.read_text())
    for split in stored:
        stored[split] = [
            [file, label, "banded_" if label == 2 else name] for file, label, name in stored[split]
        ]
    path.write_text(json.dumps(stored))
    with pytest.raises(
        UserError, match=r'\.json: labels 0 and 2 are both called "banded"; every class'
    ) as caught:
        open_coop(tmp_path, "dtd", "train")
    assert "\n" not in str(caught.value)
    base = tmp_path / "fgvc_aircraft"
    save(base / "images/1.jpg")
    (base / "variants.txt").write_text("Dash 8\n707\nDash_8\n")
    (base / "images_variant_train.txt").write_text("1 707\n")
    with pytest.raises(UserError, match=r'variants\.txt: labels 0 and 2 are both called "Dash 8"'):
        open_coop(tmp_path, "fgvc_aircraft", "train")
