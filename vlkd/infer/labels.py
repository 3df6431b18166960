"""Predictions of a classifier as one table: predictions.csv, predictions.json and a sheet of thumbnails."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any

import numpy as np

from vlkd.errors import UserError
from vlkd.infer.classify import Classification
from vlkd.infer.draw import sheet
from vlkd.infer.image_io import read_image, whole_file, write_image

_SHEET = 60  # images on a sheet
_SAVE_EVERY = 60.0  # seconds; what a crash can cost


class Predictions:
    """The table of a results folder: one row an image, one row a video frame, in the order they were added.

    Rows that the folder already holds stay, so that interrupted work goes on; those of failed files do not.
    Raises UserError for a folder with predictions made with other settings, unless `overwrite` drops them.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.out, self.settings = out, dict(settings)
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.failed: dict[str, str] = {}
        self._saved = monotonic()
        self._json = out / "predictions.json"
        if self._json.exists() and not overwrite:
            self._load()

    def __contains__(self, file: Path) -> bool:
        return str(file.resolve()) in self.rows

    def add(self, file: Path, found: Classification) -> None:
        """Add an image's row."""
        key = str(file.resolve())
        self.rows[key] = [_row(file, found)]
        self.failed.pop(key, None)

    def add_video(self, file: Path, frames: Iterable[Classification], every: int) -> int:
        """Add a row for every n-th frame; returns how many. Until the last the video counts as failed."""
        key = str(file.resolve())
        self.rows[key] = rows = []
        self.failed[key] = f"{file}: not finished"
        for number, found in enumerate(frames):
            rows.append(_row(file, found, {"frame": number * every, "time": round(found.time or 0.0, 4)}))
        del self.failed[key]
        return len(rows)

    def fail(self, file: Path, error: UserError) -> None:
        """Note that a file could not be read; of a damaged video the rows before stay."""
        self.failed[str(file.resolve())] = str(error)

    def save(self, due: bool = False) -> None:
        """Write both files; with `due` only when the last time is a minute ago."""
        if due and monotonic() - self._saved < _SAVE_EVERY:
            return
        rows = [row for rows in self.rows.values() for row in rows]
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        rest = json.dumps([{"file": f, "error": e} for f, e in self.failed.items()], ensure_ascii=False)
        settings = json.dumps(self.settings, ensure_ascii=False)
        table = self.out / "predictions.csv"
        with whole_file(table) as part, part.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(_columns(rows))
        with whole_file(self._json) as part:
            text = f'{{"settings": {settings},\n"failed": {rest},\n"predictions": [\n{lines}\n]}}\n'
            part.write_text(text, encoding="utf-8")
        self._saved = monotonic()

    def draw(self) -> Path | None:
        """Write sheet.jpg: the table's images, evenly chosen where they are many; None if there are none."""
        rows = [r for r in (rows[0] for rows in self.rows.values() if rows) if "frame" not in r]
        shown = []
        for place in sorted({round(i) for i in np.linspace(0, len(rows) - 1, _SHEET)} if rows else ()):
            row = rows[place]
            try:
                shown.append((read_image(row["file"]), row["label"], row["score"]))
            except UserError:  # classified in an earlier call and gone since
                continue
        if not shown:
            return None
        path = self.out / "sheet.jpg"
        write_image(path, sheet(shown))
        return path

    def _load(self) -> None:
        try:
            content = json.loads(self._json.read_text(encoding="utf-8"))
            settings, failed, rows = content["settings"], content["failed"], content["predictions"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{self._json}: not written by vlkd, or damaged: choose another --out or pass --overwrite"
            ) from None
        changed = [key for key, value in self.settings.items() if settings.get(key) != value]
        if changed:
            raise UserError(
                f"{self._json}: these results were made with other {', '.join(changed)}: "
                "choose another --out or pass --overwrite"
            )
        again = {entry["file"] for entry in failed}
        for row in rows:
            if row["file"] not in again:
                self.rows.setdefault(row["file"], []).append(row)


def _row(
    file: Path, found: Classification, place: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    pairs = zip(found.names, found.scores.tolist(), strict=True)
    top = [{"name": name, "score": round(score, 4)} for name, score in pairs]
    facts = {"path": str(file), "file": str(file.resolve()), **place}
    return {**facts, "label": found.label, "score": top[0]["score"], "top": top}


def _columns(rows: list[dict[str, Any]]) -> Iterable[list[Any]]:
    width = max((len(row["top"]) for row in rows), default=1)
    more = [f"{word}_{place}" for place in range(2, width + 1) for word in ("label", "score")]
    yield ["path", "frame", "time", "label", "score", *more]
    for row in rows:
        top = [value for entry in row["top"] for value in (entry["name"], entry["score"])]
        yield [row["path"], row.get("frame", ""), row.get("time", ""), *top]
