"""The report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from vlkd.engine.tables import Table
from vlkd.engine.video_benchmark.pictures import Strip
from vlkd.engine.video_benchmark.report import Result

BASE, NOVEL = "#4477aa", "#d55e00"
STYLE = """
body{font-family:system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#1a1a1a}
body{line-height:1.45}
h2{margin-top:2em;border-bottom:1px solid #ccc}
table{border-collapse:collapse;margin:1em 0}
td,th{border:1px solid #ccc;padding:.3em .7em;text-align:left;vertical-align:top;overflow-wrap:anywhere}
.scores td+td{text-align:right;font-variant-numeric:tabular-nums}
.bars{columns:22em;column-gap:2em;font-size:.85em}
.bar{display:flex;align-items:center;break-inside:avoid;padding:1px 0}
.bar .name{width:10em;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.bar .name{text-align:right;padding-right:.6em}
.bar .track{flex:1;background:#eee;height:.9em}
.bar .fill{height:100%}
.bar .value{width:3.5em;text-align:right;font-variant-numeric:tabular-nums}
.key{display:inline-block;margin:.1em .9em .1em 0;white-space:nowrap}
.swatch{display:inline-block;width:.9em;height:.9em;margin-right:.35em}
.swatch{border:1px solid #555;vertical-align:-.1em}
.novel{color:#b34700;font-weight:600}
.mark{color:#666}
figure{margin:1.5em 0;break-inside:avoid}
figure img{max-width:100%;display:block}
.heads{display:flex;max-width:100%;font-size:.85em;color:#444}
.heads span{flex:1}
figcaption{margin-bottom:.3em;font-weight:600}
.legend{font-size:.85em;margin-top:.3em}
"""


def page(result: Result, ranked_by: str, best: Sequence[Strip], worst: Sequence[Strip]) -> str:
    """The whole page."""
    parts = [
        f"<h1>{escape(result.title)}</h1>",
        _table(result.table, "scores"),
        "<p>VPQ in percent, all others as fractions of 1; - where nothing is to be measured.</p>"
        if any(key.startswith("VPQ") for key in result.scores)
        else "<p>Fractions of 1; - where nothing is to be measured.</p>",
        f"<p>{escape(result.speed_line)}</p>",
        *(f"<p>{escape(note)}</p>" for note in result.notes),
        "<h2>Protocol</h2>",
        _table(Table("", ["flag", "value"], [[k, str(v)] for k, v in result.protocol.items()]), "flags"),
        _bars(result.classes),
        _pictures(f"Best videos by {ranked_by}", best),
        _pictures(f"Worst videos by {ranked_by}", worst),
        _videos(result),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{escape(result.title)}</title>\n"
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _table(table: Table, kind: str) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table.cells()
    )
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>'


def _bars(classes: Sequence[dict[str, Any]]) -> str:
    """IoU of every class that occurs in the truth, best first; the others are named below."""
    there = [entry for entry in classes if entry["share"] > 0]
    if not there:
        return ""
    rows = []
    for entry in sorted(there, key=lambda entry: -entry["iou"]):
        name, novel = escape(entry["name"]), entry["group"] == "novel"
        colour, kind = (NOVEL, "name novel") if novel else (BASE, "name")
        rows.append(
            f'<div class="bar" title="{name}: IoU {entry["iou"]:.4f}, {100 * entry["share"]:.2f} % of the '
            f'pixels"><span class="{kind}">{name}</span><span class="track"><span class="fill" '
            f'style="display:block;width:{100 * entry["iou"]:.1f}%;background:{colour}"></span></span>'
            f'<span class="value">{entry["iou"]:.3f}</span></div>'
        )
    split = any(entry["group"] for entry in there)
    keys = f"{_key(BASE, 'base')}{_key(NOVEL, 'novel')}" if split else ""
    absent = [entry["name"] for entry in classes if not entry["share"]]
    more = f"<p>Not in the ground truth: {escape(', '.join(absent))}.</p>" if absent else ""
    return f'<h2>IoU by class</h2>\n<p>{keys}</p>\n<div class="bars">\n' + "\n".join(rows) + f"\n</div>{more}"


def _pictures(title: str, strips: Sequence[Strip]) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(map(_figure, strips)) if strips else ""


def _figure(strip: Strip) -> str:
    keys = "".join(
        _key("#{:02x}{:02x}{:02x}".format(*colour), name, mark) for name, colour, mark in strip.legend
    )
    width = strip.picture.shape[1]
    return (
        f"<figure><figcaption>{escape(strip.caption)}</figcaption>\n"
        f'<div class="heads" style="width:{width}px"><span>frame</span><span>truth</span>'
        f'<span>prediction</span></div>\n<img width="{width}" src="data:image/jpeg;base64,{_jpeg(strip)}" '
        f'alt="frame, truth and prediction">\n<div class="legend">{keys}</div></figure>'
    )


def _key(colour: str, name: str, mark: str = "") -> str:
    said = f' <span class="mark">({escape(mark)})</span>' if mark else ""
    swatch = f'<span class="swatch" style="background:{colour}"></span>'
    return f'<span class="key">{swatch}{escape(name)}{said}</span>'


def _jpeg(strip: Strip) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(strip.picture).save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _videos(result: Result) -> str:
    if not result.videos:
        return ""
    columns = list(dict.fromkeys(key for found in result.videos.values() for key in found))
    rows = [
        [id, *(f"{found[c]:.4g}" if math.isfinite(found.get(c, math.nan)) else None for c in columns)]
        for id, found in result.videos.items()
    ]
    table = _table(Table("", ["video", *columns], rows), "scores")
    return f"<h2>Videos</h2>\n<details><summary>{len(rows)} videos</summary>\n{table}</details>"
