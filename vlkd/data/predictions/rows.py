"""Whether the rows of a results file fit their video."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vlkd.data.video import VideoRecord
from vlkd.data.video.masks import decode_mask
from vlkd.errors import UserError


def row_fault(record: VideoRecord, row: Mapping[str, Any], categories: Collection[int]) -> str:
    """What is wrong with a row of YouTube-VIS's form, "" when nothing; `categories` are the ids there are."""
    try:
        if row["video_id"] != record.video_id:
            return f"is for video {row['video_id']!r}, expected {record.video_id!r}"
        if row["category_id"] not in categories:
            return f"has category_id {row['category_id']}, which is in no category"
        if not isinstance(row["score"], int | float) or not np.isfinite(row["score"]):
            return f"has the score {row['score']!r}, not a finite number"
        if (count := len(row["segmentations"])) != len(record):
            return f"has {count} segmentations, but the video has {len(record)} frames"
        faults = (_mask_fault(mask, record.size) for mask in row["segmentations"] if mask)
        return next((fault for fault in faults if fault), "")
    except (KeyError, TypeError, ValueError) as error:
        return f"is not of YouTube-VIS's form (missing or wrong entry {error})"


def _mask_fault(mask: Any, size: tuple[int, int]) -> str:
    if not isinstance(mask, dict):
        return _undecoded(mask, size)
    if tuple(mask["size"]) != size:
        return f"has a mask of size {mask['size']}, but the video has {list(size)}"
    counts = mask["counts"]
    if not isinstance(counts, str | list):
        return "has a mask whose counts are neither a string nor a list"
    runs = np.array(counts) if isinstance(counts, list) else _lengths(counts)
    # pycocotools trusts the runs: such that do not fill the frame give it wrong areas, or never end.
    whole = (
        runs.dtype.kind in "iu" and runs.ndim == 1 and (runs >= 0).all() and runs.sum() == size[0] * size[1]
    )
    return "" if whole else f"has a mask whose runs do not fill its {size[1]}x{size[0]} pixels"


def _undecoded(mask: Any, size: tuple[int, int]) -> str:
    try:
        decode_mask(mask, size)
    except UserError as error:
        return f"has a mask that is {error}"
    return ""


def _lengths(counts: str) -> np.ndarray:
    """The runs (R,) of COCO's compressed counts, whether or not they make sense.

    A number is five bits a character, the lowest first, 32 saying that more follow and 16 of the last one
    that it is negative; from the fourth on it is the difference to the one before the last.
    """
    codes = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if not codes.size or not last[-1] or codes.min() < 0 or codes.max() > 63:
        return np.full(1, -1)
    starts = np.concatenate(([0], np.flatnonzero(last)[:-1] + 1))
    place = np.arange(len(codes)) - np.repeat(starts, np.diff(starts, append=len(codes)))
    if place.max() > 6:  # more than 32 bits
        return np.full(1, -1)
    runs = np.add.reduceat((codes & 31) << 5 * place, starts)
    runs -= np.where(codes[last] & 16, 1 << 5 * (place[last] + 1), 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs
