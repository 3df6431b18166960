"""Feature files of videos: frames and clips through frozen networks, in memory of constant size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib import format as npy
from torch import Tensor

from vlkd.errors import UserError
from vlkd.infer.image_io import whole_file
from vlkd.infer.video import VideoFile, prefetched
from vlkd.models.frame_features import FrameFeatures

INDEX = "index.json"
_SAVE_EVERY = 5.0  # seconds: what a killed run does again at most


@dataclass
class Stream:
    """One kind of feature: frames at `rate` a second, a vector for every `tower.frames` of them.

    kind: image or video. unit: vectors get length 1.
    """

    kind: str
    tower: FrameFeatures
    rate: float
    unit: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        """What makes features comparable, plain values."""
        return {
            "model": self.tower.name,
            "weights": self.tower.identity,
            "width": self.tower.width,
            "size": list(self.tower.crop),
            "fps": self.rate / self.tower.frames,
            "frames": self.tower.frames,
            "frames_per_second": self.rate,
            "unit": self.unit,
        }

    def file(self, id: str) -> str:
        """Name of a video's feature file."""
        return f"{id}.{self.kind}.npy"


class FeatureIndex:
    """index.json of a feature folder: settings of each kind; of each video its file, features or fault.

    Raises UserError where it holds features of other settings, unless `overwrite`, which removes them.
    """

    def __init__(self, out: Path, streams: Sequence[Stream], overwrite: bool = False) -> None:
        self.out, self.path = out, out / INDEX
        self.content = self._read()
        self._saved = 0.0
        for stream in streams:
            old = self.content["kinds"].get(stream.kind)
            if old not in (None, stream.settings):
                if not overwrite:
                    other = [key for key, value in stream.settings.items() if old.get(key) != value]
                    raise UserError(
                        f"{self.path}: its {stream.kind} features were made with other {', '.join(other)} "
                        f"({old.get('weights')}): choose another --out, or pass --overwrite to replace them"
                    )
                self._remove(stream)
            self.content["kinds"][stream.kind] = stream.settings

    @property
    def videos(self) -> dict[str, dict[str, Any]]:
        """Records by video id."""
        return self.content["videos"]

    def owner(self, id: str) -> str | None:
        """The file whose features have the id, if any."""
        return self.videos.get(id, {}).get("file")

    def lacks(self, id: str, streams: Sequence[Stream]) -> list[Stream]:
        """The streams whose features of a video are not there."""
        found = self.videos.get(id, {})
        return [s for s in streams if s.kind not in found or not (self.out / s.file(id)).is_file()]

    def add(self, id: str, file: Path, found: Mapping[str, Any]) -> None:
        """Record a video's features, kind by kind; a fault is forgotten."""
        old = {key: x for key, x in self.videos.get(id, {}).items() if key != "error"}
        self.videos[id] = old | {"file": str(file.resolve()), "status": "done", **found}
        self.save(due=True)

    def fail(self, id: str, file: Path, error: UserError) -> None:
        """Record why a video has no features."""
        self.videos[id] = {"file": str(file.resolve()), "status": "failed", "error": str(error)}
        self.save(due=True)

    def save(self, due: bool = False) -> None:
        """Write the file, whole or not at all; `due`: only where the last time was a while ago."""
        if due and monotonic() - self._saved < _SAVE_EVERY:
            return
        with whole_file(self.path) as part:
            part.write_text(json.dumps(self.content, ensure_ascii=False) + "\n", encoding="utf-8")
        self._saved = monotonic()

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"format": 1, "kinds": {}, "videos": {}}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(content["kinds"], dict) and isinstance(content["videos"], dict):
                return content
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise UserError(f"{self.path}: not the index of a feature folder; choose another --out")

    def _remove(self, stream: Stream) -> None:
        for id, record in self.videos.items():
            if record.pop(stream.kind, None) is not None:
                (self.out / stream.file(id)).unlink(missing_ok=True)


def extract(
    video: Path,
    streams: Sequence[Stream],
    out: Path,
    id: str,
    batch_size: int = 32,
    follow: Callable[[float, float | None], None] = lambda seconds, total: None,
) -> dict[str, Any]:
    """Write OUT/ID.KIND.npy (T,C) float16 of each stream from one pass over the video, all or none.

    `batch_size`: frames at once, and an eighth as many clips. Returns for each kind {"rows": T, "times":
    begin of each row in seconds}, and the video's "seconds". `follow(seconds read, seconds in all or None)`
    tells of the progress. Raises UserError as VideoFile does.
    """
    source = VideoFile(video)
    total = source.frames / source.fps if source.frames else None
    seconds = 0.0
    with ExitStack() as stack:
        sinks = [
            _Sink(s, stack.enter_context(_npy_file(out / s.file(id), s.tower.width)), batch_size)
            for s in streams
        ]
        shrunk = (
            (place, frame.time, streams[place].tower.shrink(frame.image))
            for place, frame in source.sampled([s.rate for s in streams])
        )
        frames = stack.enter_context(_closed(prefetched(shrunk, depth=2 * batch_size)))
        for place, time, pixels in frames:
            sinks[place].take(pixels)
            seconds = max(seconds, time)
            follow(seconds, total)
        for sink in sinks:
            sink.end()
    return {"seconds": round(total or seconds, 3)} | {
        sink.stream.kind: {"rows": sink.rows, "times": sink.times()} for sink in sinks
    }


class _Sink:
    """Gathers frames to clips, clips to batches, and writes their features."""

    def __init__(self, stream: Stream, write: Callable[[np.ndarray], None], batch_size: int) -> None:
        self.stream, self.write = stream, write
        # A clip's maps in a video network are several times those of its frames in an image tower.
        self.batch_size = batch_size if stream.tower.frames == 1 else max(1, batch_size // 8)
        self.rows = 0
        self._clip: list[Tensor] = []
        self._batch: list[Tensor] = []

    def take(self, pixels: Tensor) -> None:
        """A frame (3,h,w) uint8."""
        self._clip.append(pixels)
        if len(self._clip) == self.stream.tower.frames:
            self._batch.append(self._clip[0] if len(self._clip) == 1 else torch.stack(self._clip))
            self._clip = []
            if len(self._batch) == self.batch_size:
                self._flush()

    def end(self) -> None:
        """The rest: a last clip, if half full or the only one, is filled up with its last frame."""
        wanted = self.stream.tower.frames
        if self._clip and (2 * len(self._clip) >= wanted or not (self.rows or self._batch)):
            filled = self._clip + self._clip[-1:] * (wanted - len(self._clip))
            self._batch.append(torch.stack(filled))
        self._flush()

    def times(self) -> list[float]:
        """Begin of each row in seconds."""
        return [round(k * self.stream.tower.frames / self.stream.rate, 4) for k in range(self.rows)]

    def _flush(self) -> None:
        if not self._batch:
            return
        found = self.stream.tower(torch.stack(self._batch))
        if self.stream.unit:
            found = F.normalize(found, dim=1)
        rows = found.half().numpy()
        if not np.isfinite(rows).all():
            raise UserError(
                f"{self.stream.tower.name}: gave features that float16 cannot hold; leave out --raw"
            )
        self.write(rows)
        self.rows += len(rows)
        self._batch = []


@contextmanager
def _npy_file(path: Path, width: int) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends rows (N,width) float16 to a .npy, which appears when the block ends well."""
    rows = 0

    def header() -> dict[str, Any]:
        return {"descr": "<f2", "fortran_order": False, "shape": (rows, width)}

    with whole_file(path) as part, part.open("w+b") as file:
        # Its length does not depend on the number of rows: numpy leaves room for that.
        npy.write_array_header_1_0(file, header())

        def write(values: np.ndarray) -> None:
            nonlocal rows
            file.write(np.ascontiguousarray(values, "<f2").tobytes())
            rows += len(values)

        yield write
        file.seek(0)
        npy.write_array_header_1_0(file, header())


@contextmanager
def _closed(items: Any) -> Iterator[Any]:
    """The generator, closed at the end, which ends its thread."""
    try:
        yield items
    finally:
        items.close()
