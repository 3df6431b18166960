"""Real image-text pairs: images in files, captions in a JSONL, TSV or CSV table or a COCO captions JSON."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlkd.cache import cache_key
from vlkd.data.files import need_folder, read_image, read_text
from vlkd.data.images.files import EvalImages, FileAugment, FileImages, as_tensor, centre, collate
from vlkd.data.images.folder import open_folder
from vlkd.data.loader import EvalSampler, place_of
from vlkd.data.world_module import CaptionData
from vlkd.errors import UserError
from vlkd.text.names import nearest_hint

_TABLES = {".jsonl": "", ".tsv": "\t", ".csv": ","}
_BATCH = 256
Row = tuple[int, str, list[str]]  # line of the file, image, captions


@dataclass(frozen=True)
class CaptionTable:
    """Images (N paths) with the captions of each, in the order of the file."""

    source: Path
    images: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        """Short hash of paths below the file's folder and captions."""
        names = [os.path.relpath(path, self.source.parent) for path in self.images]
        return cache_key(images=names, captions=self.captions)[:16]


def read_captions(
    source: str | Path, root: str | Path | None = None, image: str = "image", caption: str = "caption"
) -> CaptionTable:
    """A table (.jsonl, .tsv, .csv) with the columns `image` and `caption`, or a COCO captions JSON (.json).

    Image paths are relative to `root`, by default the file's own folder. Rows of one image are put together;
    in JSONL `caption` may be a list. Raises UserError naming file and line for broken JSON, an unknown
    column, an empty caption, and an image that is not there.
    """
    path = Path(source).expanduser()
    if path.suffix != ".json" and path.suffix not in _TABLES:
        raise UserError(
            f"{path}: unknown kind of file; expected .jsonl, .tsv, .csv, or COCO captions as .json"
        )
    base = need_folder(path.parent if root is None else Path(root).expanduser(), "the captions' images")
    text = _text(path)
    if path.suffix == ".json":
        rows = _coco(path, text)
    elif path.suffix == ".jsonl":
        rows = _json_lines(path, text, image, caption)
    else:
        rows = _delimited(path, text, _TABLES[path.suffix], image, caption)
    found: dict[str, list[str]] = {}
    for line, name, captions in rows:
        place = f"{path}:{line}" if line else str(path)
        if not captions or not all(own.strip() for own in captions):
            raise UserError(f"{place}: image {name!r} has an empty caption; fill it in or remove the row")
        if name not in found and not (base / name).is_file():
            raise UserError(f"{place}: image {base / name} not found; paths are relative to {base}")
        found.setdefault(name, []).extend(" ".join(own.split()) for own in captions)
    if not found:
        raise UserError(f"{path}: no image with a caption")
    return CaptionTable(
        path, tuple(base / name for name in found), tuple(tuple(own) for own in found.values())
    )


def _text(path: Path) -> str:
    return read_text(path, "no such file; expected captions (docs/clipkd.md)")


def _json_lines(path: Path, text: str, image: str, caption: str) -> Iterator[Row]:
    # Not splitlines(): JSON may hold other line ends, such as U+2028, inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: broken JSON ({error.msg}, column {error.colno})") from None
        if not isinstance(row, dict):
            raise UserError(
                f'{path}:{number}: expected an object such as {{"{image}": ..., "{caption}": ...}}'
            )
        _need_columns(f"{path}:{number}", row, image, caption)
        captions = row[caption] if isinstance(row[caption], list) else [row[caption]]
        if not isinstance(row[image], str) or not all(isinstance(own, str) for own in captions):
            raise UserError(f"{path}:{number}: {image} must be text, {caption} text or a list of texts")
        yield number, row[image], captions


def _delimited(path: Path, text: str, delimiter: str, image: str, caption: str) -> Iterator[Row]:
    lines = text.splitlines(keepends=True)
    # In tab-separated tables a quotation mark is a character of the caption.
    plain = delimiter == "\t"
    reader = csv.DictReader(
        lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    )
    if reader.fieldnames is None:
        raise UserError(f"{path}: empty; expected a first line with {image} and {caption}")
    _need_columns(f"{path}:1", reader.fieldnames, image, caption)
    for row in reader:
        if row[image] is None or row[caption] is None or None in row:
            raise UserError(f"{path}:{reader.line_num}: expected {len(reader.fieldnames)} columns")
        yield reader.line_num, row[image], [row[caption]]


def _need_columns(place: str, columns: Any, image: str, caption: str) -> None:
    for key, wanted in (("image_column", image), ("caption_column", caption)):
        if wanted not in columns:
            known = ", ".join(map(str, columns))
            raise UserError(
                f"{place}: no column {wanted!r}{nearest_hint(wanted, list(columns))}; it has {known}; "
                f"name yours with data.{key}"
            )


def _coco(path: Path, text: str) -> Iterator[Row]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON ({error.msg}, column {error.colno})") from None
    try:
        file_of = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        rows = [(file_of[entry["image_id"]], str(entry["caption"])) for entry in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a COCO captions JSON (missing or wrong entry {error})") from None
    return ((0, name, [caption]) for name, caption in rows)


class CaptionedFiles(Dataset):
    """Training images with one of their captions, addressed by (epoch, index)."""

    def __init__(self, table: CaptionTable, augment: FileAugment, seed: int) -> None:
        self.table, self.augment, self.seed = table, augment, seed

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, address: tuple[int, int]) -> tuple[Tensor, str]:
        epoch, index = address
        rng = np.random.default_rng((self.seed, epoch, index))
        captions = self.table.captions[index]
        caption = captions[int(rng.integers(len(captions)))]
        return as_tensor(self.augment(read_image(self.table.images[index]), rng)), caption


class PairFiles(Dataset):
    """Central squares of images with all their captions, in order."""

    def __init__(self, table: CaptionTable, size: int, limit: int | None) -> None:
        self.table, self.size = table, size
        self.count = len(table) if limit is None else min(limit, len(table))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, list[str]]:
        image = centre(read_image(self.table.images[index]), self.size, 1.0)
        return as_tensor(image), list(self.table.captions[index])


class CaptionFilesData(CaptionData):
    """Real image-text pairs, and optionally a folder of labelled images for zero-shot classification.

    Args:
        train: captions for training: .jsonl, .tsv or .csv with a row for each image and caption, or COCO's
        captions_*.json.
        val: the same for retrieval; None for none.
        root: folder that the images of `train` are relative to; None for the file's own.
        val_root: the same for `val`; None for `root` if given, else the file's own.
        classes: folder with labelled images for the zero-shot score, CLASSES/CLASS/*.jpg; None for none.
        class_names: words for the class folders in the order of their sorted names; None for their own names.
        image_column: name of the column with the image's path.
        caption_column: name of the column with the caption.
        size: height and width in pixels.
        scale: range of the area of the random part that training sees.
        flip: probability of a horizontal flip; captions may say left and right, so none by default.
        val_pairs: so many of the first images of `val`; None for all.
        batch_size: pairs per step and process.
        num_workers: loader processes.
        seed: of order, augmentation and choice of caption.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        root: str | None = None,
        val_root: str | None = None,
        classes: str | None = None,
        class_names: list[str] | None = None,
        image_column: str = "image",
        caption_column: str = "caption",
        size: int = 224,
        scale: tuple[float, float] = (0.9, 1.0),
        flip: float = 0.0,
        val_pairs: int | None = None,
        batch_size: int = 128,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        if min(size, batch_size, 1 if val_pairs is None else val_pairs) < 1:
            raise UserError("data: size, batch_size and val_pairs must be at least 1")
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 <= flip <= 1:
            raise UserError(f"data.scale={list(scale)}, data.flip={flip}: expected parts between 0 and 1")
        self.files = {"train": (train, root), "val": (val, val_root or root)}
        self.columns = (image_column, caption_column)
        self.classes, self.class_names = classes, class_names
        self.size, self.augment = size, FileAugment(size, (scale[0], scale[1]), flip)
        self.val_pairs = val_pairs
        self.names: tuple[str, ...] = ()
        self.labelled: FileImages | None = None
        self.val_table: CaptionTable | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the tables. Raises UserError as read_captions, and as open_folder for the classes."""
        if stage in (None, "fit") and self.train_set is None:
            self.train_set = CaptionedFiles(self._table("train"), self.augment, self.seed)
        if self.files["val"][0] is not None and self.val_table is None:
            self.val_table = self._table("val")
        if self.classes is not None and self.labelled is None:
            folder = Path(self.classes).expanduser()
            self.labelled = open_folder(folder.parent, folder.name, self.class_names, folder.name)
            self.names = self.labelled.names
        if self.val_table is None and self.labelled is None and stage == "validate":
            raise UserError(
                "data: nothing to score; give data.val (captions) or data.classes (labelled images)"
            )

    def _table(self, split: str) -> CaptionTable:
        source, root = self.files[split]
        assert source is not None
        return read_captions(source, root, *self.columns)

    def check(self) -> list[str]:
        """Read everything once; every problem, one line each (none when all is well)."""
        problems: list[str] = []
        try:
            self.setup()
        except UserError as error:
            return [str(error)]
        tables = [t.table for t in (self.train_set,) if isinstance(t, CaptionedFiles)]
        paths = [path for table in (*tables, self.val_table) if table is not None for path in table.images]
        if self.labelled is not None:
            paths += [self.labelled.root / file for file in self.labelled.files]
        for path in dict.fromkeys(paths):
            try:
                read_image(path)
            except UserError as error:
                problems.append(str(error))
        return problems

    def val_fingerprint(self) -> str:
        """Short hash of the validation pairs, the labelled images and their size."""
        pairs = self.val_table.fingerprint() if self.val_table is not None else ""
        images = self.labelled.fingerprint() if self.labelled is not None else ""
        return cache_key(pairs=pairs, count=self.val_pairs, images=images, size=self.size)[:16]

    def val_dataloader(self) -> DataLoader:
        """{"images" (B,3,S,S) in [0,1], "labels" (B,), "indices" (B,)}; without labelled images B is 0."""
        if self.labelled is None:
            # Lightning validates only where there is a batch, and retrieval needs none of them.
            nothing: Any = [{"images": torch.zeros(0, 3, self.size, self.size)}]
            return DataLoader(nothing, batch_size=None)
        samples = EvalImages(self.labelled, self.size, 1.0)
        sampler = EvalSampler(self.labelled, *place_of(self.trainer))
        return DataLoader(samples, _BATCH, sampler=sampler, collate_fn=collate, num_workers=self.num_workers)

    def pair_batches(self) -> Iterator[dict[str, Any]]:
        """{"images" (B,3,S,S) in [0,1], "captions": B lists of strings} of validation; none without pairs."""
        if self.val_table is None:
            return
        pairs = PairFiles(self.val_table, self.size, self.val_pairs)
        # With a generator of its own a loader leaves the global one, and with it a resumed run, alone.
        options = {"num_workers": self.num_workers, "generator": torch.Generator()}
        yield from DataLoader(pairs, _BATCH, collate_fn=_collate_pairs, **options)  # type: ignore[arg-type]


def _collate_pairs(items: list[tuple[Tensor, list[str]]]) -> dict[str, Any]:
    images = torch.stack([image for image, _ in items]).float() / 255
    return {"images": images, "captions": [captions for _, captions in items]}
