"""Opening any of the video data sets by one call, and reading one through to find all that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlkd.data.check import check_dataset
from vlkd.data.files import need_folder
from vlkd.data.video.burst import PARTS, open_burst
from vlkd.data.video.folders import open_camvid, open_vspw
from vlkd.data.video.panoptic import open_vipseg
from vlkd.data.video.record import VideoDataset
from vlkd.data.video.splits import ClassChoice, take_subset, with_split
from vlkd.data.video.tracks import OPENERS
from vlkd.errors import UserError
from vlkd.text.names import nearest_hint

KINDS: dict[str, Callable[[Path, str], VideoDataset]] = {
    "vspw": open_vspw,
    "vipseg": open_vipseg,
    **OPENERS,
    "burst": open_burst,
    "camvid": open_camvid,
}


def open_dataset(
    kind: str,
    root: str | Path,
    split: str,
    subset: str | None = None,
    *,
    base: ClassChoice = None,
    novel: ClassChoice = None,
) -> VideoDataset:
    """A split of a video data set in one of the KINDS of layout; no frame and no mask is read.

    `subset` is one of SUBSETS, for BURST also "all", "common" or "uncommon". `base` and `novel` choose the
    classes as for `with_split`; the default is the kind's own split. Raises UserError for an unknown kind,
    root, split, subset or class, and for the first of the faults of the annotation files.
    """
    dataset = _opened(kind, root, split, subset, base, novel)
    if dataset.problems:
        count = len(dataset.problems) - 1
        more = f" (and {count} more: vlkd data check lists all)" if count else ""
        raise UserError(f"{dataset.problems[0]}{more}")
    return dataset


def check(
    kind: str,
    root: str | Path,
    split: str,
    subset: str | None = None,
    *,
    base: ClassChoice = None,
    novel: ClassChoice = None,
) -> list[str]:
    """Everything wrong with a split, one line each: reads every annotation, frame and mask once."""
    try:
        dataset = _opened(kind, root, split, subset, base, novel)
    except UserError as error:
        return [str(error)]
    return dataset.problems + check_dataset(dataset)


def _opened(
    kind: str, root: str | Path, split: str, subset: str | None, base: ClassChoice, novel: ClassChoice
) -> VideoDataset:
    if kind not in KINDS:
        raise UserError(
            f"unknown kind of video data set {kind!r}{nearest_hint(kind, KINDS)}; known: {', '.join(KINDS)}"
        )
    folder = need_folder(Path(root), f"a {kind} data set")
    if kind == "burst" and subset in PARTS:
        dataset, subset = open_burst(folder, split, subset), None
    else:
        dataset = KINDS[kind](folder, split)
    vocabulary = with_split(dataset.vocabulary, kind, base, novel)
    for record in dataset.records:
        record.vocabulary = vocabulary
    dataset = VideoDataset(dataset.records, vocabulary, dataset.source, dataset.problems)
    return take_subset(dataset, subset) if subset else dataset
