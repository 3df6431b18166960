"""What a video data set hands out: records whose frames and labels are read one at a time, when asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlkd.data.files import read_image
from vlkd.data.sample import Segment, label_map, void_label
from vlkd.errors import UserError

Form = Literal["semantic", "panoptic", "tracks"]
Labels = tuple[NDArray[np.int32], list[Segment]]


@dataclass(frozen=True)
class Vocabulary:
    """The K classes of a video data set: names for prompting, as the files write them, and their ids there.

    `base` and `novel` are sets of class indices that share none; a class may be in neither.
    """

    names: tuple[str, ...]
    raw_names: tuple[str, ...]
    ids: tuple[int, ...]
    isthing: tuple[bool, ...]
    base: frozenset[int] = frozenset()
    novel: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Track:
    """One object through a video: id, class index, and the frames `times` in which it has a mask."""

    id: int
    category: int
    times: tuple[int, ...]
    read: Callable[[int], NDArray[np.bool_]] = field(repr=False)
    crowd: bool = False

    def mask(self, t: int) -> NDArray[np.bool_] | None:
        """Pixels (H,W) in frame t, None where it has no mask. Raises UserError for one that is damaged."""
        return self.read(t) if t in self.times else None


class VideoRecord(ABC):
    """One video: `frame(t)` (H,W,3) uint8 for 0 <= t < len, and its labels, all read when asked for.

    `form` says which labels the set has: "semantic", "panoptic" (which gives semantic and tracks too) or
    "tracks". `annotated` is False where labels are withheld (test splits). `video_id` is what result files
    call the video: a number in the YouTube-VIS family, else `id`.
    """

    form: Form
    fps: float | None = None

    def __init__(self, id: str, vocabulary: Vocabulary, video_id: int | str | None = None) -> None:
        self.id = id
        self.vocabulary = vocabulary
        self.video_id = id if video_id is None else video_id

    @property
    @abstractmethod
    def frame_files(self) -> tuple[Path, ...]:
        """Image file of every frame, in order."""

    @property
    @abstractmethod
    def annotated(self) -> bool:
        """Whether the video has labels at all; an empty list of objects is a label."""

    @property
    @abstractmethod
    def labelled(self) -> tuple[int, ...]:
        """The frames that have labels. Raises UserError where frames and annotation disagree in number."""

    @abstractmethod
    def read_labels(self, t: int) -> Labels:
        """Segment map (H,W), 0 = void, and its segments in a labelled frame; not for the form "tracks"."""

    @property
    def declared_size(self) -> tuple[int, int] | None:
        """(H, W) that the annotation states, None where it states none."""
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """Class names (K,), cleaned for prompting."""
        return self.vocabulary.names

    @property
    def raw_names(self) -> tuple[str, ...]:
        """Class names (K,) as the files write them."""
        return self.vocabulary.raw_names

    @property
    def base(self) -> frozenset[int]:
        """Class indices that may be taught."""
        return self.vocabulary.base

    @property
    def novel(self) -> frozenset[int]:
        """Class indices that a student must not see."""
        return self.vocabulary.novel

    def __len__(self) -> int:
        return len(self.frame_files)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W) of every frame: as the annotation states, else that of frame 0."""
        return self.declared_size or self._image(0).shape[:2]

    def frame(self, t: int) -> NDArray[np.uint8]:
        """RGB image (H,W,3) of frame t. Raises UserError: missing, damaged, of another size than `size`."""
        return self._fitting(self._image(t), self.frame_files[t])

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """All frames in order, one at a time."""
        return (self.frame(t) for t in range(len(self)))

    def labels(self, t: int) -> Labels | None:
        """Segment map (H,W) and its segments; None where frame t has none, and for the form "tracks".

        In the form "semantic" a segment is one class of one frame. Raises UserError as `read_labels` does,
        and for labels of another size than `size`.
        """
        if self.form == "tracks" or t not in self.labelled:
            return None
        segments, info = self._segments(t)
        return self._fitting(segments, f"labels of {self.frame_files[t]}"), info

    def semantic(self, t: int) -> NDArray[np.int64] | None:
        """Class indices (H,W) of frame t, void_label(K) where unlabelled; None as for `labels`."""
        found = self.labels(t)
        return None if found is None else label_map(*found, void_label(len(self.names)))

    def panoptic(self, t: int) -> tuple[NDArray[np.int32], dict[int, int]] | None:
        """Segment ids (H,W), 0 = void, and {id: class index}; None but for the form "panoptic"."""
        found = self.labels(t) if self.form == "panoptic" else None
        return None if found is None else (found[0], {segment.id: segment.category for segment in found[1]})

    @cached_property
    def tracks(self) -> tuple[Track, ...]:
        """The objects of the video; of a panoptic one its things, which reads every label file once.

        Raises UserError for an id that changes its class.
        """
        if self.form != "panoptic":
            return ()
        seen: dict[int, tuple[Segment, list[int]]] = {}
        for t in self.labelled:
            for segment in self._segments(t)[1]:
                first, times = seen.setdefault(segment.id, (segment, []))
                times.append(t)
                if first.category != segment.category:
                    raise UserError(self._changed(segment, first, t))
        return tuple(
            Track(id, first.category, tuple(times), partial(self._pixels_of, id), first.crowd)
            for id, (first, times) in sorted(seen.items())
            if first.isthing
        )

    def categories(self, t: int | None = None) -> frozenset[int]:
        """Class indices that occur in frame t, or in any frame; from the annotation alone where it tells."""
        if self.form == "tracks":
            return frozenset(track.category for track in self.tracks if t is None or t in track.times)
        times = self.labelled if t is None else (t,) if t in self.labelled else ()
        return frozenset(segment.category for time in times for segment in self._listed(time))

    def check(self) -> list[str]:
        """Everything wrong with the video, one line each; reads every frame and every label."""
        try:
            count = len(self)
        except UserError as error:
            return [str(error)]
        problems: list[str] = []
        labelled: frozenset[int] = frozenset()
        try:
            labelled = frozenset(self.labelled)
        except UserError as error:
            problems.append(str(error))
        size = self.declared_size or self._first_size()
        first: dict[int, Segment] = {}
        for t in range(count):
            problems += self._check_frame(t, t in labelled and self.form != "tracks", size, first)
        return problems + (self._check_tracks() if self.form == "tracks" else [])

    def _check_frame(
        self, t: int, labelled: bool, size: tuple[int, int] | None, first: dict[int, Segment]
    ) -> list[str]:
        """Faults of one frame; `first` holds the first segment of every id and grows."""
        problems: list[str] = []
        sizes: list[tuple[str, tuple[int, ...]]] = []
        try:
            sizes.append((str(self.frame_files[t]), self._image(t).shape[:2]))
        except UserError as error:
            problems.append(str(error))
        try:
            segments, info = self._segments(t) if labelled else (None, [])
            if segments is not None:
                sizes.append((f"labels of {self.frame_files[t]}", segments.shape))
        except UserError as error:
            return [*problems, str(error)]
        for segment in info if self.form == "panoptic" else ():
            known = first.setdefault(segment.id, segment)
            if known.category != segment.category:
                problems.append(self._changed(segment, known, t))
        return problems + [self._misfit(what, found, size) for what, found in sizes if size and found != size]

    def _check_tracks(self) -> list[str]:
        problems = []
        for track in self.tracks:
            for t in track.times:
                try:
                    if not track.read(t).any():
                        problems.append(
                            f"video {self.id}: the mask of track {track.id} in frame {t} is empty"
                        )
                except UserError as error:
                    problems.append(str(error))
        return problems

    def _first_size(self) -> tuple[int, int] | None:
        """(H, W) of the first frame that can be read."""
        for t in range(len(self)):
            with suppress(UserError):
                height, width = self._image(t).shape[:2]
                return height, width
        return None

    def _listed(self, t: int) -> Sequence[Segment]:
        return self._segments(t)[1]

    def _image(self, t: int) -> NDArray[np.uint8]:
        with self._naming(t):
            return read_image(self.frame_files[t])

    def _segments(self, t: int) -> Labels:
        with self._naming(t):
            return self.read_labels(t)

    def _pixels_of(self, id: int, t: int) -> NDArray[np.bool_]:
        return self._segments(t)[0] == id

    def _fitting(self, array: NDArray, what: str | Path) -> NDArray:
        if array.shape[:2] != self.size:
            raise UserError(self._misfit(what, array.shape, self.size))
        return array

    def _misfit(self, what: str | Path, shape: Sequence[int], size: tuple[int, int]) -> str:
        source = "its annotation states" if self.declared_size else "its first frame has"
        return f"video {self.id}: {what}: {shape[1]}x{shape[0]} pixels, but {source} {size[1]}x{size[0]}"

    def _changed(self, segment: Segment, first: Segment, t: int) -> str:
        old, new = self.names[first.category], self.names[segment.category]
        return (
            f'video {self.id}, frame {t}: id {segment.id} is "{new}", but "{old}" in an earlier frame; '
            "an id keeps its class through a video"
        )

    @contextmanager
    def _naming(self, t: int) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise UserError(f"video {self.id}, frame {t}: {error}") from None


class VideoView(VideoRecord):
    """A record without the labels of the classes `hidden`; `drop_empty` drops frames that then have none."""

    def __init__(self, record: VideoRecord, hidden: frozenset[int], drop_empty: bool = False) -> None:
        super().__init__(record.id, record.vocabulary, record.video_id)
        self.record, self.hidden, self.drop_empty = record, hidden, drop_empty
        self.form, self.fps = record.form, record.fps

    @cached_property
    def times(self) -> tuple[int, ...]:
        """The frames of the whole record that are left; to drop some reads every label file once."""
        if not self.drop_empty:
            return tuple(range(len(self.record)))
        return tuple(t for t in self.record.labelled if self.record.categories(t) - self.hidden)

    @cached_property
    def frame_files(self) -> tuple[Path, ...]:
        """Image files of the frames that are left."""
        return tuple(self.record.frame_files[t] for t in self.times)

    @property
    def annotated(self) -> bool:
        """As the whole record."""
        return self.record.annotated

    @cached_property
    def labelled(self) -> tuple[int, ...]:
        """The frames that are left and have labels."""
        known = frozenset(self.record.labelled)
        return tuple(i for i, t in enumerate(self.times) if t in known)

    @property
    def declared_size(self) -> tuple[int, int] | None:
        """As the whole record."""
        return self.record.declared_size

    def read_labels(self, t: int) -> Labels:
        """Segments of the classes that are not hidden; the others are void."""
        segments, info = self.record.read_labels(self.times[t])
        gone = [segment.id for segment in info if segment.category in self.hidden]
        kept = [segment for segment in info if segment.category not in self.hidden]
        return np.where(np.isin(segments, gone), 0, segments).astype(np.int32) if gone else segments, kept

    def _image(self, t: int) -> NDArray[np.uint8]:
        return self.record._image(self.times[t])

    def _listed(self, t: int) -> Sequence[Segment]:
        return [s for s in self.record._listed(self.times[t]) if s.category not in self.hidden]

    @cached_property
    def tracks(self) -> tuple[Track, ...]:
        """Tracks of the classes that are not hidden."""
        if self.form == "panoptic":
            return super().tracks
        return tuple(track for track in self.record.tracks if track.category not in self.hidden)


class VideoDataset(Sequence[VideoRecord]):
    """The videos of a split in their order, and the classes they are labelled in.

    `candidates` are the class indices that a prediction may name: all, or those of the subset. `problems`
    lists what is wrong with the annotation files, one line each; `open_dataset` refuses a set that has any.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        vocabulary: Vocabulary,
        source: Path,
        problems: Sequence[str] = (),
        candidates: frozenset[int] | None = None,
    ) -> None:
        self.records, self.vocabulary, self.source = tuple(records), vocabulary, source
        self.problems = list(problems)
        self.candidates = frozenset(range(len(vocabulary.names))) if candidates is None else candidates
        self.names, self.raw_names = vocabulary.names, vocabulary.raw_names
        self.isthing, self.base, self.novel = vocabulary.isthing, vocabulary.base, vocabulary.novel

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> VideoRecord:  # type: ignore[override]
        return self.records[index]

    def check(self, index: int) -> list[str]:
        """Everything wrong with one video, one line each."""
        return self.records[index].check()
