"""One HTML page that shows, for every token of some sentences, the clips that a model finds most like it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlkd.data.files import whole_file
from vlkd.errors import UserError

_STYLE = """body{font:15px/1.4 system-ui,sans-serif;margin:2em;color:#222}
.row{display:flex;flex-wrap:wrap;gap:14px;margin:0 0 28px}.token{text-align:center}
.token b{display:block;min-height:1.4em}.clip{margin:0 0 4px}
.clip img{display:block;height:64px;border:3px solid #ccc}.right img{border-color:#2a8a3a}
small,.row i{color:#777}.row i{width:5em}"""


@dataclass(frozen=True)
class Found:
    """A token of a sentence with the clips it is most like, best first, and those of them that are right.

    right: None where the token names nothing that is seen.
    """

    token: str
    clips: tuple[int, ...]
    right: frozenset[int] | None = None


def write_sheet(
    path: str | Path,
    title: str,
    sentences: Sequence[Sequence[Found]],
    frames: Callable[[int], NDArray[np.uint8]],
    shown: int = 3,
    names: Sequence[str] = (),
) -> Path:
    """Write the page, whole or not at all; it needs no other file.

    A row for each sentence, after its name where `names` has one for each; under each token `shown` frames of
    each of its clips side by side, framed green where the clip is right. `frames(clip)` gives (T,H,W,3).
    Raises UserError where there is nothing to show.
    """
    if not any(sentences) or shown < 1:
        raise UserError(f"{path}: nothing to show: expected sentences with tokens and 1 frame or more")
    strips: dict[int, str] = {}
    rows = []
    for tokens, name in zip(sentences, names or [""] * len(sentences), strict=True):
        cells = [f"<i>{html.escape(name)}</i>"] if name else []
        for found in tokens:
            for clip in found.clips:
                if clip not in strips:
                    strips[clip] = _strip(frames(clip), shown)
            pictures = "".join(
                f'<div class="clip{" right" if found.right and clip in found.right else ""}">'
                f'<img src="{strips[clip]}" alt="clip {clip}"></div>'
                for clip in found.clips
            )
            cells.append(f'<div class="token"><b>{html.escape(found.token)}</b>{pictures}</div>')
        rows.append(f'<div class="row">{"".join(cells)}</div>')
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    note = "<p><small>Under each token the clips that it is most like; green: a right one.</small></p>"
    page = f"<!doctype html><html><head>{head}</head><body><h1>{html.escape(title)}</h1>{note}"
    path = Path(path)
    with whole_file(path) as part:
        part.write_text(f"{page}{''.join(rows)}</body></html>\n", encoding="utf-8")
    return path


def _strip(frames: NDArray[np.uint8], shown: int) -> str:
    """Frames (T,H,W,3), evenly chosen, side by side as the data URI of a JPEG."""
    picked = np.linspace(0, len(frames) - 1, min(shown, len(frames))).round().astype(int)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames[picked]), 1)).save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
