"""Where each part of a folder of video predictions lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlkd.data.files import whole_file
from vlkd.data.video import VideoRecord
from vlkd.data.video.record import Form

FORMAT = 1
FORMS: tuple[Form, ...] = ("semantic", "panoptic", "tracks")
HEADER = "predictions.json"
DONE = "videos"  # the folder with a file for every video that is complete
WHOLE: dict[Form, str] = {"panoptic": "pred.json", "tracks": "results.json"}  # one JSON of all videos
LARGEST = (1 << 24) - 1  # segment id that three bytes hold


def png_folder(root: Path, form: Form, video: str) -> Path:
    """Folder of a video's PNGs, one a frame."""
    return root / form / video


def json_file(root: Path, part: str, video: str) -> Path:
    """JSON file of a video below a form's folder, or below DONE."""
    return root / part / f"{video}.json"


def stems(record: VideoRecord) -> list[str]:
    """Names (T,) of a video's frames without suffix."""
    return [path.stem for path in record.frame_files]


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content), encoding="utf-8")
