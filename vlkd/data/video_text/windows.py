"""Which words of a video go with which of its seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlkd.data.video_text.captions import Captions

Windows = Literal["random", "fixed", "first"]
_JOINT = " . "  # between segments, as VidLanKD's release has it


@dataclass(frozen=True)
class Window:
    """Segments first..last (exclusive) of a video's captions."""

    first: int
    last: int


def window_at(captions: Captions, first: int, words: int) -> Window:
    """From segment `first` on, until `words` words are there or the captions end; never none."""
    last, count = first, 0
    while last < len(captions) and (last == first or count < words):
        count += len(captions.text[last].split())
        last += 1
    return Window(first, last)


def fixed_windows(captions: Captions, words: int) -> list[Window]:
    """One window after the other through the video, each with new segments only."""
    found, first = [], 0
    while first < len(captions):
        found.append(window_at(captions, first, words))
        first = found[-1].last
    return found


def within(captions: Captions, seconds: float) -> int:
    """How many segments, from the first on, begin before the features end."""
    return int(np.searchsorted(captions.start, seconds, "left"))


def words_of(captions: Captions, window: Window) -> str:
    """The window's text."""
    return _JOINT.join(captions.text[window.first : window.last])


def rows_of(captions: Captions, window: Window, rate: float, rows: int, most: int) -> NDArray[np.int64]:
    """Feature rows (M,) of the window's time, at least one, at most `most`, then evenly spread over it."""
    begin = captions.start[window.first]
    end = max(captions.end[window.first : window.last])
    first = min(rows - 1, max(0, int(begin * rate)))
    last = min(rows, max(first + 1, int(np.ceil(end * rate - 1e-6))))
    if last - first <= most:
        return np.arange(first, last)
    return np.linspace(first, last - 1, most).astype(np.int64)
