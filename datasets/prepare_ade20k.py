"""ADE20K, 150 classes: unpacks ADEChallengeData2016.zip into the layout of kind ade20k."""

from __future__ import annotations

import sys
from pathlib import Path

from _prepare import archive, below, need_complete, run, unpack

from vlkd.data import open_segmentation


def prepare(source: Path, root: Path) -> None:
    """Images, annotations and the lists beside them."""
    unpack(archive(source, "ADEChallengeData2016.zip"), lambda name: below(root, name))
    need_complete(*(open_segmentation("ade20k", root, split) for split in ("train", "val")))


if __name__ == "__main__":
    sys.exit(run(__doc__, prepare))
