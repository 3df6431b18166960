"""Writing video predictions: a folder that grows video by video, and is continued where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlkd.data.coco import read_json
from vlkd.data.predictions.layout import (
    DONE,
    FORMAT,
    FORMS,
    HEADER,
    LARGEST,
    json_file,
    png_folder,
    stems,
    write_json,
)
from vlkd.data.sample import void_label
from vlkd.data.video import VideoDataset, VideoRecord
from vlkd.data.video.record import Form
from vlkd.errors import UserError

FIXED = ("format", "names", "forms", "settings")  # entries of the header that a continued folder must share


class PredictionWriter:
    """Writes predictions for the videos of a data set below `root`, a video at a time.

    Args:
        root: the folder, made when absent.
        header: facts to keep in its predictions.json; `settings` says what the predictions depend on.
        dataset: the videos; its class names go into the header.
        forms: which of FORMS every video gets.
        overwrite: start anew, whatever predictions the folder holds.

    Raises UserError for predictions made with other settings, and for a folder in use for other things.
    """

    def __init__(
        self,
        root: str | Path,
        header: Mapping[str, Any],
        dataset: VideoDataset,
        forms: Sequence[Form],
        *,
        overwrite: bool = False,
    ) -> None:
        if not forms or set(forms) - set(FORMS):
            raise ValueError(f"forms {list(forms)}: expected some of {FORMS}")
        self.root, self.forms = Path(root), tuple(form for form in FORMS if form in forms)
        facts = {"format": FORMAT, "names": list(dataset.names), "forms": list(self.forms)}
        self.header = {"settings": {}, **header, **facts}
        self._prepare(dataset, overwrite)

    def is_done(self, record: VideoRecord) -> bool:
        """Whether everything of the video is there."""
        return json_file(self.root, DONE, record.id).is_file()

    @contextmanager
    def video(self, record: VideoRecord) -> Iterator[VideoSink]:
        """A sink for one video, which counts as done when the block ends well; else nothing of it counts."""
        json_file(self.root, DONE, record.id).unlink(missing_ok=True)
        sink = VideoSink(self.root, record, self.forms)
        yield sink
        sink.finish()

    def _prepare(self, dataset: VideoDataset, overwrite: bool) -> None:
        path = self.root / HEADER
        parts = [self.root / name for name in (DONE, *FORMS)]  # deleted in this order: nothing stays done
        if path.is_file():
            found = read_json(path)
            changed = [key for key in FIXED if found.get(key) != _plain(self.header.get(key))]
            if changed and not overwrite:
                raise UserError(
                    f"{path}: predictions made with other {_difference(found, self.header, changed[0])}; "
                    "choose another folder, or replace them with --overwrite"
                )
            for part in parts if overwrite else ():
                shutil.rmtree(part, ignore_errors=True)
            if all(self.is_done(record) for record in dataset):
                self.header = found  # nothing is left to be predicted, here and now or otherwise
        elif used := [part for part in parts if part.exists()]:
            raise UserError(
                f"{used[0]} is there, but no {HEADER}: not a folder that predictions were written to; "
                "choose another"
            )
        for name in (*self.forms, DONE):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        write_json(path, self.header)


class VideoSink:
    """Takes the frames of one video in any order, and its tracks."""

    def __init__(self, root: Path, record: VideoRecord, forms: Sequence[Form]) -> None:
        self.root, self.record, self.forms = root, record, forms
        self.stems = stems(record)
        self.void = void_label(len(record.names))
        self.ms: dict[int, float] = {}
        self.segments: dict[int, list[dict[str, int]]] = {}
        self.categories: dict[int, int] = {}
        self.rows: list[dict[str, Any]] | None = None
        for form in set(forms) & {"semantic", "panoptic"}:
            folder = png_folder(root, form, record.id)
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("*.png"):
                old.unlink()

    def frame(
        self,
        t: int,
        labels: NDArray[Any] | None = None,
        segments: NDArray[Any] | None = None,
        categories: Mapping[int, int] | None = None,
        ms: float = 0.0,
    ) -> None:
        """Write frame t: `labels` (H,W) class indices or void, `segments` (H,W) ids, 0 = nothing.

        `categories` is {id: class index}; ids without a pixel are left out. `ms` are the milliseconds spent.
        What a form does not need is not written. Raises UserError, naming video and frame, for another size,
        for classes and ids that cannot be, and for an id that changes its class.
        """
        if "semantic" in self.forms:
            if labels is None:
                raise ValueError(f"frame {t}: no labels")
            self._write_labels(t, self._fitting(t, labels))
        if "panoptic" in self.forms:
            if segments is None or categories is None:
                raise ValueError(f"frame {t}: no segments or no categories")
            self._write_segments(t, self._fitting(t, segments), categories)
        self.ms[t] = float(ms)

    def tracks(self, tracks: Sequence[tuple[int, float, Sequence[Any]]]) -> None:
        """Take (class index, score, segmentations): an RLE {"size", "counts"} or None for each of T frames.

        Raises UserError, naming the video, for another count or size and for classes that do not exist.
        """
        self.rows = [
            track_row(self.record, category, score, segmentations)
            for category, score, segmentations in tracks
            if any(segmentations)
        ]

    def finish(self) -> None:
        """Write what holds for the whole video. Raises ValueError where frames or tracks were not given."""
        wanted = range(len(self.stems))
        if set(self.forms) != {"tracks"} and (lost := set(wanted) - set(self.ms)):
            raise ValueError(f"video {self.record.id}: frame {min(lost)} was not given")
        if "panoptic" in self.forms:
            entries = [frame_entry(self.stems[t], self.segments[t]) for t in wanted]
            content = {"video_id": self.record.id, "annotations": entries}
            write_json(json_file(self.root, "panoptic", self.record.id), content)
        if "tracks" in self.forms:
            if self.rows is None:
                raise ValueError(f"video {self.record.id}: no tracks were given")
            write_json(json_file(self.root, "tracks", self.record.id), self.rows)
        done = {"frames": len(self.stems), "ms": [self.ms.get(t, 0.0) for t in wanted]}
        write_json(json_file(self.root, DONE, self.record.id), done)

    def _write_labels(self, t: int, labels: NDArray[Any]) -> None:
        classes = np.where(labels == self.void, 0, labels)
        if classes.min() < 0 or classes.max() >= len(self.record.names):
            raise self._error(
                t,
                f"labels from {classes.min()} to {classes.max()}; there are {len(self.record.names)} classes",
            )
        write_labels(self._png("semantic", t), labels, self.void)

    def _write_segments(self, t: int, segments: NDArray[Any], categories: Mapping[int, int]) -> None:
        ids, areas = np.unique(segments, return_counts=True)
        if ids[0] < 0 or ids[-1] > LARGEST:
            raise self._error(t, f"segment ids from {ids[0]} to {ids[-1]}; expected 0 (nothing) to {LARGEST}")
        found = []
        for id, area in zip(ids.tolist(), areas.tolist(), strict=True):
            if not id:
                continue
            if id not in categories:
                raise self._error(t, f"segment id {id} has no category")
            category = int(categories[id])
            if not 0 <= category < len(self.record.names):
                raise self._error(
                    t, f"segment {id} is of class {category}; there are {len(self.record.names)} classes"
                )
            if self.categories.setdefault(id, category) != category:
                old, new = self.record.names[self.categories[id]], self.record.names[category]
                raise self._error(t, f'segment {id} is "{new}", but was "{old}"; an id keeps its class')
            number = self.record.vocabulary.ids[category]
            found.append({"id": id, "category_id": number, "iscrowd": 0, "area": area})
        self.segments[t] = found
        write_ids(self._png("panoptic", t), segments)

    def _png(self, form: Form, t: int) -> Path:
        return png_folder(self.root, form, self.record.id) / f"{self.stems[t]}.png"

    def _fitting(self, t: int, array: NDArray[Any]) -> NDArray[Any]:
        if not 0 <= t < len(self.stems):
            raise ValueError(f"video {self.record.id}: frame {t} of {len(self.stems)}")
        if array.shape != self.record.size:
            height, width = self.record.size
            raise self._error(
                t, f"a prediction of {array.shape[::-1]}; the video has {width}x{height} pixels"
            )
        return array

    def _error(self, t: int, what: str) -> UserError:
        return UserError(f"video {self.record.id}, frame {t}: {what}")


def track_row(
    record: VideoRecord, category: int, score: float, segmentations: Sequence[Any]
) -> dict[str, Any]:
    """One result of YouTube-VIS's form. Raises UserError as VideoSink.tracks."""
    if not 0 <= category < len(record.names):
        raise UserError(
            f"video {record.id}: a track of class {category}; there are {len(record.names)} classes"
        )
    if len(segmentations) != len(record):
        raise UserError(
            f"video {record.id}: a track of {len(segmentations)} segmentations; it has {len(record)} frames"
        )
    size = list(record.size)
    if wrong := [mask["size"] for mask in segmentations if mask and list(mask["size"]) != size]:
        raise UserError(f"video {record.id}: a mask of size {list(wrong[0])}; its frames have {size}")
    return {
        "video_id": record.video_id,
        "category_id": record.vocabulary.ids[category],
        "score": float(score),
        "segmentations": [mask or None for mask in segmentations],
    }


def frame_entry(stem: str, segments: list[dict[str, int]]) -> dict[str, Any]:
    """One frame of a panoptic JSON of VIPSeg's form."""
    return {"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments}


def write_labels(path: Path, labels: NDArray[Any], void: int) -> None:
    """Write labels (H,W) as indexed PNG, as 16-bit grey where void is beyond 255."""
    if void > 255:
        Image.fromarray(labels.astype(np.uint16)).save(path)
        return
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(_palette().tobytes())
    image.save(path)


def write_ids(path: Path, ids: NDArray[Any]) -> None:
    """Write segment ids (H,W) as RGB PNG, id = R + 256 G + 65536 B."""
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1)
    Image.fromarray(colours.astype(np.uint8)).save(path)


def _palette() -> NDArray[np.uint8]:
    """Colours (256,3) in which neighbouring indices differ: the bits of an index, PASCAL VOC's rule."""
    index = np.arange(256)[:, None]
    colours = np.zeros((256, 3), dtype=np.int64)
    for level in range(8):
        colours |= (index >> (3 * level + np.arange(3)) & 1) << (7 - level)
    return colours.astype(np.uint8)


def _plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(value))


def _difference(found: Mapping[str, Any], ours: Mapping[str, Any], key: str) -> str:
    """The first thing that differs, with both values where they are short."""
    old, new = found.get(key), ours.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
        name = next(name for name in {**old, **new} if old.get(name) != _plain(new.get(name)))
        return f"{key}: {name} was {old.get(name)!r} and is {new.get(name)!r}"
    return f"{key}: {old} and not {new}" if key != "names" else "class names"
