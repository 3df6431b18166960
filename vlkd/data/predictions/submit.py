"""Submission zips of the benchmarks. What each layout was taken from: docs/predictions.md."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from vlkd.data.coco import read_json, read_listed
from vlkd.data.files import whole_file
from vlkd.data.predictions.check import check_predictions
from vlkd.data.predictions.layout import png_folder, stems
from vlkd.data.predictions.read import Predictions
from vlkd.data.predictions.store import frame_entry
from vlkd.data.sample import segment_index, void_label
from vlkd.data.video import VideoDataset, VideoRecord
from vlkd.data.video.masks import decode_mask, encode_mask
from vlkd.data.video.record import Form
from vlkd.errors import UserError
from vlkd.text.names import nearest_hint

ROW = ("video_id", "category_id", "score", "segmentations")


@dataclass(frozen=True)
class Submission:
    """How a benchmark wants predictions of one form: `write` fills the zip."""

    form: Form
    write: Callable[[Predictions, zipfile.ZipFile], None]


def write_submission(kind: str, root: str | Path, dataset: VideoDataset, path: str | Path) -> Path:
    """Write the predictions below `root` as the zip that a benchmark of SUBMISSIONS takes; its path.

    Raises UserError for an unknown kind, and for the first fault that check_predictions finds.
    """
    path = Path(path)
    if kind not in SUBMISSIONS:
        raise UserError(
            f"no submissions for {kind!r}{nearest_hint(kind, SUBMISSIONS)}; known: {', '.join(SUBMISSIONS)}"
        )
    if path.suffix != ".zip":
        raise UserError(f"{path}: a submission is a zip file; give a name that ends in .zip")
    submission = SUBMISSIONS[kind]
    if problems := check_predictions(root, dataset, [submission.form]):
        count = len(problems) - 1
        more = f" (and {count} more: vlkd data check --predictions lists all)" if count else ""
        raise UserError(f"{problems[0]}{more}")
    with whole_file(path) as part, zipfile.ZipFile(part, "w") as archive:
        submission.write(Predictions(root, dataset), archive)
    return path


def _vspw(predictions: Predictions, archive: zipfile.ZipFile) -> None:
    """VIDEO/FRAME.png, classes from 0. The evaluator counts any other value as some other class."""
    for record in _each(predictions):
        for stem in stems(record):
            path = png_folder(predictions.root, "semantic", record.id) / f"{stem}.png"
            if (predictions.labels(record, path) == void_label(len(record.names))).any():
                raise UserError(
                    f"video {record.id}: {path}: pixels without a class; VSPW takes a class for every pixel"
                )
            _copy(archive, path, f"{record.id}/{stem}.png")


def _vipseg(predictions: Predictions, archive: zipfile.ZipFile) -> None:
    """pan_pred/VIDEO/FRAME.png and pred.json, which lists just the ids that a PNG has."""

    def entries() -> Iterator[dict[str, Any]]:
        for record in _each(predictions):
            listed = predictions.segments(record)
            frames = []
            for stem in stems(record):
                path = png_folder(predictions.root, "panoptic", record.id) / f"{stem}.png"
                ids, found = read_listed(path, listed[stem], predictions.panoptic_source(record))
                areas = np.bincount(segment_index(ids, found).ravel(), minlength=len(found))
                segments = [
                    {
                        "id": segment.id,
                        "category_id": record.vocabulary.ids[segment.category],
                        "iscrowd": 0,
                        "area": int(area),
                    }
                    for segment, area in zip(found, areas, strict=False)  # the last area is that of nothing
                ]
                frames.append(frame_entry(stem, segments))
                _copy(archive, path, f"pan_pred/{record.id}/{stem}.png")
            yield {"video_id": record.id, "annotations": frames}

    # A zip takes one file at a time: the JSON waits until all PNGs are in.
    kept = list(entries())
    _write_json(archive, "pred.json", '{"annotations": ', kept, "}")


def _results(predictions: Predictions, archive: zipfile.ZipFile) -> None:
    """results.json, not in a folder: the rows of all videos."""
    rows = (
        {key: row[key] for key in ROW} for record in _each(predictions) for row in predictions.results(record)
    )
    _write_json(archive, "results.json", "", rows, "")


def _burst(predictions: Predictions, archive: zipfile.ZipFile) -> None:
    """predictions.json: the annotation file with the predicted tracks in place of its own."""
    content = read_json(predictions.dataset.source)
    records = {record.video_id: record for record in _each(predictions)}
    sequences = (
        {**sequence, **_burst_tracks(records[sequence["id"]], predictions.results(records[sequence["id"]]))}
        for sequence in content["sequences"]
        if sequence["id"] in records
    )
    rest = {key: value for key, value in content.items() if key != "sequences"}
    head = json.dumps(rest)[:-1] + (", " if rest else "")
    _write_json(archive, "predictions.json", f'{head}"sequences": ', sequences, "}")


def _burst_tracks(record: VideoRecord, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The two entries of a sequence; an empty mask must not be written, it would count as a detection."""
    categories: dict[str, int] = {}
    frames: list[dict[str, Any]] = [{} for _ in record.labelled]
    for track, row in enumerate(rows, 1):
        for frame, t in zip(frames, record.labelled, strict=True):
            segmentation = row["segmentations"][t]
            if segmentation and not _is_compressed(segmentation):
                segmentation = encode_mask(decode_mask(segmentation, record.size))
            if segmentation and coco.area(segmentation):
                frame[str(track)] = {"rle": segmentation["counts"], "is_gt": False, "score": row["score"]}
                categories[str(track)] = row["category_id"]
    return {"track_category_ids": categories, "segmentations": frames}


def _is_compressed(segmentation: Any) -> bool:
    return isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)


def _each(predictions: Predictions) -> Iterator[VideoRecord]:
    """The videos, with progress on stderr."""
    from rich.console import Console
    from rich.progress import track

    return iter(track(predictions.dataset, "writing", console=Console(stderr=True), transient=True))


def _copy(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    archive.writestr(zipfile.ZipInfo(name), path.read_bytes())  # PNGs do not get smaller


def _write_json(archive: zipfile.ZipFile, name: str, head: str, items: Iterable[Any], tail: str) -> None:
    """Write a JSON file with a list in it, one item in memory at a time."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(entry, "w", force_zip64=True) as file:
        file.write(f"{head}[".encode())
        for number, item in enumerate(items):
            file.write(((",\n" if number else "\n") + json.dumps(item)).encode())
        file.write(f"]{tail}".encode())


_tracks = Submission("tracks", _results)
SUBMISSIONS = {
    "vspw": Submission("semantic", _vspw),
    "vipseg": Submission("panoptic", _vipseg),
    "youtube_vis_2019": _tracks,
    "youtube_vis_2021": _tracks,
    "ovis": _tracks,
    "lvvis": _tracks,
    "burst": Submission("tracks", _burst),
}
