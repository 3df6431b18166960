"""COCO-Stuff 164k: unpacks the official archives into the layout of kind coco_stuff."""

from __future__ import annotations

import sys
from pathlib import Path

from _prepare import archive, below, need_complete, run, unpack

from vlkd.data import open_segmentation


def prepare(source: Path, root: Path) -> None:
    """Images of both splits and the pixel maps, with their own label values (the reader translates them)."""
    for split in ("train2017", "val2017"):
        unpack(archive(source, f"{split}.zip"), lambda name: below(root, name))
    maps = archive(source, "stuffthingmaps_trainval2017.zip")
    unpack(maps, lambda name: below(root / "stuffthingmaps", name) if name.endswith(".png") else None)
    need_complete(*(open_segmentation("coco_stuff", root, split) for split in ("train", "val")))


if __name__ == "__main__":
    sys.exit(run(__doc__, prepare))
