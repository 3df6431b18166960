"""COCO panoptic 2017: unpacks the official archives into the layout of kind coco_panoptic."""

from __future__ import annotations

import sys
from pathlib import Path

from _prepare import archive, below, need_complete, run, unpack

from vlkd.data import open_segmentation

SPLITS = ("train2017", "val2017")


def prepare(source: Path, root: Path) -> None:
    """Images of both splits, the JSON files, and the PNG archives inside the annotation archive."""
    for split in SPLITS:
        unpack(archive(source, f"{split}.zip"), lambda name: below(root, name))
    unpack(archive(source, "panoptic_annotations_trainval2017.zip"), lambda name: below(root, name))
    for split in SPLITS:
        inner = archive(root / "annotations", f"panoptic_{split}.zip")
        unpack(inner, lambda name: None if name.startswith("__MACOSX") else below(root, name))
        need_complete(open_segmentation("coco_panoptic", root, split))


if __name__ == "__main__":
    sys.exit(run(__doc__, prepare))
