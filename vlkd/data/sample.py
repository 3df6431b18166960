"""What a segmentation data set hands out: an image, its segments, and what each segment is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from vlkd.errors import UserError

VOID = 255  # label of pixels that carry no class; see void_label for vocabularies of more than 255 names
TABLE_LIMIT = (
    1 << 16
)  # ids below this are looked up in a table, larger ones (COCO's colours) by binary search


@dataclass(frozen=True)
class Segment:
    """One labelled region: its id in the segment map, its class index, thing or stuff, crowd or single."""

    id: int
    category: int
    isthing: bool
    crowd: bool = False


@dataclass
class SegmentationSample:
    """An image (H,W,3) uint8 RGB with its segment map (H,W) int32, 0 = void, and a Segment for every id."""

    id: str
    image: NDArray[np.uint8]
    segments: NDArray[np.int32]
    info: list[Segment] = field(default_factory=list)
    caption: str = ""

    def semantic(self, void: int = VOID) -> NDArray[np.int64]:
        """Label map (H,W) int64 of class indices; `void` where no segment of `info` lies.

        Raises UserError when a class index equals or exceeds `void` (see void_label).
        """
        if void >= 0 and (over := [segment.category for segment in self.info if segment.category >= void]):
            raise UserError(
                f"{self.id}: class index {max(over)} collides with the void label {void}; "
                "pass a larger one (void_label(number of classes))"
            )
        return label_map(self.segments, self.info, void)

    def segment_index(self) -> NDArray[np.intp]:
        """Position (H,W) in `info` of every pixel's segment; len(info) where there is none."""
        return segment_index(self.segments, self.info)

    def areas(self) -> NDArray[np.int64]:
        """Pixels (M,) of every segment of `info`."""
        return np.bincount(self.segment_index().ravel(), minlength=len(self.info) + 1)[: len(self.info)]

    def keep(self, kept: Sequence[bool]) -> SegmentationSample:
        """The same sample with only the flagged segments of `info`; the others become void."""
        if all(kept):
            return self
        flags = np.array([*kept, False])
        segments = np.where(flags[self.segment_index()], self.segments, 0).astype(np.int32)
        return replace(self, segments=segments, info=[s for s, k in zip(self.info, kept, strict=True) if k])


class SegmentationDataset(Sequence[SegmentationSample]):
    """Samples in a fixed order, with the vocabulary they are labelled in.

    `names` (K,) and `isthing` (K,) give the classes; `novel` holds the class indices a student must not see.
    """

    names: tuple[str, ...]
    isthing: tuple[bool, ...]
    novel: frozenset[int] = frozenset()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> SegmentationSample:  # type: ignore[override]
        """The sample at 0 <= index < len."""

    def __iter__(self) -> Iterator[SegmentationSample]:
        return (self[i] for i in range(len(self)))

    def categories(self, index: int) -> frozenset[int]:
        """Class indices that occur in one sample; cheaper than the sample where the layout allows."""
        return frozenset(segment.category for segment in self[index].info)

    def check(self, index: int) -> list[str]:
        """Everything wrong with one sample, one line each."""
        try:
            self[index]
        except UserError as error:
            return [str(error)]
        return []

    def missing(self) -> list[str]:
        """Files that the data set needs and does not find, one line each; reads no file."""
        return []


def void_label(num_classes: int) -> int:
    """The void label for K classes: 255, or 65535 when 255 is itself a class."""
    return VOID if num_classes <= VOID else 65535


def label_map(segments: NDArray[np.int32], info: Sequence[Segment], void: int) -> NDArray[np.int64]:
    """Class index (H,W) of every pixel's segment; `void` where no segment of `info` lies."""
    categories = np.array([segment.category for segment in info] + [void], dtype=np.int64)
    return categories[segment_index(segments, info)]


def segment_index(segments: NDArray[np.int32], info: Sequence[Segment]) -> NDArray[np.intp]:
    """Position (H,W) in `info` of every pixel's segment; len(info) where there is none."""
    return index_of(segments, np.array([segment.id for segment in info], dtype=np.int64))


def index_of(segments: NDArray[np.int32], ids: NDArray[np.int64]) -> NDArray[np.intp]:
    """Position (H,W) of every pixel's id in `ids` (M,), M where it is not among them or is 0."""
    count = len(ids)
    if count == 0:
        return np.zeros(segments.shape, dtype=np.intp)
    if ids.min() >= 0 and max(int(ids.max()), int(segments.max(initial=0))) < TABLE_LIMIT:
        table = np.full(TABLE_LIMIT, count, dtype=np.intp)
        table[ids] = np.arange(count)
        table[0] = count
        return table[segments]
    order = np.argsort(ids)
    position = np.searchsorted(ids[order], segments).clip(max=count - 1)
    found = (ids[order][position] == segments) & (segments != 0)
    return np.where(found, order[position], count)
