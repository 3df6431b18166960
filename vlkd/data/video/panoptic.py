"""VIPSeg after its 720P conversion: a panoptic JSON, RGB masks whose colours are track ids, and frames."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vlkd.data.coco import listed_segments, read_json, read_listed
from vlkd.data.files import need_folder
from vlkd.data.folder import read_stems
from vlkd.data.sample import Segment
from vlkd.data.video.folders import (
    FolderRecord,
    VipsegValues,
    absent,
    open_vipseg_raw,
    raw_vocabulary,
    unknown_split,
)
from vlkd.data.video.record import Form, Labels, VideoDataset, VideoRecord, Vocabulary
from vlkd.data.video.tracks import vocabulary_of
from vlkd.errors import UserError


class PanopticRecord(VideoRecord):
    """The frames that the JSON lists for a video, and the segments it lists for each of them."""

    form: Form = "panoptic"

    def __init__(
        self, id: str, vocabulary: Vocabulary, root: Path, source: Path, images: Sequence[Mapping[str, Any]],
        listed: Mapping[str, list[Segment]] | None,
    ) -> None:  # fmt: skip
        super().__init__(id, vocabulary)
        self.root, self.source, self.listed = root, source, listed
        self.stems = [str(image["id"]) for image in images]
        self._size = (int(images[0]["height"]), int(images[0]["width"]))

    @cached_property
    def frame_files(self) -> tuple[Path, ...]:
        """images/VIDEO/ID.jpg for every image of the JSON."""
        return tuple(self.root / "images" / self.id / f"{stem}.jpg" for stem in self.stems)

    @property
    def declared_size(self) -> tuple[int, int]:
        """(H, W) of the JSON's first image."""
        return self._size

    @property
    def annotated(self) -> bool:
        """Whether the JSON has annotations, and they are not null."""
        return self.listed is not None

    @cached_property
    def labelled(self) -> tuple[int, ...]:
        """Every frame, or none. Raises UserError for images that the annotation lacks."""
        if self.listed is None:
            return ()
        if lacking := [stem for stem in self.stems if stem not in self.listed]:
            raise UserError(
                f"video {self.id}: {self.source}: {len(self.stems)} images, but {len(self.listed)} annotated "
                f"ones: {lacking[0]} has no annotation"
            )
        return tuple(range(len(self.stems)))

    def read_labels(self, t: int) -> Labels:
        """Segments with the JSON's ids. Raises UserError for an id that the JSON does not list."""
        assert self.listed is not None
        path = self.root / "panomasksRGB" / self.id / f"{self.stems[t]}.png"
        return read_listed(path, self.listed[self.stems[t]], self.source)

    def _listed(self, t: int) -> Sequence[Segment]:
        return () if self.listed is None else self.listed[self.stems[t]]


def open_vipseg(root: Path, split: str) -> VideoDataset:
    """VIPSeg in either form: with a panoptic_gt_VIPSeg*.json it is the 720P one."""
    files = sorted(root.glob("panoptic_gt_VIPSeg*.json"))
    if not files and not (root / "images").is_dir():
        return open_vipseg_raw(root, split)
    own = root / f"panoptic_gt_VIPSeg_{split}.json"
    chosen = root / f"{split}.txt"
    if own.is_file():
        return _from_json(root, own, None)
    whole = root / "panoptic_gt_VIPSeg.json"
    if chosen.is_file() and whole.is_file():
        return _from_json(root, whole, read_stems(chosen))
    if chosen.is_file() and split == "test":
        return _without_labels(root, read_stems(chosen))
    known = {file.stem.removeprefix("panoptic_gt_VIPSeg_") for file in files if file != whole}
    raise unknown_split(root, split, sorted(known | {file.stem for file in root.glob("*.txt")}))


def _without_labels(root: Path, listed: list[str]) -> VideoDataset:
    vocabulary = raw_vocabulary(root, first=0)
    present = set(os.listdir(need_folder(root / "images", "the frames of VIPSeg_720P")))
    read = VipsegValues(vocabulary.isthing)
    records = [
        FolderRecord(id, vocabulary, root / "images" / id, None, "panoptic", read)
        for id in listed
        if id in present
    ]
    return VideoDataset(records, vocabulary, root, absent(listed, present, root / "images", "test.txt"))


def _from_json(root: Path, source: Path, chosen: list[str] | None) -> VideoDataset:
    content = read_json(source)
    vocabulary = vocabulary_of(content, source)
    class_of = {id: index for index, id in enumerate(vocabulary.ids)}
    try:
        videos = {str(video["video_id"]): video["images"] for video in content["videos"]}
        annotations = content.get("annotations")
        given = {str(entry["video_id"]): entry["annotations"] for entry in annotations or ()}
        listed: dict[str, dict[str, list[Segment]]] = {}
        problems: list[str] = []
        for id, entries in given.items():
            stems = {str(image["id"]) for image in videos.get(id, ())}
            problems += [
                f"video {id}: {source}: annotated image {entry['image_id']} is not among its images"
                for entry in entries
                if str(entry["image_id"]) not in stems
            ]
            listed[id] = {}
            for entry in entries:
                try:
                    found = listed_segments(entry, class_of, vocabulary.isthing, source)
                    listed[id][str(entry["image_id"])] = found
                except UserError as error:
                    problems.append(f"video {id}: {error}")
        present = set(os.listdir(need_folder(root / "images", "the frames of VIPSeg_720P")))
        wanted = list(videos) if chosen is None else chosen
        problems += [f"video {id}: {source}: no such video in the JSON" for id in wanted if id not in videos]
        problems += absent([id for id in wanted if id in videos], present, root / "images", source)
        records = [
            PanopticRecord(
                id, vocabulary, root, source, videos[id], None if annotations is None else listed.get(id, {})
            )
            for id in wanted
            if id in videos and id in present
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{source}: not a VIPSeg panoptic JSON (missing or wrong entry {error})") from None
    return VideoDataset(records, vocabulary, source, problems)
