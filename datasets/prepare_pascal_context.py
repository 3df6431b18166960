"""Pascal-Context, 59 classes: makes index PNGs from the official .mat label maps beside VOC2010's images."""

from __future__ import annotations

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from _prepare import copy_all, need_complete, run, write
from PIL import Image
from rich.console import Console
from rich.progress import track
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from vlkd.data import open_segmentation
from vlkd.errors import UserError
from vlkd.text import class_names

RENAMED = {"diningtable": "table"}  # the 59-class lists follow VOC, labels.txt has its own name
LABELS = 1000  # more than the highest of the 459 label values


def prepare(source: Path, root: Path) -> None:
    """`source` holds VOC2010/ (or VOCdevkit/VOC2010/), and Pascal-Context's trainval/*.mat and labels.txt."""
    voc = next((p for p in (source / "VOCdevkit" / "VOC2010", source / "VOC2010") if p.is_dir()), None)
    mats = {path.stem: path for path in sorted((source / "trainval").glob("*.mat"))}
    if voc is None or not mats:
        raise UserError(f"{source}: needs VOC2010/ and trainval/*.mat (see datasets/README.md)")
    table = label_table(source / "labels.txt")
    stems = {split: _listed(voc / "ImageSets" / "Main" / f"{split}.txt", mats) for split in ("train", "val")}
    wanted = sorted({*stems["train"], *stems["val"]})
    copy_all(((voc / "JPEGImages" / f"{s}.jpg", root / "JPEGImages" / f"{s}.jpg") for s in wanted), "images")

    def convert(stem: str) -> None:
        target = root / "SegmentationClassContext" / f"{stem}.png"
        if not target.is_file():
            png = io.BytesIO()
            Image.fromarray(table[read_mat(mats[stem])]).save(png, "png")
            png.seek(0)
            write(target, png)

    with ThreadPoolExecutor() as pool:
        done = pool.map(convert, wanted)
        for _ in track(done, "labels", len(wanted), console=Console(stderr=True), transient=True):
            pass
    for split, names in stems.items():
        text = io.BytesIO("".join(f"{name}\n" for name in names).encode())
        write(root / "ImageSets" / "SegmentationContext" / f"{split}.txt", text)
        need_complete(open_segmentation("pascal_context", root, split))


def label_table(path: Path) -> np.ndarray:
    """Table from the 459 labels to 1..59, 0 for the rest. Raises UserError when a class is missing."""
    if not path.is_file():
        raise UserError(f"{path}: not found; it comes with the Pascal-Context labels (lines like '9: bag')")
    lines = [line.split(":") for line in path.read_text(encoding="utf-8").splitlines() if ":" in line]
    value = {name.strip(): int(number) for number, name in lines}
    table = np.zeros(LABELS, dtype=np.uint8)
    for index, name in enumerate(class_names("pascal_context_59", raw=True)):
        known = name if name in value else RENAMED.get(name, name)
        if known not in value:
            raise UserError(f"{path}: class {name!r} is missing; expected the official list of 459 labels")
        table[value[known]] = index + 1
    return table


def read_mat(path: Path) -> np.ndarray:
    """Label map (H,W) of one .mat file. Raises UserError when it has none."""
    try:
        return loadmat(path)["LabelMap"].astype(np.int64)
    except (MatReadError, KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{path}: no readable LabelMap ({error}); download the labels again") from None


def _listed(path: Path, mats: dict[str, Path]) -> list[str]:
    """Stems of a VOC list that Pascal-Context labels."""
    if not path.is_file():
        raise UserError(f"{path}: not found; it comes with VOC2010")
    return [stem for stem in path.read_text(encoding="utf-8").split() if stem in mats]


if __name__ == "__main__":
    sys.exit(run(__doc__, prepare))
