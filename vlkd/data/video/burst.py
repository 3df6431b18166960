"""BURST: sparse masks on TAO's videos, LVIS class ids, track ids as strings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlkd.data.coco import read_json
from vlkd.data.files import need_folder
from vlkd.data.video.folders import absent, unknown_split
from vlkd.data.video.record import VideoDataset, Vocabulary
from vlkd.data.video.tracks import StoredTrack, TrackRecord, vocabulary_of
from vlkd.errors import UserError

PARTS = ("all", "common", "uncommon")  # the classes of a split's annotation files


class BurstRecord(TrackRecord):
    """A sequence; `negative` are classes that it certainly lacks, `not_exhaustive` those labelled in part."""

    negative: frozenset[int] = frozenset()
    not_exhaustive: frozenset[int] = frozenset()


def open_burst(root: Path, split: str, part: str = "all") -> VideoDataset:
    """annotations/SPLIT/PART_classes.json and images/SPLIT/DATASET/SEQUENCE/; PART is one of PARTS.

    Raises UserError for a JSON of another shape.
    """
    folder = root / "annotations" / split
    if not folder.is_dir():
        base = need_folder(root / "annotations", "BURST's annotations, a folder for each split")
        raise unknown_split(root, split, [entry.name for entry in base.iterdir() if entry.name != "info"])
    source = folder / f"{part}_classes.json"
    content = read_json(source)
    vocabulary = vocabulary_of(content, source)
    frames = need_folder(root / "images" / split, "TAO's frames of the split")
    present = {
        f"{entry.name}/{name}" for entry in os.scandir(frames) if entry.is_dir() for name in os.listdir(entry)
    }
    problems: list[str] = []
    ids: list[str] = []
    records = []
    try:
        for sequence in content["sequences"]:
            ids.append(f"{sequence['dataset']}/{sequence['seq_name']}")
            if ids[-1] in present:
                records.append(_record(sequence, ids[-1], vocabulary, source, frames, problems))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source}: not a BURST JSON (missing or wrong entry {error})") from None
    return VideoDataset(records, vocabulary, source, problems + absent(ids, present, frames, source))


def _record(
    sequence: Mapping[str, Any],
    id: str,
    vocabulary: Vocabulary,
    source: Path,
    frames: Path,
    problems: list[str],
) -> BurstRecord:
    """One sequence; what is wrong with it is appended to `problems`."""
    class_of = {category: index for index, category in enumerate(vocabulary.ids)}
    files = [_base_name(path) for path in sequence["all_image_paths"]]
    annotated = [_base_name(path) for path in sequence["annotated_image_paths"]]
    size = int(sequence["height"]), int(sequence["width"])
    masks = sequence.get("segmentations")
    position = {name: t for t, name in enumerate(files)}
    faults = [
        f"annotated frame {name} is not among all_image_paths" for name in annotated if name not in position
    ]
    if masks is not None and len(masks) != len(annotated):
        faults.append(f"{len(masks)} segmentations, but {len(annotated)} annotated frames")
    known = {
        name: class_of.get(number) for name, number in (sequence.get("track_category_ids") or {}).items()
    }
    faults += [
        f"track {name} has category_id {sequence['track_category_ids'][name]}, which is in no category"
        for name, category in known.items()
        if category is None
    ]
    found: dict[str, dict[int, Any]] = {}
    for name, shown in zip(annotated, masks or (), strict=False):
        for track, entry in shown.items():
            if track not in known:
                faults.append(f"track {track} in frame {name} is not in track_category_ids")
            elif name in position:
                rle = {"size": list(size), "counts": entry["rle"]}
                found.setdefault(track, {})[position[name]] = rle
    stored = [
        StoredTrack(int(name), category, found[name])
        for name, category in known.items()
        if category is not None and name in found
    ]
    problems += [f"video {id}: {source}: {fault}" for fault in faults]
    record = BurstRecord(
        id,
        vocabulary,
        sequence["id"],
        frames / id,
        files,
        size,
        None if masks is None else stored,
        sorted(position[name] for name in annotated if name in position),
        float(sequence["fps"]) if sequence.get("fps") else None,
        source,
    )
    record.negative = _classes(sequence.get("neg_category_ids"), class_of)
    record.not_exhaustive = _classes(sequence.get("not_exhaustive_category_ids"), class_of)
    return record


def _classes(ids: list[int] | None, class_of: Mapping[int, int]) -> frozenset[int]:
    return frozenset(class_of[id] for id in ids or () if id in class_of)


def _base_name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]
