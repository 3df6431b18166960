"""Videos kept as folders of frames with a label file for each: VSPW, raw VIPSeg, and CamVid-style folders."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from vlkd.data.coco import read_json
from vlkd.data.files import IMAGE_SUFFIXES, need_folder, read_labels
from vlkd.data.folder import FolderSegmentation, read_class_segments, read_stems, value_table
from vlkd.data.layouts import open_segmentation
from vlkd.data.sample import Segment
from vlkd.data.video.record import Form, Labels, VideoDataset, VideoRecord, Vocabulary
from vlkd.errors import UserError
from vlkd.text.names import class_list, clean_names, nearest_hint

INSTANCES = 125  # raw VIPSeg values from here on are 100 x class + instance, below they are a class


class FolderRecord(VideoRecord):
    """A folder of frames and one of label files with the same stems; None, or no such folder: no labels."""

    def __init__(
        self, id: str, vocabulary: Vocabulary, images: Path, masks: Path | None, form: Form,
        read: Callable[[Path], Labels],
    ) -> None:  # fmt: skip
        super().__init__(id, vocabulary)
        self.images, self.masks, self.form, self.read = images, masks, form, read

    @cached_property
    def frame_files(self) -> tuple[Path, ...]:
        """The folder's image files, sorted by name. Raises UserError when there are none."""
        names = _listed(self.images)
        files = sorted(name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"video {self.id}: {self.images}: no frames there")
        return tuple(self.images / name for name in files)

    @property
    def annotated(self) -> bool:
        """Whether there is a folder of label files."""
        return self.masks is not None and self.masks.is_dir()

    @cached_property
    def labelled(self) -> tuple[int, ...]:
        """Every frame, or none. Raises UserError for frames and label files that do not pair."""
        if self.masks is None or not self.annotated:
            return ()
        masks = {Path(name).stem for name in _listed(self.masks) if name.lower().endswith(".png")}
        frames = {path.stem for path in self.frame_files}
        if frames != masks:
            odd = min(frames ^ masks)
            what = "has no label file" if odd in frames else "is a label file without a frame"
            raise UserError(
                f"video {self.id}: {len(frames)} frames in {self.images}, but {len(masks)} label files in "
                f"{self.masks}: {odd} {what}"
            )
        return tuple(range(len(self.frame_files)))

    def read_labels(self, t: int) -> Labels:
        """Segments of the label file. Raises UserError: missing, damaged, or with a value without a class."""
        assert self.masks is not None
        return self.read(self.masks / f"{self.frame_files[t].stem}.png")


class ClassValues:
    """Reads VSPW's masks: 0 and 255 are void, v is class v - 1."""

    def __init__(self, isthing: Sequence[bool]) -> None:
        self.isthing = isthing
        self.table = value_table(len(isthing), reduce_zero_label=True)

    def __call__(self, path: Path) -> Labels:
        return read_class_segments(path, self.table, self.isthing)


class VipsegValues:
    """Reads raw VIPSeg masks: 0 is void, v < 125 class v - 1, else instance v % 100 of class v // 100 - 1."""

    def __init__(self, isthing: Sequence[bool]) -> None:
        self.isthing = isthing

    def __call__(self, path: Path) -> Labels:
        raw = read_labels(path).astype(np.int32)
        values = np.flatnonzero(np.bincount(raw.ravel()))
        values = values[values != 0]
        categories = np.where(values < INSTANCES, values, values // 100) - 1
        if (unknown := values[categories >= len(self.isthing)]).size:
            raise UserError(
                f"{path}: value {', '.join(map(str, unknown[:8]))} belongs to none of "
                f"{len(self.isthing)} classes"
            )
        pairs = zip(values.tolist(), categories.tolist(), strict=True)
        return raw, [Segment(value, category, self.isthing[category]) for value, category in pairs]


class PairRecord(VideoRecord):
    """Some of the image and label pairs of a FolderSegmentation, as the frames of one video."""

    form: Form = "semantic"

    def __init__(
        self, id: str, vocabulary: Vocabulary, pairs: FolderSegmentation, indices: list[int]
    ) -> None:
        super().__init__(id, vocabulary)
        self.pairs, self.indices = pairs, indices

    @cached_property
    def frame_files(self) -> tuple[Path, ...]:
        """Image files of the pairs."""
        return tuple(self.pairs.files(index)[0] for index in self.indices)

    @property
    def annotated(self) -> bool:
        """Always: the layout has a label file for every image."""
        return True

    @cached_property
    def labelled(self) -> tuple[int, ...]:
        """Every frame."""
        return tuple(range(len(self.indices)))

    def read_labels(self, t: int) -> Labels:
        """Segments of the label file."""
        return self.pairs.read_segments(self.indices[t])


def open_vspw(root: Path, split: str) -> VideoDataset:
    """VSPW: data/VIDEO/{origin,mask}/, SPLIT.txt; the masks of the test split are withheld."""
    base = inner(root, "VSPW_480p")
    vocabulary = raw_vocabulary(base, first=1)
    read = ClassValues(vocabulary.isthing)
    listed = read_stems(split_file(base, split))
    present = set(_listed(need_folder(base / "data", "the videos")))
    records = [
        FolderRecord(
            v, vocabulary, base / "data" / v / "origin", base / "data" / v / "mask", "semantic", read
        )
        for v in listed
        if v in present
    ]
    return _folder_dataset(records, vocabulary, base, absent(listed, present, base / "data", f"{split}.txt"))


def open_vipseg_raw(root: Path, split: str) -> VideoDataset:
    """VIPSeg as published: imgs/VIDEO/, panomasks/VIDEO/, SPLIT.txt."""
    vocabulary = raw_vocabulary(root, first=0)
    read = VipsegValues(vocabulary.isthing)
    listed = read_stems(split_file(root, split))
    images = need_folder(root / "imgs", "the frames of raw VIPSeg")
    present = set(_listed(images))
    records = [
        FolderRecord(v, vocabulary, images / v, root / "panomasks" / v, "panoptic", read)
        for v in listed
        if v in present
    ]
    return _folder_dataset(records, vocabulary, root, absent(listed, present, images, f"{split}.txt"))


def open_camvid(root: Path, split: str) -> VideoDataset:
    """images/SPLIT and labels/SPLIT: a folder below is a video, so are files of one name up to the last "_".

    The classes are CamVid's 11 with 11 as void, or those of ROOT/names.txt with 255 as void.
    """
    if not (root / "images" / split).is_dir():
        raise unknown_split(root, split, _listed(need_folder(root / "images", "folders of frames, by split")))
    own = root / "names.txt"
    pairs = open_segmentation("folder" if own.is_file() else "camvid", root, split)
    assert isinstance(pairs, FolderSegmentation)
    raw = pairs.names if own.is_file() else class_list("camvid_11").raw
    names = tuple(clean_names(raw))
    vocabulary = Vocabulary(names, tuple(raw), tuple(range(len(names))), pairs.isthing)
    videos: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(pairs.keys):
        folder, _, stem = key.rpartition("/")
        videos[folder or stem.rpartition("_")[0] or split].append(index)
    records = [PairRecord(id, vocabulary, pairs, indices) for id, indices in videos.items()]
    return VideoDataset(records, vocabulary, root)


def raw_vocabulary(root: Path, first: int) -> Vocabulary:
    """Classes of VSPW and VIPSeg, their ids counted from `first`.

    From panoVIPSeg_categories.json, else from label_num_dic_final.json {name: value}, else the packaged 124;
    things are told by the first and the last. Raises UserError for values that are not 1..K.
    """
    packaged = class_list("vipseg_124")
    isthing = dict(zip(packaged.raw, packaged.isthing or (), strict=True))
    file = root / "panoVIPSeg_categories.json"
    if file.is_file():
        try:
            entries = sorted(read_json(file, list), key=lambda entry: int(entry["id"]))
            isthing |= {str(entry["name"]): bool(entry["isthing"]) for entry in entries}
            raw = [str(entry["name"]) for entry in entries]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: not a list of id, name, isthing (missing or wrong {error})") from None
    elif (file := root / "label_num_dic_final.json").is_file():
        value_of = {str(name): value for name, value in read_json(file).items() if value not in (0, 255)}
        if sorted(value_of.values()) != list(range(1, len(value_of) + 1)):
            raise UserError(f"{file}: expected class names with the values 1, 2, ...")
        raw = sorted(value_of, key=lambda name: value_of[name])
    else:
        raw = list(packaged.raw)
    ids = tuple(range(first, first + len(raw)))
    return Vocabulary(
        tuple(clean_names(raw)), tuple(raw), ids, tuple(isthing.get(name, False) for name in raw)
    )


def inner(root: Path, name: str) -> Path:
    """The folder `name` in the root where there is one, else the root itself."""
    return root / name if (root / name).is_dir() else root


def split_file(root: Path, split: str) -> Path:
    """ROOT/SPLIT.txt. Raises UserError naming the nearest split when it is not there."""
    path = root / f"{split}.txt"
    if not path.is_file():
        raise unknown_split(root, split, [file.stem for file in root.glob("*.txt")])
    return path


def unknown_split(root: Path, split: str, known: Sequence[str]) -> UserError:
    """The error for a split that does not exist, with the nearest of those that do."""
    there = ", ".join(sorted(known)) or "none; is this the right folder?"
    return UserError(f"{root}: no split {split!r}{nearest_hint(split, known)}; there: {there}")


def absent(listed: Sequence[str], present: set[str], folder: Path, source: str | Path) -> list[str]:
    """A line for every video that `source` names and `folder` lacks."""
    return [
        f"video {video}: named in {source}, but not in {folder}" for video in listed if video not in present
    ]


def _folder_dataset(
    records: list[FolderRecord], vocabulary: Vocabulary, root: Path, problems: list[str]
) -> VideoDataset:
    """The data set; labels are withheld from all of a split's videos or from none."""
    annotated = [record.annotated for record in records]
    if any(annotated):
        problems = problems + [
            f"video {record.id}: {record.masks}: no such folder, but other videos of the split have labels"
            for record, known in zip(records, annotated, strict=True)
            if not known
        ]
    return VideoDataset(records, vocabulary, root, problems)


def _listed(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if not name.startswith(".")] if folder.is_dir() else []
