"""The YouTube-VIS family, whose labels are one mask a frame for every object: YouTube-VIS, OVIS, LV-VIS."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkd.data.coco import read_json
from vlkd.data.files import need_folder
from vlkd.data.video.folders import absent, inner, unknown_split
from vlkd.data.video.masks import decode_mask
from vlkd.data.video.record import Form, Labels, Track, VideoDataset, VideoRecord, Vocabulary
from vlkd.errors import UserError
from vlkd.text.names import clean_names

# The folder that the root may hold, and below it where the JSON of a split {} may lie, and its frames
LAYOUTS = {
    "youtube_vis_2019": ("ytvis_2019", ("{}.json",), "{}/JPEGImages"),
    "youtube_vis_2021": ("ytvis_2021", ("{}.json",), "{}/JPEGImages"),
    "ovis": ("ovis", ("annotations/annotations_{}.json", "annotations_{}.json", "annotation_{}.json"), "{}"),
    "lvvis": ("LVVIS", ("{}/{}_instances.json", "Annotations/{}_instances.json"), "{}/JPEGImages"),
}
LVVIS_FIRST = 1212  # classes of LV-VIS as it was first announced; the released set has 1,196


@dataclass(frozen=True)
class StoredTrack:
    """An object as its file has it: {frame: segmentation}, decoded only when a mask is asked for."""

    id: int
    category: int
    masks: Mapping[int, Any]
    crowd: bool = False


class TrackRecord(VideoRecord):
    """A video whose objects are masks in some of its frames; `stored` is None where labels are withheld."""

    form: Form = "tracks"

    def __init__(
        self, id: str, vocabulary: Vocabulary, video_id: int | str, folder: Path, files: Sequence[str],
        size: tuple[int, int], stored: Sequence[StoredTrack] | None, labelled: Sequence[int] | None = None,
        fps: float | None = None, source: Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__(id, vocabulary, video_id)
        self.folder, self.files, self._size, self.stored, self.fps = folder, files, size, stored, fps
        self._labelled, self.source = labelled, source

    @cached_property
    def frame_files(self) -> tuple[Path, ...]:
        """The frames that the JSON lists."""
        return tuple(self.folder / name for name in self.files)

    @property
    def declared_size(self) -> tuple[int, int]:
        """(H, W) of the JSON."""
        return self._size

    @property
    def annotated(self) -> bool:
        """Whether the JSON has annotations, and they are not null."""
        return self.stored is not None

    @property
    def labelled(self) -> tuple[int, ...]:
        """The annotated frames: every frame, or those that the JSON names; () where labels are withheld."""
        if self.stored is None:
            return ()
        return tuple(range(len(self.files)) if self._labelled is None else self._labelled)

    @cached_property
    def tracks(self) -> tuple[Track, ...]:
        """The objects, in the JSON's order; their masks are decoded when asked for."""
        return tuple(
            Track(
                track.id,
                track.category,
                tuple(sorted(track.masks)),
                partial(self._decode, track),
                track.crowd,
            )
            for track in self.stored or ()
        )

    def read_labels(self, t: int) -> Labels:
        """Not for tracks, whose masks may overlap."""
        raise UserError(f"video {self.id}: its labels are tracks, not one label for each pixel")

    def _decode(self, track: StoredTrack, t: int) -> NDArray[np.bool_]:
        try:
            return decode_mask(track.masks[t], self._size)
        except UserError as error:
            raise UserError(
                f"video {self.id}, frame {t}: {self.source}: the mask of track {track.id} is {error}"
            ) from None


def open_tracks(kind: str, root: Path, split: str) -> VideoDataset:
    """A split of one of the LAYOUTS; "val" and "valid" stand for each other.

    Bounding boxes and areas of the JSON are not read: masks tell both. Raises UserError for a JSON of another
    shape and for LV-VIS's first release.
    """
    name, patterns, images = LAYOUTS[kind]
    base = inner(root, name)
    source, part = _source(base, split, patterns)
    content = read_json(source)
    vocabulary = vocabulary_of(content, source)
    if kind == "lvvis" and len(vocabulary.names) == LVVIS_FIRST:
        raise UserError(
            f"{source}: {LVVIS_FIRST} categories, as LV-VIS was first announced; get the release of 1,196"
        )
    frames = need_folder(base / images.format(part), f"the frames of {source.name}")
    try:
        return _read(content, vocabulary, source, frames)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source}: not a YouTube-VIS JSON (missing or wrong entry {error})") from None


def vocabulary_of(content: Mapping[str, Any], source: Path) -> Vocabulary:
    """Classes of a JSON's `categories`, in its order; novel are LV-VIS's partitions 2 and 3.

    Raises UserError when there are none, or two of one id.
    """
    try:
        entries = list(content["categories"])
        raw = tuple(str(entry["name"]) for entry in entries)
        ids = tuple(int(entry["id"]) for entry in entries)
        isthing = tuple(bool(entry.get("isthing", 1)) for entry in entries)
        novel = frozenset(i for i, entry in enumerate(entries) if entry.get("partition") in (2, 3))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source}: no usable categories (missing or wrong entry {error})") from None
    if not ids or len(set(ids)) < len(ids):
        raise UserError(f"{source}: expected categories with an id of their own each, found {len(ids)}")
    return Vocabulary(tuple(clean_names(raw)), raw, ids, isthing, novel=novel)


def _source(root: Path, split: str, patterns: Sequence[str]) -> tuple[Path, str]:
    """The split's JSON, and how its files spell the split."""
    other = {"val": "valid", "valid": "val"}.get(split, split)
    for part in (split, other):
        for pattern in patterns:
            if (path := root / pattern.replace("{}", part)).is_file():
                return path, part
    known = []
    for pattern in patterns:
        shape = re.escape(pattern).replace(r"\{\}", "(.+)", 1).replace(r"\{\}", r"\1")
        found = (path.relative_to(root).as_posix() for path in root.glob(pattern.replace("{}", "*")))
        known += [match[1] for name in found if (match := re.fullmatch(shape, name))]
    raise unknown_split(root, split, known)


def _read(content: dict[str, Any], vocabulary: Vocabulary, source: Path, frames: Path) -> VideoDataset:
    annotations = content.get("annotations")
    class_of = {id: index for index, id in enumerate(vocabulary.ids)}
    lengths = {video["id"]: len(video["file_names"]) for video in content["videos"]}
    stored: dict[Any, list[StoredTrack]] = {id: [] for id in lengths}
    problems: dict[Any, list[str]] = {}
    for entry in annotations or ():
        video = entry["video_id"]
        fault = _fault(entry, lengths, class_of)
        if fault:
            problems.setdefault(video, []).append(f"{source}: annotation {entry['id']} {fault}")
            continue
        masks = {t: mask for t, mask in enumerate(entry["segmentations"]) if mask}
        track = StoredTrack(
            int(entry["id"]), class_of[entry["category_id"]], masks, bool(entry.get("iscrowd", 0))
        )
        stored[video].append(track)
    present = set(os.listdir(frames))
    records = []
    missing = []
    lines = []
    for video in content["videos"]:
        files = [_last_two(name, source) for name in video["file_names"]]
        number = video["id"]
        id = files[0][0] if files else str(number)
        size = int(video["height"]), int(video["width"])
        if video.get("length", len(files)) != len(files) or not files:
            problems.setdefault(number, []).append(
                f"{source}: length {video.get('length')}, but {len(files)} file_names"
            )
        lines += [f"video {id}: {line}" for line in problems.pop(number, ())]
        missing.append(id)
        tracks = None if annotations is None else stored[number]
        names = [name for _, name in files]
        if id in present:
            records.append(
                TrackRecord(id, vocabulary, number, frames / id, names, size, tracks, source=source)
            )
    lines += [f"video {number}: {line}" for number, found in problems.items() for line in found]
    return VideoDataset(records, vocabulary, source, lines + absent(missing, present, frames, source))


def _fault(entry: Mapping[str, Any], lengths: Mapping[Any, int], class_of: Mapping[int, int]) -> str:
    """What is wrong with an annotation, "" when nothing."""
    if entry["video_id"] not in lengths:
        return "belongs to no video of the JSON"
    if entry["category_id"] not in class_of:
        return f"has category_id {entry['category_id']}, which its categories do not list"
    count, expected = len(entry["segmentations"]), lengths[entry["video_id"]]
    return "" if count == expected else f"has {count} segmentations, but the video has {expected} frames"


def _last_two(name: str, source: Path) -> tuple[str, str]:
    """(video, frame) of a file name, whatever stands before it and whichever slash is used."""
    parts = name.replace("\\", "/").split("/")
    if len(parts) < 2:
        raise UserError(f"{source}: file name {name!r}: expected VIDEO/FRAME.jpg")
    return parts[-2], parts[-1]


OPENERS: dict[str, Callable[[Path, str], VideoDataset]] = {
    kind: partial(open_tracks, kind) for kind in LAYOUTS
}
