"""Reading video predictions, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkd.data.coco import listed_segments, read_json, read_listed
from vlkd.data.files import need_folder, read_labels
from vlkd.data.predictions.layout import (
    DONE,
    FORMAT,
    FORMS,
    HEADER,
    LARGEST,
    WHOLE,
    json_file,
    png_folder,
    stems,
)
from vlkd.data.predictions.rows import row_fault
from vlkd.data.sample import Segment, void_label
from vlkd.data.video import VideoDataset, VideoRecord
from vlkd.data.video.record import Form
from vlkd.errors import UserError

HEADER_ENTRIES = {"names": list, "settings": dict, "machine": dict}


class Predictions:
    """The predictions below `root` for the videos of a data set, read a video at a time.

    Raises UserError for a folder that is absent or empty, and for a header with other class names.
    """

    def __init__(self, root: str | Path, dataset: VideoDataset) -> None:
        self.root, self.dataset = need_folder(Path(root), "video predictions (docs/predictions.md)"), dataset
        self.header: dict[str, Any] = read_json(self.root / HEADER) if (self.root / HEADER).is_file() else {}
        if (version := self.header.get("format", FORMAT)) != FORMAT:
            raise UserError(f"{self.root / HEADER}: format {version!r}; this version reads {FORMAT}")
        for key, kind in HEADER_ENTRIES.items():
            if not isinstance(self.header.get(key, kind()), kind):
                expected = "a list" if kind is list else "an object"
                raise UserError(f"{self.root / HEADER}: {key}: expected {expected}; correct or remove it")
        names = self.header.get("names")
        if names is not None and list(names) != list(dataset.names):
            raise UserError(
                f"{self.root / HEADER}: predictions in {len(names)} classes that are not the "
                f"{len(dataset.names)} of {dataset.source}; score them on the data set they were made for"
            )
        self.forms: tuple[Form, ...] = tuple(form for form in FORMS if (self.root / form).is_dir())
        if not self.forms:
            raise UserError(f"{self.root}: no predictions; expected a folder {', '.join(FORMS)} (or several)")
        self._class_of = {id: index for index, id in enumerate(dataset.vocabulary.ids)}

    @cached_property
    def complete(self) -> list[str]:
        """Ids of the videos that have every form, and are finished where the folder says which are."""
        return [record.id for record in self.dataset if self._is_complete(record)]

    def has(self, form: Form, record: VideoRecord) -> bool:
        """Whether there is a file or folder of a form for the video."""
        if form == "tracks":
            whole = self.root / "tracks" / WHOLE["tracks"]
            return json_file(self.root, form, record.id).is_file() or whole.is_file()
        return png_folder(self.root, form, record.id).is_dir()

    def ms(self, record: VideoRecord) -> list[float]:
        """Milliseconds (T,) spent on each frame; [] where that was not kept. Raises UserError for others."""
        path = json_file(self.root, DONE, record.id)
        ms = _named(record, read_json, path).get("ms", []) if path.is_file() else []
        if not isinstance(ms, list) or not all(isinstance(one, int | float) for one in ms):
            raise UserError(f"video {record.id}: {path}: ms: expected a list of numbers, one for each frame")
        return [float(one) for one in ms]

    def semantic(self, record: VideoRecord) -> NDArray[Any]:
        """Class indices (T,H,W), uint8 or uint16, void_label(K) where nothing was predicted.

        Raises UserError, naming video and file, for files that are absent, of another size, or with values
        that are no class.
        """
        void = void_label(len(record.names))
        labels = np.empty((len(record), *record.size), dtype=np.uint8 if void < 256 else np.uint16)
        for t, stem in enumerate(stems(record)):
            path = png_folder(self.root, "semantic", record.id) / f"{stem}.png"
            labels[t] = self.labels(record, path)
        return labels

    def labels(self, record: VideoRecord, path: Path) -> NDArray[Any]:
        """Class indices (H,W) of one file of a video. Raises UserError as `semantic`."""
        values = self._fitting(record, path, _named(record, read_labels, path))
        void, count = void_label(len(record.names)), len(record.names)
        over = values[(values >= count) & (values != void)]
        if over.size:
            raise UserError(
                f"video {record.id}: {path}: value {over.max()}; expected classes 0 to {count - 1}, "
                f"and {void} for nothing"
            )
        return values

    def panoptic(self, record: VideoRecord) -> tuple[NDArray[np.int32], dict[int, int]]:
        """Segment ids (T,H,W), 0 = nothing, and {id: class index}.

        Raises UserError, naming video and file, for files that are absent or of another size, ids that the
        JSON lacks, and an id that changes its class.
        """
        listed = self.segments(record)
        ids = np.empty((len(record), *record.size), dtype=np.int32)
        for t, stem in enumerate(stems(record)):
            ids[t] = self.segment_ids(record, stem, listed[stem])
        categories = {segment.id: segment.category for found in listed.values() for segment in found}
        return ids, categories

    def segment_ids(self, record: VideoRecord, stem: str, listed: list[Segment]) -> NDArray[np.int32]:
        """Segment ids (H,W) of one frame. Raises UserError as `panoptic`."""
        path = png_folder(self.root, "panoptic", record.id) / f"{stem}.png"
        source = self.panoptic_source(record)
        return self._fitting(record, path, _named(record, lambda: read_listed(path, listed, source)[0]))

    def segments(self, record: VideoRecord) -> dict[str, list[Segment]]:
        """{stem of a frame: its segments} from the JSON. Raises UserError as `panoptic`."""
        source = self.panoptic_source(record)
        entries = self._panoptic_entries(record, source)
        wanted = stems(record)
        listed: dict[str, list[Segment]] = {}
        try:
            for entry in entries:
                isthing = self.dataset.isthing
                found = _named(record, listed_segments, entry, self._class_of, isthing, source)
                listed[Path(entry["file_name"]).stem] = found
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"video {record.id}: {source}: not of VIPSeg's form (missing or wrong entry {error})"
            ) from None
        if lost := [stem for stem in wanted if stem not in listed]:
            raise UserError(
                f"video {record.id}: {source}: frame {lost[0]} has no entry ({len(lost)} lack one)"
            )
        first: dict[int, int] = {}
        for stem in wanted:
            for segment in listed[stem]:
                if not 0 <= segment.id <= LARGEST:
                    raise UserError(
                        f"video {record.id}: {source}: frame {stem}: id {segment.id}; expected 1 to {LARGEST}"
                    )
                if first.setdefault(segment.id, segment.category) != segment.category:
                    old, new = record.names[first[segment.id]], record.names[segment.category]
                    raise UserError(
                        f'video {record.id}: {source}: frame {stem}: id {segment.id} is "{new}", but "{old}" '
                        "in an earlier frame; an id keeps its class through a video"
                    )
        return {stem: listed[stem] for stem in wanted}

    def panoptic_source(self, record: VideoRecord) -> Path:
        """The JSON that lists the segments of a video: its own, else that of all videos."""
        own = json_file(self.root, "panoptic", record.id)
        whole = self.root / "panoptic" / WHOLE["panoptic"]
        return own if own.is_file() or not whole.is_file() else whole

    def results(self, record: VideoRecord) -> list[dict[str, Any]]:
        """Tracks as YouTube-VIS's rows {video_id, category_id, score, segmentations}, ids as in the files.

        Raises UserError, naming video and file, for an absent file and rows that do not fit the video.
        """
        path = json_file(self.root, "tracks", record.id)
        rows: list[dict[str, Any]]
        if path.is_file():
            rows = _named(record, read_json, path, list)
        else:
            path = self.root / "tracks" / WHOLE["tracks"]
            if not path.is_file():
                raise UserError(f"video {record.id}: {json_file(self.root, 'tracks', record.id)}: not found")
            rows = self._all_results.get(record.video_id, [])
        for number, row in enumerate(rows):
            if fault := row_fault(record, row, self._class_of):
                raise UserError(f"video {record.id}: {path}: result {number} {fault}")
        return rows

    def strangers(self, forms: Iterable[Form]) -> list[str]:
        """A line for every video that a JSON of all videos names and the data set does not have."""
        known: dict[Form, set[Any]] = {
            "panoptic": {record.id for record in self.dataset},
            "tracks": {record.video_id for record in self.dataset},
        }
        lines = []
        for form in forms:
            path = self.root / form / WHOLE.get(form, "")
            if form in WHOLE and path.is_file():
                named = self._all_entries if form == "panoptic" else self._all_results
                odd = sorted(set(named) - known[form], key=str)
                lines += [f"video {id}: {path}: no such video in {self.dataset.source}" for id in odd]
        return lines

    @cached_property
    def _all_results(self) -> dict[Any, list[dict[str, Any]]]:
        return _grouped(read_json(self.root / "tracks" / WHOLE["tracks"], list))

    @cached_property
    def _all_entries(self) -> dict[str, Any]:
        path = self.root / "panoptic" / WHOLE["panoptic"]
        content = read_json(path)
        try:
            return {str(entry["video_id"]): entry["annotations"] for entry in content["annotations"]}
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not of VIPSeg's form (missing or wrong entry {error})") from None

    def _panoptic_entries(self, record: VideoRecord, source: Path) -> list[dict[str, Any]]:
        if source.name == WHOLE["panoptic"] and source.parent == self.root / "panoptic":
            if record.id not in self._all_entries:
                raise UserError(f"video {record.id}: {source}: no such video in it")
            return self._all_entries[record.id]
        content = _named(record, read_json, source)
        if not isinstance(content.get("annotations"), list):
            raise UserError(f"video {record.id}: {source}: no list of annotations in it")
        return content["annotations"]

    def _is_complete(self, record: VideoRecord) -> bool:
        if (self.root / DONE).is_dir():
            return json_file(self.root, DONE, record.id).is_file()
        return all(self.has(form, record) for form in self.forms)

    def _fitting(self, record: VideoRecord, path: Path, values: NDArray[Any]) -> NDArray[Any]:
        if values.shape != record.size:
            (h, w), (height, width) = values.shape, record.size
            raise UserError(f"video {record.id}: {path}: {w}x{h} pixels, but the video has {width}x{height}")
        return values


def _grouped(rows: Iterable[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    """Rows of results by their video_id."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        id = row.get("video_id") if isinstance(row, dict) else None
        found.setdefault(id if isinstance(id, int | str) else str(id), []).append(row)
    return found


def _named(record: VideoRecord, read: Any, *arguments: Any) -> Any:
    """What `read` gives; its UserError with the video before it."""
    try:
        return read(*arguments)
    except UserError as error:
        raise UserError(f"video {record.id}: {error}") from None
