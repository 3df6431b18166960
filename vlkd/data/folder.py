"""Semantic data sets kept as a folder of images and a folder of index PNGs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlkd.data.files import IMAGE_SUFFIXES, FileSegmentation, need_folder, read_labels
from vlkd.data.sample import Segment, void_label
from vlkd.errors import UserError
from vlkd.text.names import class_names

VALUES = 1 << 16  # label files hold 8- or 16-bit values
NO_CLASS, UNKNOWN = -1, -2


class FolderSegmentation(FileSegmentation):
    """Images and index PNGs paired by relative path; a segment is one class in one image, its id class + 1.

    `label_map` {raw: class} translates raw values (-1 = void), `reduce_zero_label` makes 0 void and v class
    v-1 (ADE20K), otherwise the value is the class; `ignore` (default void_label(K)) is void. A file name is
    KEY + tail + suffix, and image and label share KEY. `stems` restricts the set to these keys, in their
    order.
    Raises UserError for a missing folder, an empty one, or names and isthing of different length.
    """

    def __init__(
        self,
        images: str | Path,
        labels: str | Path,
        names: Sequence[str] | str | Path,
        isthing: Sequence[bool] | None = None,
        *,
        ignore: int | None = None,
        reduce_zero_label: bool = False,
        label_map: Mapping[int, int] | None = None,
        image_tail: str = "",
        label_tail: str = "",
        stems: Sequence[str] | None = None,
    ) -> None:
        self.images = need_folder(Path(images), "the images")
        self.labels = need_folder(Path(labels), "the label PNGs")
        self.names = read_names(names)
        self.isthing = tuple(isthing) if isthing is not None else (False,) * len(self.names)
        if len(self.isthing) != len(self.names):
            raise UserError(f"{self.images}: {len(self.names)} names but {len(self.isthing)} isthing flags")
        self.novel: frozenset[int] = frozenset()
        self.label_tail = label_tail
        self.table = value_table(len(self.names), ignore, reduce_zero_label, label_map)
        found = _image_files(self.images, image_tail)
        if stems is not None:
            found = {stem: found.get(stem, Path(f"{stem}{image_tail}.jpg")) for stem in stems}
        if not found:
            tail = f" whose names end in {image_tail!r}" if image_tail else ""
            raise UserError(
                f"{self.images}: no image files{tail} ({', '.join(IMAGE_SUFFIXES)}) here or below"
            )
        self.keys = tuple(found)
        self._image_paths = tuple(found.values())

    def __len__(self) -> int:
        return len(self.keys)

    def sample_id(self, index: int) -> str:
        """The file's relative path without tail and suffix."""
        return self.keys[index]

    def files(self, index: int) -> tuple[Path, Path]:
        """Image file and label PNG."""
        return self.images / self._image_paths[
            index
        ], self.labels / f"{self.keys[index]}{self.label_tail}.png"

    def read_segments(self, index: int) -> tuple[NDArray[np.int32], list[Segment]]:
        """Segment map (H,W) of class + 1 and its segments. Raises UserError for a value without a class."""
        return read_class_segments(self.files(index)[1], self.table, self.isthing)


def read_class_segments(
    path: Path, table: NDArray[np.int32], isthing: Sequence[bool]
) -> tuple[NDArray[np.int32], list[Segment]]:
    """Segment map (H,W) of class + 1 from an index PNG, its raw values looked up in a `value_table`.

    Raises UserError for a value without a class.
    """
    raw = read_labels(path)
    if raw.min(initial=0) < 0 or raw.max(initial=0) >= VALUES:
        raise UserError(f"{path}: label values must lie in 0..{VALUES - 1}, found {raw.min()}..{raw.max()}")
    counts = np.bincount(raw.ravel())
    present = np.flatnonzero(counts)
    unknown = present[table[present] == UNKNOWN]
    if len(unknown):
        values = ", ".join(map(str, unknown[:8]))
        raise UserError(
            f"{path}: label value {values} has no class ({len(isthing)} names); "
            "check names, ignore, label_map and reduce_zero_label"
        )
    categories = np.unique(table[present])
    info = [Segment(int(c) + 1, int(c), isthing[c]) for c in categories if c != NO_CLASS]
    return table[: len(counts)][raw] + 1, info


def read_names(names: Sequence[str] | str | Path) -> tuple[str, ...]:
    """Class names from a list, a text file (one a line), or the key of a packaged list ("cityscapes_19")."""
    if isinstance(names, str | Path):
        path = Path(names)
        if path.is_file():
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        elif path.suffix or os.sep in str(names):
            raise UserError(f"{path}: file of class names not found; expected one name a line")
        else:
            return tuple(class_names(str(names)))
    if not names:
        raise UserError("the list of class names is empty; give one name for every label value")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(
            f"class names occur more than once: {', '.join(repeated)}; give each class its own name"
        )
    return tuple(names)


def read_stems(path: Path) -> list[str]:
    """Sample keys from a list file, one a line. Raises UserError when the file is missing or empty."""
    if not path.is_file():
        raise UserError(f"{path}: list of samples not found; expected one file stem a line")
    stems = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not stems:
        raise UserError(f"{path}: the list of samples is empty")
    return stems


def value_table(
    classes: int,
    ignore: int | None = None,
    reduce_zero_label: bool = False,
    label_map: Mapping[int, int] | None = None,
) -> NDArray[np.int32]:
    """Class of every raw value (65536,): NO_CLASS for void, UNKNOWN where there is none."""
    table = np.full(VALUES, UNKNOWN, dtype=np.int32)
    if label_map is not None:
        wrong = [train for train in label_map.values() if not NO_CLASS <= train < classes]
        if wrong:
            raise UserError(f"label_map points to class {wrong[0]}, but there are {classes} names")
        table[list(label_map)] = list(label_map.values())
    elif reduce_zero_label:
        table[1 : classes + 1] = np.arange(classes)
        table[0] = NO_CLASS
    else:
        table[:classes] = np.arange(classes)
    void = void_label(classes) if ignore is None else ignore
    if 0 <= void < VALUES:
        table[void] = NO_CLASS
    return table


def _image_files(folder: Path, tail: str) -> dict[str, Path]:
    """{key: path relative to `folder`}, sorted by key."""
    found: dict[str, Path] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        base = Path(parent).relative_to(folder)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES and stem.endswith(tail) and not name.startswith("."):
                key = (base / stem.removesuffix(tail)).as_posix()
                if key in found:
                    raise UserError(
                        f"{folder / base / name}: {found[key]} has the same name; remove one of them"
                    )
                found[key] = base / name
    return dict(sorted(found.items()))
