"""Cityscapes fine annotations: unpacks the two official archives into the layout of kind cityscapes."""

from __future__ import annotations

import sys
from pathlib import Path

from _prepare import archive, below, need_complete, run, unpack

from vlkd.data import open_segmentation

NEEDED = ("_leftImg8bit.png", "_gtFine_labelIds.png")


def prepare(source: Path, root: Path) -> None:
    """Images and labelIds; polygons, colour and instance maps are left in the archive."""
    for name in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
        unpack(archive(source, name), lambda member: below(root, member) if member.endswith(NEEDED) else None)
    need_complete(*(open_segmentation("cityscapes", root, split) for split in ("train", "val")))


if __name__ == "__main__":
    sys.exit(run(__doc__, prepare))
