"""Truth and prediction of one video, in the forms that the scores take, labelled frames alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlkd.data.sample import Segment, label_map, void_label
from vlkd.data.video.burst import BurstRecord
from vlkd.data.video.masks import decode_mask, encode_mask
from vlkd.data.video.record import VideoRecord, VideoView
from vlkd.errors import UserError

if TYPE_CHECKING:
    from vlkd.data.predictions import Predictions

Maps = NDArray[Any]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class IdMaps:
    """Segment ids (T,H,W), 0 = void, the class index of each id, and the ids that are crowds."""

    ids: Maps
    categories: dict[int, int]
    crowd: frozenset[int] = frozenset()

    def semantic(self, void: int) -> Maps:
        """Class indices (T,H,W), `void` where there is no segment."""
        info = [Segment(id, category, False) for id, category in self.categories.items()]
        return np.stack([label_map(frame, info, void).astype(label_type(void)) for frame in self.ids])


class Pair:
    """One video's labels, and what was predicted for the same frames; each form is read when asked for."""

    def __init__(self, number: int, record: VideoRecord, predictions: Predictions) -> None:
        self.number, self.record, self._predictions = number, record, predictions
        self.void = void_label(len(record.names))

    def load(self, forms: Collection[str]) -> Pair:
        """Read the forms now, in this thread."""
        for form in forms:
            getattr(self, form)
        return self

    @cached_property
    def semantic(self) -> tuple[Maps, Maps]:
        """Class indices (T,H,W) of truth and prediction."""
        return self.true_classes, self._shown(self._predictions.semantic(self.record))

    @cached_property
    def true_classes(self) -> Maps:
        """Class indices (T,H,W) of the truth."""
        if self.record.form == "panoptic":
            return self.truth.semantic(self.void)
        frames = (self.record.semantic(t) for t in self.record.labelled)
        return np.stack([labels.astype(label_type(self.void)) for labels in frames if labels is not None])

    @cached_property
    def panoptic(self) -> tuple[IdMaps, IdMaps]:
        """Segments of truth and prediction."""
        ids, categories = self._predictions.panoptic(self.record)
        return self.truth, IdMaps(self._shown(ids), categories)

    @cached_property
    def tracks(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Annotations and results as in YouTube-VIS files, all frames; category_id is the files'."""
        make = self._things if self.record.form == "panoptic" else self._objects
        ids = self.record.vocabulary.ids
        truth = [
            {"category_id": ids[category], "segmentations": masks, "iscrowd": int(crowd)}
            for category, crowd, masks in make()
        ]
        return truth, self._predictions.results(self.record)

    @cached_property
    def truth(self) -> IdMaps:
        """The segments of a panoptic video. Raises UserError for an id that changes its class."""
        categories: dict[int, int] = {}
        crowd = set()
        frames = []
        for t in self.record.labelled:
            labels = self.record.labels(t)
            assert labels is not None
            frames.append(labels[0])
            for segment in labels[1]:
                if categories.setdefault(segment.id, segment.category) != segment.category:
                    raise UserError(
                        f"video {self.record.id}, frame {t}: id {segment.id} changes its class; "
                        "an id keeps its class through a video"
                    )
                crowd |= {segment.id} if segment.crowd else set()
        return IdMaps(np.stack(frames), categories, frozenset(crowd))

    @property
    def labelled_in_part(self) -> tuple[frozenset[int], frozenset[int]]:
        """Of a BURST sequence the classes that it certainly lacks, and those not labelled everywhere."""
        record = self.record.record if isinstance(self.record, VideoView) else self.record
        assert isinstance(record, BurstRecord)
        return record.negative, record.not_exhaustive

    def painted(self, floor: float) -> tuple[IdMaps, IdMaps]:
        """Tracks of truth and prediction as segments of the labelled frames.

        Where predictions overlap the one of the highest score is seen; those below `floor` are left out.
        """
        class_of = {id: index for index, id in enumerate(self.record.vocabulary.ids)}
        rows = sorted(self._predictions.results(self.record), key=lambda row: row["score"])
        guess = [(class_of[row["category_id"]], self._mask_of(row)) for row in rows if row["score"] >= floor]
        if self.record.form == "panoptic":
            return self._of_things(self.truth), self._paint(guess)
        return self._paint([(track.category, track.mask) for track in self.record.tracks]), self._paint(guess)

    def _paint(self, tracks: Sequence[tuple[int, Callable[[int], Maps | None]]]) -> IdMaps:
        """Tracks (class, mask at a frame), the later above the earlier."""
        ids = np.zeros((len(self.record.labelled), *self.record.size), np.int32)
        for id, (_, mask_at) in enumerate(tracks, 1):
            for i, t in enumerate(self.record.labelled):
                mask = mask_at(t)
                if mask is not None:
                    ids[i][mask] = id
        return IdMaps(ids, {id: category for id, (category, _) in enumerate(tracks, 1)})

    def _of_things(self, maps: IdMaps) -> IdMaps:
        kept = {id: c for id, c in maps.categories.items() if self.record.vocabulary.isthing[c]}
        return IdMaps(np.where(np.isin(maps.ids, list(kept)), maps.ids, 0), kept)

    def _mask_of(self, row: dict[str, Any]) -> Callable[[int], Maps | None]:
        masks = row["segmentations"]
        return lambda t: decode_mask(masks[t], self.record.size) if masks[t] else None

    def _things(self) -> Iterator[tuple[int, bool, list[Any]]]:
        things = {id for id, c in self.truth.categories.items() if self.record.vocabulary.isthing[c]}
        masks: dict[int, list[Any]] = {id: [None] * len(self.record) for id in sorted(things)}
        for t, frame in zip(self.record.labelled, self.truth.ids, strict=True):
            for id in things.intersection(np.unique(frame).tolist()):
                masks[id][t] = encode_mask(frame == id)
        return ((self.truth.categories[id], id in self.truth.crowd, rows) for id, rows in masks.items())

    def _objects(self) -> Iterator[tuple[int, bool, list[Any]]]:
        for track in self.record.tracks:
            masks = (track.mask(t) for t in range(len(self.record)))
            yield track.category, track.crowd, [None if m is None else encode_mask(m) for m in masks]

    def _shown(self, maps: Maps) -> Maps:
        labelled = self.record.labelled
        return maps if len(labelled) == len(maps) else maps[list(labelled)]


def label_type(void: int) -> type[np.uint8] | type[np.uint16]:
    """The smallest type that holds class indices and void."""
    return np.uint8 if void < 256 else np.uint16


def ahead(work: Callable[[T], R], items: Iterable[T], threads: int, depth: int) -> Iterator[R]:
    """work(item) of every item in order, done by threads at most `depth` items ahead."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="vlkd-ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
