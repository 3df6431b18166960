"""Timed captions: a JSON {video id: {"start": [...], "end": [...], "text": [...]}}, as HowTo100M's."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkd.data.files import read_text
from vlkd.errors import UserError

_FORM = '{"start": [...], "end": [...], "text": [...]}'


@dataclass(frozen=True)
class Captions:
    """The spoken words of one video: begin and end (seconds) and text of N segments, ordered by begin."""

    video: str
    start: tuple[float, ...]
    end: tuple[float, ...]
    text: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.text)


def read_captions(path: str | Path) -> tuple[dict[str, Captions], list[str]]:
    """Captions by video id, and a line for each video that was left out because no segment has text.

    Segments without text, or that end before they begin, are left out. Raises UserError naming file and video
    for any other form.
    """
    path = Path(path).expanduser()
    content = _json(path)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: not timed captions; expected an object {{video id: {_FORM}}}")
    found = {id: _checked(path, id, entry) for id, entry in content.items()}
    problems = [
        f"{path}: video {id!r} has no caption with text; left out"
        for id, captions in found.items()
        if not len(captions)
    ]
    return {id: captions for id, captions in found.items() if len(captions)}, problems


def read_ids(path: str | Path) -> list[str]:
    """Video ids of a file: one a line, or a JSON list of strings. Raises UserError for another form."""
    path = Path(path).expanduser()
    if path.suffix == ".json":
        ids = _json(path)
        if not isinstance(ids, list) or not all(isinstance(id, str) for id in ids):
            raise UserError(f'{path}: not a list of video ids; expected ["ID", ...]')
    else:
        ids = [line.strip() for line in _text(path).splitlines() if line.strip()]
    if not ids:
        raise UserError(f"{path}: names no video")
    return list(dict.fromkeys(ids))


def _checked(path: Path, id: str, entry: Any) -> Captions:
    lists: list[Any] = [entry.get(key) for key in ("start", "end", "text")] if isinstance(entry, dict) else []
    if len(lists) != 3 or not all(isinstance(x, list) for x in lists):
        raise UserError(f"{path}: video {id!r} is not in the form {_FORM}")
    if len({len(x) for x in lists}) > 1:
        start, end, text = (len(x) for x in lists)
        raise UserError(
            f"{path}: video {id!r} has {start} starts, {end} ends and {text} texts; expected as many"
        )
    try:
        rows = [(float(a), float(b), " ".join(str(t).split())) for a, b, t in zip(*lists, strict=True)]
    except (TypeError, ValueError):
        raise UserError(f"{path}: video {id!r} has a time that is no number; expected seconds") from None
    # NaN stands for no text where a table was turned into JSON.
    kept = sorted(r for r in rows if r[2] and r[2] != "nan" and math.isfinite(r[0]) and r[1] > r[0])
    return Captions(id, *(tuple(x) for x in zip(*kept, strict=True))) if kept else Captions(id, (), (), ())


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON ({error.msg})") from None


def _text(path: Path) -> str:
    return read_text(path, "no such file; layouts are in docs/video-text.md")
