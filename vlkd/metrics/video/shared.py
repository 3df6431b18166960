"""What the video scores share: label maps as runs of equal pixels, tables of pairs, metrics that merge."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from vlkd.errors import UserError
from vlkd.metrics.panoptic import VOID_ID

Maps = NDArray[Any] | Tensor
Ints = NDArray[np.int64]


class VideoMetric(Metric):
    """A score over videos: update() with each, merge() with what another process counted, compute().

    In a run of several processes compute() adds up what all have counted, and all must call it.
    """

    full_state_update = False
    settings: tuple[Any, ...] = ()

    def merge(self, other: VideoMetric) -> None:
        """Add all that `other` has seen. Raises UserError when it is another score or has other settings."""
        if type(other) is not type(self) or other.settings != self.settings:
            raise UserError(
                f"{type(self).__name__}{self.settings} and {type(other).__name__}{other.settings} do not add "
                "up; merge scores made with the same arguments"
            )
        for name in self._defaults:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._update_count += other._update_count
        self._computed = None

    @property
    def video(self) -> int:
        """Index of the video that is being added, for messages."""
        return self.update_count - 1


def same_shape(video: int, **maps: Maps) -> list[NDArray[Any]]:
    """Integer arrays (T,H,W); tensors of a CPU and arrays are not copied.

    Raises UserError, naming the video and the argument, for other types and for shapes that disagree.
    """
    arrays = {
        what: labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        for what, labels in maps.items()
    }
    first = next(iter(arrays))
    for what, array in arrays.items():
        if array.ndim != 3 or not array.size or array.dtype.kind not in "iu":
            raise UserError(
                f"video {video}: {what} is {array.dtype} {array.shape}; expected integers (T,H,W), not empty"
            )
        if array.shape != arrays[first].shape:
            raise UserError(
                f"video {video}: {first} {arrays[first].shape} and {what} {array.shape} differ in shape"
            )
    return list(arrays.values())


def runs(*maps: NDArray[Any]) -> tuple[list[Ints], Ints]:
    """Runs of pixels, row by row, over which no map (H,W) changes: values (R,) of each map, lengths (R,).

    Segments are connected, so there are many times fewer runs than pixels: about 45 in the benchmark.
    """
    flat = [labels.reshape(-1) for labels in maps]
    change = flat[0][1:] != flat[0][:-1]
    for labels in flat[1:]:
        change |= labels[1:] != labels[:-1]
    starts = np.concatenate(([0], np.flatnonzero(change) + 1))
    lengths = np.diff(starts, append=flat[0].size)
    return [labels[starts].astype(np.int64) for labels in flat], lengths


def frame_table(truth: NDArray[Any], guess: NDArray[Any]) -> tuple[Ints, Ints, Ints, Ints]:
    """What meets in each frame of two id maps (T,H,W): frame, true id, predicted id, pixels, each (R,)."""
    tables = []
    for frame in zip(truth, guess, strict=True):
        (first, second), lengths = runs(*frame)
        tables.append(pair_table(first, second, lengths))
    number = np.repeat(np.arange(len(tables)), [len(table[0]) for table in tables])
    first, second, pixels = (np.concatenate(column) for column in zip(*tables, strict=True))
    return number, first, second, pixels


def id_classes(video: int, what: str, ids: Ints, table: Mapping[int, int], categories: Sequence[int]) -> Ints:
    """Place (S,) among `categories` (ascending) of the category that `table` gives each id; -1 for void.

    Raises UserError, naming the video, for ids without a category and for other categories.
    """
    known = {int(id): int(category) for id, category in dict(table).items()}
    if lost := [id for id in ids.tolist() if id != VOID_ID and id not in known]:
        raise UserError(f"video {video}: {what}: segment ids {lost[:6]} have no category")
    wanted = [known[id] for id in ids.tolist() if id != VOID_ID]
    if odd := sorted(set(wanted) - set(categories)):
        raise UserError(
            f"video {video}: {what}: categories {odd[:6]} are not among the {len(categories)} categories"
        )
    classes = np.full(len(ids), -1)
    classes[ids != VOID_ID] = np.searchsorted(categories, wanted)
    return classes


def pair_table(first: Ints, second: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """Distinct pairs of `first` (R,) and `second` (R,), with the sums of their counts: three of (S,)."""
    low, span = int(second.min()), int(second.max()) - int(second.min()) + 1
    if span * max(abs(int(first.min())), abs(int(first.max()))) >= 1 << 62:
        # A pair would not fit one number.
        left, right = np.unique(first), np.unique(second)
        places = np.searchsorted(left, first), np.searchsorted(right, second)
        row, column, sums = pair_table(*places, counts)
        return left[row], right[column], sums
    pairs, sums = summed(first * span + (second - low), counts)
    return pairs // span, pairs % span + low, sums


def summed(keys: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Distinct keys (G,) of keys (R,) in ascending order, and the sums (G,) of their counts."""
    order = np.argsort(keys)
    ascending = keys[order]
    starts = np.concatenate(([0], np.flatnonzero(ascending[1:] != ascending[:-1]) + 1))
    return ascending[starts], np.add.reduceat(counts[order], starts)


def grouped(keys: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """As summed, with the place (R,) of each key among the distinct ones in the middle."""
    distinct, sums = summed(keys, counts)
    return distinct, np.searchsorted(distinct, keys), sums


def totals(place: Ints, counts: NDArray[Any], length: int) -> Ints:
    """Sums (length,) of whole numbers `counts` by `place`; exact below 2^53."""
    return np.bincount(place, weights=counts, minlength=length).astype(np.int64)


def split_groups(
    classes: Iterable[int], base: Collection[int] | None, novel: Collection[int] | None
) -> dict[str, set[int]]:
    """{"base": ..., "novel": ...} of the classes; one that is not given is the rest, {} if neither is.

    Raises UserError when the lists overlap or name a class that does not exist.
    """
    if base is None and novel is None:
        return {}
    every = set(classes)
    given = {"base": base, "novel": novel}
    for name, group in given.items():
        if odd := sorted(set(group or ()) - every):
            raise UserError(f"{name} classes {odd[:6]} are not among the {len(every)} classes")
    base_set = set(base) if base is not None else every - set(novel or ())
    novel_set = set(novel) if novel is not None else every - base_set
    if both := sorted(base_set & novel_set):
        raise UserError(f"classes {both[:6]} are base and novel; list each in one of them")
    return {"base": base_set, "novel": novel_set}
