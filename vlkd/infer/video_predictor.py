"""VideoPredictor: a student on the frames of a video, one at a time: labels, panoptic ids, tracks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vlkd.errors import UserError
from vlkd.infer.inputs import Classes, pixels_of
from vlkd.infer.predictor import Predictor
from vlkd.infer.smoothing import PixelSmoothing, RowSmoothing, checked_smoothing
from vlkd.infer.tracking import SegmentIds, Tracker, TrackPrediction, TrackTable
from vlkd.models.postprocess import panoptic_segments

FORMS = ("semantic", "panoptic", "tracks")


@dataclass(frozen=True)
class FramePrediction:
    """What was found in one frame.

    labels (H,W) int64 index the class names. segments (H,W) int32: panoptic ids, 0 = nothing, None where they
    were not asked for; an id is one object (of stuff, one class) and one class through the video. categories:
    class index of every id in this frame. ms: time of network and post-processing.
    """

    labels: np.ndarray
    segments: np.ndarray | None
    categories: dict[int, int]
    ms: float


class VideoPredictor:
    """Segments and tracks through videos, each in a session of its own.

    `tracking`: "propagate" hands the student's memory on, so that query i is track i; "match" pairs the
    queries of an image student; None: what the student is made for. `smoothing` in [0,1): the part of the
    class probabilities, of pixels and of tracks, that stays from frame to frame. `object_threshold`: see
    panoptic_segments. Raises UserError for values that do not fit the student.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        tracking: Literal["propagate", "match"] | None = None,
        smoothing: float = 0.0,
        object_threshold: float = 0.8,
    ) -> None:
        tracking = tracking or ("propagate" if predictor.remembers else "match")
        if tracking not in ("propagate", "match"):
            raise UserError(f"tracking {tracking!r} is unknown: use propagate or match")
        if tracking == "propagate" and not predictor.remembers:
            raise UserError("tracking 'propagate': the student has no memory of frames; use 'match'")
        self.predictor, self.tracking, self.smoothing = predictor, tracking, checked_smoothing(smoothing)
        self.object_threshold = object_threshold

    @classmethod
    def from_bundle(
        cls,
        path: str | os.PathLike[str],
        *,
        tracking: Literal["propagate", "match"] | None = None,
        smoothing: float = 0.0,
        object_threshold: float = 0.8,
        **options: Any,
    ) -> VideoPredictor:
        """VideoPredictor of a segmentor's bundle or zoo name; `options` as of Predictor. Raises UserError."""
        from vlkd.engine.hub import resolve

        predictor = Predictor.from_bundle(resolve(str(path)), **options)
        return cls(predictor, tracking=tracking, smoothing=smoothing, object_threshold=object_threshold)

    def start(
        self, classes: Classes | None, isthing: Sequence[bool], forms: Sequence[str] = FORMS
    ) -> VideoSession:
        """A session for one video. `classes` as in a call of Predictor; `isthing` (K,): objects, not stuff.

        Labels always come; `forms` says what else: "panoptic", "tracks" (of things). Raises UserError for
        unknown forms, for `isthing` of another length, and for the classes as Predictor does.
        """
        return VideoSession(self, classes, isthing, forms)


class VideoSession:
    """One video: call it with every frame in order, then ask for `tracks()`.

    Memory does not grow with the video but for the tracks' run lengths. Made by VideoPredictor.start.
    """

    def __init__(
        self, owner: VideoPredictor, classes: Classes | None, isthing: Sequence[bool], forms: Sequence[str]
    ) -> None:
        unknown = [form for form in forms if form not in FORMS]
        if unknown:
            raise UserError(f"form {unknown[0]!r} is unknown: use some of {', '.join(FORMS)}")
        self.names, self._vectors = owner.predictor.words(classes)
        if len(isthing) != len(self.names):
            raise UserError(
                f"isthing has {len(isthing)} entries for {len(self.names)} classes: give one per class"
            )
        self.isthing, self.forms, self.frames = tuple(map(bool, isthing)), tuple(forms), 0
        self._predictor, self._propagate = owner.predictor, owner.tracking == "propagate"
        self._object_threshold = owner.object_threshold
        self._memory: Tensor | None = None
        self._size: tuple[int, int] | None = None
        self._tracker = Tracker(match=not self._propagate)
        self._pixels = PixelSmoothing(owner.smoothing, owner.predictor.form)
        self._rows = RowSmoothing(owner.smoothing)
        self._ids, self._table = SegmentIds(self.isthing), TrackTable(self.isthing)

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> FramePrediction:
        """The next frame, image (H,W,3) uint8 RGB. Raises UserError where its size is not the first one's."""
        started = perf_counter()
        pixels = pixels_of(image)
        size = self._checked(pixels)
        level = self._predictor.level(pixels, self._memory)
        if self._propagate:
            self._memory = level.memory
        class_logits, mask_logits = self._predictor.logits(level, self._vectors)
        labels = self._pixels(class_logits, mask_logits, size).labels
        segments, categories = None, dict[int, int]()
        if "panoptic" in self.forms or "tracks" in self.forms:
            class_logits, mask_logits = self._tracked(level.queries[0], class_logits, mask_logits)
        if "panoptic" in self.forms:
            segments, categories = self._panoptic(class_logits, mask_logits, size)
        if "tracks" in self.forms:
            self._table.add(self._tracker.tracks, class_logits, mask_logits, size)
        self.frames += 1
        found = labels.cpu().numpy(), None if segments is None else segments.cpu().numpy()
        return FramePrediction(*found, categories, 1000 * (perf_counter() - started))

    def tracks(self) -> list[TrackPrediction]:
        """The video's objects, best first; see TrackTable. Raises UserError where they were not asked for."""
        if "tracks" not in self.forms:
            raise UserError("tracks: this session was started without the form 'tracks'")
        return self._table.results()

    def _checked(self, pixels: Tensor) -> tuple[int, int]:
        size = (pixels.shape[-2], pixels.shape[-1])
        if self._size is not None and size != self._size:
            (height, width), (h, w) = self._size, size
            raise UserError(
                f"frame {self.frames} has {w}x{h} pixels, those before {width}x{height}: "
                "start a session for each video"
            )
        self._size = size
        return size

    def _tracked(self, queries: Tensor, class_logits: Tensor, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
        """The logits with slot i's query in row i, class probabilities smoothed."""
        order, began = self._tracker(queries, 1 - class_logits.softmax(-1)[:, -1])
        if not self._propagate:
            place = torch.from_numpy(order).to(class_logits.device)
            class_logits, mask_logits = class_logits[place], mask_logits[place]
        fresh = torch.from_numpy(began | (self._tracker.tracks == 0)).to(class_logits.device)
        return self._rows(class_logits, fresh | self._pixels.cut), mask_logits

    def _panoptic(
        self, class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, dict[int, int]]:
        segments, found = panoptic_segments(
            class_logits, mask_logits, size, self.isthing, object_threshold=self._object_threshold
        )
        tracks = self._tracker.tracks
        self._ids.keep(tracks)
        ids = [self._ids(int(tracks[one.query]), one.category) for one in found]
        table = torch.tensor([0, *ids], dtype=torch.int32, device=segments.device)
        return table[segments.long()], {i: one.category for i, one in zip(ids, found, strict=True)}
