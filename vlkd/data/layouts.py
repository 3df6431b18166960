"""The public data sets' folder layouts, opened by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlkd.data.coco import CocoPanoptic
from vlkd.data.files import need_folder
from vlkd.data.folder import FolderSegmentation, read_names, read_stems
from vlkd.data.sample import SegmentationDataset
from vlkd.errors import UserError
from vlkd.text.names import nearest_hint

Names = Sequence[str] | str | Path | None

# labelIds of the 19 evaluated Cityscapes classes in trainId order (cityscapesscripts, helpers/labels.py)
CITYSCAPES_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# COCO ids 1..182 that no image carries; the other 171 are COCO-Stuff's classes in id order
COCO_STUFF_ABSENT = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91))


def open_segmentation(
    kind: str, root: str | Path, split: str, names: Names = None, **options: Any
) -> SegmentationDataset:
    """A split ("train", "val", or a folder's own name) of a data set in one of the KINDS of layout.

    `names` replaces the kind's own class names: a list, a text file, or the key of a packaged list. `options`
    are those of FolderSegmentation and go with the kind "folder" only, since every other layout fixes them.
    Raises UserError for an unknown kind (with the nearest one) and for folders that are not there.
    """
    if kind not in KINDS:
        raise UserError(
            f"unknown kind of data set {kind!r}{nearest_hint(kind, KINDS)}; known: {', '.join(KINDS)}"
        )
    base = need_folder(Path(root), f"a {kind} data set")
    if kind == "folder":
        names = read_names(names or base / "names.txt")
        return FolderSegmentation(base / "images" / split, base / "labels" / split, names, **options)
    if options:
        raise UserError(
            f"{', '.join(options)}: for data of kind folder only; kind {kind} fixes its label values"
        )
    return LAYOUTS[kind](base, split, names)


def _coco_panoptic(root: Path, split: str, names: Names) -> CocoPanoptic:
    part = _coco_split(split)
    images = _first(root / part, root / "images" / part)
    panoptic = _first(root / f"panoptic_{part}", root / "annotations" / f"panoptic_{part}")
    json = root / "annotations" / f"panoptic_{part}.json"
    return CocoPanoptic(images, panoptic, json, None if names is None else read_names(names))


def _coco_stuff(root: Path, split: str, names: Names) -> FolderSegmentation:
    part = _coco_split(split)
    used = [id for id in range(1, 183) if id not in COCO_STUFF_ABSENT]
    return FolderSegmentation(
        _first(root / part, root / "images" / part),
        root / "stuffthingmaps" / part,
        read_names(names or "coco_stuff_171"),
        [id <= 90 for id in used],
        label_map={id - 1: index for index, id in enumerate(used)},
    )


def _ade20k(root: Path, split: str, names: Names) -> FolderSegmentation:
    part = {"train": "training", "val": "validation"}.get(split, split)
    base = _first(root / "ADEChallengeData2016", root)
    return FolderSegmentation(
        base / "images" / part,
        base / "annotations" / part,
        read_names(names or "ade20k_150"),
        reduce_zero_label=True,
    )


def _pascal_context(root: Path, split: str, names: Names) -> FolderSegmentation:
    base = _first(root / "VOCdevkit" / "VOC2010", root / "VOC2010", root)
    return FolderSegmentation(
        base / "JPEGImages",
        base / "SegmentationClassContext",
        read_names(names or "pascal_context_59"),
        reduce_zero_label=True,
        stems=read_stems(base / "ImageSets" / "SegmentationContext" / f"{split}.txt"),
    )


def _cityscapes(root: Path, split: str, names: Names) -> FolderSegmentation:
    voids = set(range(34)) - set(CITYSCAPES_LABEL_IDS)
    mapping = dict.fromkeys(voids, -1) | {raw: index for index, raw in enumerate(CITYSCAPES_LABEL_IDS)}
    return FolderSegmentation(
        root / "leftImg8bit" / split,
        root / "gtFine" / split,
        read_names(names or "cityscapes_19"),
        [index >= 11 for index in range(19)],
        label_map=mapping,
        image_tail="_leftImg8bit",
        label_tail="_gtFine_labelIds",
    )


def _camvid(root: Path, split: str, names: Names) -> FolderSegmentation:
    return FolderSegmentation(
        root / "images" / split, root / "labels" / split, read_names(names or "camvid_11"), ignore=11
    )


def _coco_split(split: str) -> str:
    return {"train": "train2017", "val": "val2017"}.get(split, split)


def _first(*folders: Path) -> Path:
    return next((folder for folder in folders if folder.is_dir()), folders[0])


LAYOUTS: dict[str, Callable[[Path, str, Names], SegmentationDataset]] = {
    "coco_panoptic": _coco_panoptic,
    "coco_stuff": _coco_stuff,
    "ade20k": _ade20k,
    "pascal_context": _pascal_context,
    "cityscapes": _cityscapes,
    "camvid": _camvid,
}
KINDS = ("folder", *LAYOUTS)
