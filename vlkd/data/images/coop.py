"""The eleven data sets and four ImageNet variants of prompt learning, in the folder layout of CoOp.

Layouts, class names and the halves of the classes: KaiyangZhou/CoOp@1fbb1a6, DATASETS.md and datasets/.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from vlkd.data.files import need_folder, read_text
from vlkd.data.images.files import FileImages, images_below
from vlkd.data.images.folder import class_folders, open_folder
from vlkd.data.images.module import ClassificationModuleBase, Split
from vlkd.data.images.select import (
    Classes,
    class_indices,
    class_range,
    few_shot_indices,
    need_classes,
    need_shots,
)
from vlkd.errors import UserError
from vlkd.text.names import class_names, nearest_hint

_SPLITS = ("train", "val", "test")
_VAL_SHOTS = 4  # at most, as CoOp
_YEAR_LAST = re.compile(r"(.+) (\d{4})")
_JOINED_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class _Layout:
    folder: str
    images: str
    split: str = ""  # the JSON file, where there is one


_LAYOUTS = {
    "caltech101": _Layout("caltech-101", "101_ObjectCategories", "split_zhou_Caltech101.json"),
    "oxford_pets": _Layout("oxford_pets", "images", "split_zhou_OxfordPets.json"),
    "stanford_cars": _Layout("stanford_cars", "", "split_zhou_StanfordCars.json"),
    "oxford_flowers": _Layout("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json"),
    "food101": _Layout("food-101", "images", "split_zhou_Food101.json"),
    "fgvc_aircraft": _Layout("fgvc_aircraft", "images"),
    "sun397": _Layout("sun397", "SUN397", "split_zhou_SUN397.json"),
    "dtd": _Layout("dtd", "images", "split_zhou_DescribableTextures.json"),
    "eurosat": _Layout("eurosat", "2750", "split_zhou_EuroSAT.json"),
    "ucf101": _Layout("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json"),
    "imagenet": _Layout("imagenet", "images"),
    "imagenetv2": _Layout("imagenetv2", "imagenetv2-matched-frequency-format-val"),
    "imagenet_sketch": _Layout("imagenet-sketch", "images"),
    "imagenet_a": _Layout("imagenet-adversarial", "imagenet-a"),
    "imagenet_r": _Layout("imagenet-rendition", "imagenet-r"),
}
COOP_SETS = tuple(_LAYOUTS)

# CoOp's split files hold the new names already; a split file made from the folders does not.
_RENAMED = {
    "caltech101": {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    },
    "eurosat": {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    },
}


def open_coop(root: str | Path, dataset: str, split: str) -> FileImages:
    """All images of a split ("train", "val", "test") of one of COOP_SETS, below `root`.

    ImageNet's "test" are its validation images. An ImageNet variant has the same images in "train" and
    "test"; of ImageNet-A and -R the classes are the 200 that they have. None of these five has "val".

    Raises UserError for an unknown data set or split, missing files and images, labels without train images,
    classes without a name, and two classes of one name (ImageNet's may have it: CLIP's names repeat some).
    """
    if dataset not in _LAYOUTS:
        raise UserError(
            f"data.dataset={dataset}: unknown{nearest_hint(dataset, COOP_SETS)}; expected one of "
            f"{', '.join(COOP_SETS)}"
        )
    if split not in _SPLITS:
        raise UserError(f"split {split}: unknown; expected one of {', '.join(_SPLITS)}")
    layout = _LAYOUTS[dataset]
    what = f"the data set {dataset} in CoOp's layout"
    base = need_folder(Path(root).expanduser() / layout.folder, what)
    images = need_folder(base / layout.images, f"the images of {dataset}")
    if dataset.startswith("imagenet"):
        return _open_imagenet(dataset, base, images, split)
    if dataset == "fgvc_aircraft":
        return _open_aircraft(base, images, split)
    return _open_json(dataset, base / layout.split, images, split)


# --- the readers -------------------------------------------------------------------------------------------


def _open_json(dataset: str, path: Path, images: Path, split: str) -> FileImages:
    parts = _read_splits(path)
    names: dict[int, str] = {}
    for part in _SPLITS:
        for file, label, name in parts[part]:
            if part != "train" and label not in names:
                raise UserError(f"{path}: {part} image {file}: label {label} has no images in train")
            if names.setdefault(label, name) != name:
                raise UserError(
                    f'{path}: label {label} is "{names[label]}" and also "{name}" ({part} {file})'
                )
    if set(names) != set(range(len(names))):
        raise UserError(
            f"{path}: labels out of range: {len(names)} classes have labels {min(names)} to {max(names)}, "
            f"expected 0 to {len(names) - 1}"
        )
    _need_images(path, images, (file for part in _SPLITS for file, _, _ in parts[part]))
    shown = _distinct([_class_name(dataset, names[label], path) for label in range(len(names))], path)
    labels = torch.tensor([label for _, label, _ in parts[split]], dtype=torch.long)
    return FileImages(images, [file for file, _, _ in parts[split]], labels, shown)


def _read_splits(path: Path) -> dict[str, list[tuple[str, int, str]]]:
    try:
        stored = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: no valid JSON ({error}); download it again") from None
    expected = f'expected {{"{_SPLITS[0]}": [[PATH, LABEL, NAME], ...], "val": ..., "test": ...}}'
    if not isinstance(stored, dict) or not all(isinstance(stored.get(part), list) for part in _SPLITS):
        raise UserError(f"{path}: {expected}")
    if not stored["train"]:
        raise UserError(f"{path}: train names no images")
    for part in _SPLITS:
        for number, item in enumerate(stored[part]):
            if not (isinstance(item, list) and [type(value) for value in item] == [str, int, str]):
                raise UserError(f"{path}: {part} item {number} is {str(item)[:60]}; {expected}")
    return {part: [(f.lstrip("/"), label, name) for f, label, name in stored[part]] for part in _SPLITS}


def _open_aircraft(base: Path, images: Path, split: str) -> FileImages:
    raw = [line.strip() for line in _text(base / "variants.txt").splitlines() if line.strip()]
    label_of = {name: label for label, name in enumerate(raw)}
    path = base / f"images_variant_{split}.txt"
    files: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        image, _, name = line.strip().partition(" ")
        if not image:
            continue
        if name not in label_of:
            hint = nearest_hint(name, raw)
            raise UserError(f'{path}:{number}: variant "{name}" is not in variants.txt{hint}')
        files.append(f"{image}.jpg")
        labels.append(label_of[name])
    if not files:
        raise UserError(f'{path}: names no images; expected lines "IMAGE VARIANT"')
    _need_images(path, images, files)
    variants = base / "variants.txt"
    shown = _distinct([_class_name("fgvc_aircraft", name, variants) for name in raw], variants)
    return FileImages(images, files, torch.tensor(labels), shown)


def _open_imagenet(dataset: str, base: Path, images: Path, split: str) -> FileImages:
    if split == "val":
        raise UserError(f"{dataset} has no val split in CoOp's layout; set data.val_split=test")
    path = base / "classnames.txt"
    lines = (line.strip().partition(" ") for line in _text(path).splitlines() if line.strip())
    names = _told_apart({wnid: _class_name(dataset, name, path) for wnid, _, name in lines}, path)
    if dataset == "imagenetv2":
        return _open_numbered(images, tuple(names[wnid] for wnid in sorted(names)), path)
    folder = "train" if dataset == "imagenet" else images.name
    place = images if dataset == "imagenet" else base
    classes = class_folders(place / folder)
    unnamed = [wnid for wnid in classes if wnid not in names]
    if unnamed:
        raise UserError(f"{place / folder / unnamed[0]}: no name for this class in {path}")
    part = "val" if dataset == "imagenet" and split == "test" else folder
    return open_folder(place, part, [names[wnid] for wnid in classes], folder)


def _told_apart(names: dict[str, str], path: Path) -> dict[str, str]:
    """The names by WordNet id; where two are the same, as in CoOp's list, those of the packaged list."""
    counts = Counter(names.values())
    twice = [wnid for wnid in names if counts[names[wnid]] > 1]
    if not twice:
        return names
    packaged = class_names("imagenet_1000")
    if len(names) != len(packaged):
        raise UserError(f'{path}: two classes are named "{names[twice[0]]}"; give each a name of its own')
    order = {wnid: k for k, wnid in enumerate(sorted(names))}
    return names | {wnid: packaged[order[wnid]] for wnid in twice}


def _open_numbered(images: Path, names: tuple[str, ...], path: Path) -> FileImages:
    """ImageNetV2's folders are the numbers of the classes; as text "10" would come before "2"."""
    folders = class_folders(images)
    wrong = [name for name in folders if not name.isdecimal() or int(name) >= len(names)]
    if wrong:
        raise UserError(
            f"{images / wrong[0]}: label out of range; expected 0 to {len(names) - 1}, the classes of {path}"
        )
    data = open_folder(images.parent, images.name, folders, images.name)
    labels = torch.tensor([int(name) for name in folders])[data.labels]
    return FileImages(data.root, data.files, labels, names)


def _class_name(dataset: str, name: str, path: Path) -> str:
    renamed = _RENAMED.get(dataset, {}).get(name, name)
    if dataset == "ucf101":
        renamed = _JOINED_WORDS.sub(" ", renamed)
    if dataset == "stanford_cars":
        renamed = _YEAR_LAST.sub(r"\2 \1", renamed)
    shown = " ".join(renamed.replace("_", " ").split())
    if not shown:
        raise UserError(f"{path}: a class name is empty; every class needs one")
    return shown


def _distinct(names: list[str], path: Path) -> tuple[str, ...]:
    label_of: dict[str, int] = {}
    for label, name in enumerate(names):
        if label_of.setdefault(name, label) != label:
            raise UserError(
                f'{path}: labels {label_of[name]} and {label} are both called "{name}"; '
                "every class needs a name of its own"
            )
    return tuple(names)


def _text(path: Path) -> str:
    return read_text(path, "not found; datasets/README.md says where it comes from", "utf-8")


def _need_images(path: Path, images: Path, files: Iterable[str]) -> None:
    there = set(images_below(images))
    missing = [file for file in files if file not in there]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of its images not found, first {images / missing[0]}; unpack all images"
        )


# --- parts -------------------------------------------------------------------------------------------------


def select_classes(data: FileImages, classes: Classes, relabel: bool = True) -> FileImages:
    """The images of the base or novel classes; labels from 0 and these names alone, unless not `relabel`.

    Raises UserError as class_range.
    """
    chosen = class_range(len(data.names), classes)
    part = data.select(class_indices(data.labels, chosen))
    if not relabel:
        return part
    names = data.names[chosen.start : chosen.stop]
    return FileImages(part.root, part.files, part.labels - chosen.start, names)


class CoOpData(ClassificationModuleBase):
    """Training and validation images of a data set in CoOp's layout (see datasets/README.md).

    Args:
        root: folder that holds the data sets' folders (caltech-101, oxford_pets, ...).
        dataset: one of COOP_SETS.
        shots: training images of each class; None for all. Where a class has fewer, all of its own. The split
        "val" then keeps at most min(shots, 4) of each class.
        shots_seed: of the images that `shots` chooses; None for `seed`.
        classes: of the training images: all, base (the first half, rounded up) or novel.
        val_classes: the same for validation; None for `classes`.
        relabel: labels from 0 and names of the chosen classes alone, which both splits then share; else
        labels and names stay those of the whole data set.
        val_split: which images validation reads: test or val.
        novel_half: the second half of the classes is `novel`; not together with relabel.
        kwargs: see ClassificationModuleBase.
    """

    def __init__(
        self,
        root: str,
        dataset: str,
        shots: int | None = None,
        shots_seed: int | None = None,
        classes: Classes = "all",
        val_classes: Classes | None = None,
        relabel: bool = False,
        val_split: Literal["val", "test"] = "test",
        novel_half: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        val_classes = classes if val_classes is None else val_classes
        need_classes("data.classes", classes)
        need_classes("data.val_classes", val_classes)
        need_shots(shots)
        if relabel and classes != val_classes:
            raise UserError(
                f"data.relabel: classes={classes} and val_classes={val_classes} would share labels; "
                "set relabel=false or the same classes"
            )
        if val_split not in ("val", "test"):
            raise UserError(f"data.val_split={val_split}: expected val or test")
        if relabel and novel_half:
            raise UserError(
                "data.novel_half: relabel names a half of the classes alone; set one of the two false"
            )
        self.root, self.dataset = root, dataset
        self.shots, self.shots_seed = shots, self.seed if shots_seed is None else shots_seed
        self.classes: dict[Split, Classes] = {"train": classes, "val": val_classes}
        self.relabel, self.val_split, self.novel_half = relabel, val_split, novel_half

    @property
    def train_is_test(self) -> bool:
        """Whether training sees the images that are scored: the ImageNet variants have no others."""
        return self.dataset.startswith("imagenet") and self.dataset != "imagenet"

    def build(self, split: Split) -> FileImages:
        """The split's images. Raises UserError as open_coop, and where nothing is left."""
        source = "train" if split == "train" else self.val_split
        data = open_coop(self.root, self.dataset, source)
        if self.shots is not None and source != "test":
            shots = self.shots if source == "train" else min(self.shots, _VAL_SHOTS)
            data = data.select(few_shot_indices(data.labels, shots, self.shots_seed))
        data = select_classes(data, self.classes[split], self.relabel)
        if not len(data):
            raise UserError(f"{self.dataset}: {source} has no images of the {self.classes[split]} classes")
        return data

    def novel_labels(self) -> frozenset[int]:
        """The second half of the labels under novel_half."""
        return frozenset(class_range(len(self.names), "novel")) if self.novel_half else frozenset()
