"""Captioned videos and texts in the true layouts, made by hand: row t of a video is filled with t."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlkd.text.word_ids import build_tokenizer, tokenizer_text

WORDS = [f"w{k}" for k in range(200)]


def tokenizer_file(folder: Path) -> str:
    """A tokenizer.json that has w0 .. w199 and the dot."""
    path = folder / "tokenizer.json"
    path.write_text(tokenizer_text(build_tokenizer([" ".join([*WORDS, "."])])), encoding="utf-8")
    return str(path)


def write_captions(path: Path, videos: Mapping[str, list[tuple[float, float, str]]]) -> str:
    """Segments (start, end, text) of each video as HowTo100M's JSON."""
    columns = ("start", "end", "text")
    content = {
        id: {key: [row[k] for row in rows] for k, key in enumerate(columns)} for id, rows in videos.items()
    }
    path.write_text(json.dumps(content))
    return str(path)


def write_features(folder: Path, rows: Mapping[str, int], width: int = 4, suffix: str = ".npy") -> str:
    """Rows (T,width) float16 of each video, row t filled with t."""
    folder.mkdir(parents=True, exist_ok=True)
    for id, count in rows.items():
        values = np.repeat(np.arange(count)[:, None], width, 1).astype(np.float16)
        np.save(folder / f"{id}{suffix}", values)
    return str(folder)


def write_index(folder: Path, kinds: Mapping[str, float]) -> None:
    """The index of `vlkd features` with rows a second by kind."""
    content: dict[str, Any] = {"format": 1, "kinds": {k: {"fps": v} for k, v in kinds.items()}, "videos": {}}
    (folder / "index.json").write_text(json.dumps(content))
