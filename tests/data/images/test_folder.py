"""Class folders, ImageNet's layout and list files: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkd.data.images.folder import open_folder, open_imagenet, open_list
from vlkd.errors import UserError
from vlkd.text import class_names


def save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for k, name in enumerate(
        ("train/cat/b.png", "train/cat/sub/a.PNG", "train/big_dog/1.png", "val/cat/2.png")
    ):
        save(tmp_path / name, 10 * k)
    (tmp_path / "train/cat/note.txt").write_text("no image")
    return tmp_path


def test_class_folders(root: Path) -> None:
    data = open_folder(root, "train")
    assert data.names == ("big dog", "cat") and data.labels.tolist() == [0, 1, 1]
    assert list(data.files) == ["big_dog/1.png", "cat/b.png", "cat/sub/a.PNG"]
    assert data.image(1).shape == (4, 5, 3) and int(data.image(2)[0, 0, 0]) == 10
    val = open_folder(root, "val", ["dog", "puss"])
    assert val.names == ("dog", "puss") and val.labels.tolist() == [1]
    part = data.select(data.labels.new_tensor([2, 0]))
    assert part.labels.tolist() == [1, 0] and np.array_equal(part.image(0), data.image(2))


def test_fingerprint_tells_files_sizes_and_labels(root: Path) -> None:
    known = open_folder(root, "train").fingerprint()
    assert open_folder(root, "train").fingerprint() == known
    save(root / "train/cat/b.png")
    (root / "train/cat/b.png").write_bytes((root / "train/cat/b.png").read_bytes() + b"longer")
    changed = open_folder(root, "train").fingerprint()
    (root / "train/cat/b.png").rename(root / "train/big_dog/b.png")
    assert len({known, changed, open_folder(root, "train").fingerprint()}) == 3


def test_faults_of_class_folders(root: Path) -> None:
    with pytest.raises(UserError, match=r"test: no such folder; expected one folder for each class"):
        open_folder(root, "test")
    with pytest.raises(UserError, match=r"data\.names: 3 names for the 2 class folders"):
        open_folder(root, "train", ["a", "b", "c"])
    save(root / "val/cats/1.png")
    with pytest.raises(UserError, match=r'val/cats: no such class in .*train \(nearest: "cat"\)'):
        open_folder(root, "val")
    (root / "train/empty").mkdir()
    with pytest.raises(UserError, match=r"train/empty: no images in this class folder"):
        open_folder(root, "train")
    (root / "flat").mkdir()
    save(root / "flat/a.png")
    with pytest.raises(UserError, match=r"flat: no class folders"):
        open_folder(root, "flat")


def test_imagenet_names_come_from_the_packaged_list_where_it_fits(tmp_path: Path, root: Path) -> None:
    for wnid in ("n00000002", "n00000001"):
        save(tmp_path / "small/train" / wnid / "x.png")
    assert open_imagenet(tmp_path / "small", "train").names == ("n00000001", "n00000002")
    for k in range(1000):
        (tmp_path / f"full/train/n{k:08d}").mkdir(parents=True)
    save(tmp_path / "full/val/n00000007/x.png")
    data = open_imagenet(tmp_path / "full", "val")
    assert data.names == tuple(class_names("imagenet_1000")) and data.labels.tolist() == [7]
    with pytest.raises(UserError, match=r"train/big_dog: no WordNet id.*data\.kind=folder"):
        open_imagenet(root, "train")


def test_list_files(root: Path) -> None:
    (root / "train.txt").write_text("train/cat/b.png 0\n\ntrain/big_dog/1.png 2\n")
    (root / "other_val.txt").write_text("val/cat/2.png 1\n")
    data = open_list(root, "train")
    assert data.names == ("0", "1", "2") and data.labels.tolist() == [0, 2]
    assert data.image(1).shape == (4, 5, 3)
    for name in ("other_val.txt", str(root / "other_val.txt")):
        assert open_list(root, name).names == ("0", "1", "2")
    assert open_list(root, "train", ["x", "y", "z"]).names == ("x", "y", "z")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png 0\nb.png 2\n", r"val\.txt:2: label 2, expected 0 to 1"),
        ("a.png -1\n", r"val\.txt:1: label -1, expected 0 to 1"),
        ("a.png 0\n\nb.png\n", r"val\.txt:3: 'b\.png'; expected \"PATH LABEL\""),
        ("a.png one\n", r"val\.txt:1: "),
        ("\n", r"val\.txt: names no images"),
    ],
)
def test_faults_of_list_files(root: Path, text: str, message: str) -> None:
    (root / "train.txt").write_text("a.png 1\n")
    (root / "val.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        open_list(root, "val")


def test_a_missing_list(root: Path) -> None:
    with pytest.raises(UserError, match=r"train\.txt: no such list"):
        open_list(root, "train")
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        open_list(root / "nowhere", "train")
