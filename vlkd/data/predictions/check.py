"""Finding what is wrong with video predictions before anything is scored or sent."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from vlkd.data.check import check_dataset
from vlkd.data.predictions.layout import DONE, WHOLE, json_file, png_folder, stems
from vlkd.data.predictions.read import Predictions
from vlkd.data.video import VideoDataset, VideoRecord
from vlkd.data.video.record import Form, VideoView
from vlkd.errors import UserError

MODES: dict[Form, tuple[str, ...]] = {"semantic": ("P", "L", "1", "I", "I;16"), "panoptic": ("RGB", "RGBA")}


def check_predictions(
    root: str | Path, dataset: VideoDataset, forms: Sequence[Form] | None = None
) -> list[str]:
    """Everything wrong with the predictions below `root` for a data set, one line each.

    `forms` must be there, and the others are not looked at; if not given, all that are there. Found are
    unknown and unfinished videos, frames without a file and files without a frame, sizes, ids that the JSON
    lacks, classes that do not exist. Names and counts come first, and nothing else is read where they fail;
    of panoptic PNGs all pixels are read, of semantic ones those of each video's first frame and else the
    headers. Progress goes to stderr.
    """
    try:
        predictions = Predictions(root, dataset)
        forms = predictions.forms if forms is None else forms
        if lost := [form for form in forms if form not in predictions.forms]:
            return [f"{predictions.root / form}: not found; expected {form} predictions" for form in lost]
        problems = _unknown_videos(predictions, forms)
        problems += [line for record in dataset for line in _names(predictions, record, forms)]
    except UserError as error:
        return [str(error)]
    return problems or check_dataset(_Contents(predictions, forms), "checking predictions")


class _Contents:
    """What the files of each video hold, for check_dataset."""

    def __init__(self, predictions: Predictions, forms: Sequence[Form]) -> None:
        self.predictions, self.forms = predictions, forms

    def __len__(self) -> int:
        return len(self.predictions.dataset)

    def check(self, index: int) -> list[str]:
        record = self.predictions.dataset[index]
        problems: list[str] = []
        for form in self.forms if len(record) else ():  # a subset may leave a video without a frame
            try:
                problems += _CONTENT[form](self.predictions, record)
            except UserError as error:
                problems.append(str(error))
        return problems


def _semantic(predictions: Predictions, record: VideoRecord) -> list[str]:
    if problems := _headers(predictions, record, "semantic"):
        return problems
    first = png_folder(predictions.root, "semantic", record.id) / f"{stems(record)[0]}.png"
    predictions.labels(record, first)
    return []


def _panoptic(predictions: Predictions, record: VideoRecord) -> list[str]:
    if problems := _headers(predictions, record, "panoptic"):
        return problems
    for stem, listed in predictions.segments(record).items():
        try:
            predictions.segment_ids(record, stem, listed)
        except UserError as error:
            problems.append(str(error))
    return problems


def _tracks(predictions: Predictions, record: VideoRecord) -> list[str]:
    predictions.results(record)
    return []


_CONTENT = {"semantic": _semantic, "panoptic": _panoptic, "tracks": _tracks}


def _headers(predictions: Predictions, record: VideoRecord, form: Form) -> list[str]:
    """Faults of size and mode, from the headers of a video's PNGs."""
    height, width = record.size
    problems = []
    for stem in stems(record):
        path = png_folder(predictions.root, form, record.id) / f"{stem}.png"
        try:
            with Image.open(path) as image:
                size, mode = image.size, image.mode
        except OSError as error:
            reason = str(error) if path.stat().st_size else "0 bytes"
            problems.append(f"video {record.id}: {path}: cannot be read ({reason})")
            continue
        if size != (width, height):
            found = f"{size[0]}x{size[1]} pixels, but the video has {width}x{height}"
            problems.append(f"video {record.id}: {path}: {found}")
        if mode not in MODES[form]:
            expected = "one channel of class numbers" if form == "semantic" else "ids as RGB colours"
            problems.append(f"video {record.id}: {path}: an image of mode {mode}; expected {expected}")
    return problems


def _names(predictions: Predictions, record: VideoRecord, forms: Sequence[Form]) -> Iterator[str]:
    """Faults of one video that its file names tell."""
    done = json_file(predictions.root, DONE, record.id)
    if (predictions.root / DONE).is_dir() and not done.is_file():
        yield f"video {record.id}: {done}: not found, so its prediction is not finished; continue it"
        return
    predictions.ms(record)
    wanted = stems(record)
    whole = stems(record.record) if isinstance(record, VideoView) else wanted
    for form in forms:
        if form == "tracks":
            if not predictions.has(form, record):
                yield f"video {record.id}: {json_file(predictions.root, form, record.id)}: not found"
            continue
        folder = png_folder(predictions.root, form, record.id)
        found = {Path(name).stem for name in _listed(folder) if name.endswith(".png")}
        if wanted and not found:
            yield f"video {record.id}: {folder}: no predictions there"
            continue
        where = f"video {record.id}: {folder}"
        if lost := [stem for stem in wanted if stem not in found]:
            yield f"{where}: no prediction for {len(lost)} of {len(wanted)} frames, first {lost[0]}.png"
        if extra := sorted(found - set(whole)):
            yield f"{where}: files that belong to no frame: {len(extra)}, first {extra[0]}.png"


def _unknown_videos(predictions: Predictions, forms: Sequence[Form]) -> list[str]:
    """A line for every video that is predicted and not in the data set."""
    root, known = predictions.root, {record.id for record in predictions.dataset}
    places: dict[str, Path] = {}
    for form in forms:
        for folder, _, files in os.walk(root / form):
            place = Path(folder)
            video = place.relative_to(root / form).as_posix()
            if any(name.endswith(".png") for name in files):
                places.setdefault(video, place)
            for name in files:
                if name.endswith(".json") and name != WHOLE.get(form):
                    id = (place / name).relative_to(root / form).with_suffix("").as_posix()
                    places.setdefault(id, place / name)
    lines = [
        f"video {video}: {place}: no such video in {predictions.dataset.source}"
        for video, place in sorted(places.items())
        if video not in known
    ]
    return lines + predictions.strangers(forms)


def _listed(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
