"""Small video data sets in the true layouts, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (4, 6)  # H, W
VIPSEG_CATEGORIES = [
    {"id": 0, "name": "wall", "isthing": 0, "color": [1, 2, 3]},
    {"id": 1, "name": "ceiling", "isthing": 0, "color": [4, 5, 6]},
    {"id": 2, "name": "door", "isthing": 1, "color": [7, 8, 9]},
]


def save(path: Path, array: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)


def frame(path: Path, size: tuple[int, int] = SIZE) -> None:
    save(path, np.full((*size, 3), 90, np.uint8))


def mask(values: Any, dtype: Any = np.uint8) -> np.ndarray:
    return np.resize(np.array(values), SIZE).astype(dtype)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def vspw(root: Path, videos: dict[str, list[Any]], split: str = "val", frames: bool = True) -> Path:
    """`videos`: for each the values of its masks, frame by frame; None for a frame without one."""
    for video, masks in videos.items():
        for t, values in enumerate(masks):
            frame(root / "data" / video / "origin" / f"{t:08d}.jpg")
            if values is not None:
                save(root / "data" / video / "mask" / f"{t:08d}.png", mask(values))
    (root / f"{split}.txt").write_text("\n".join(videos))
    return root


def vipseg_720p(root: Path, frames: list[list[tuple[int, int, list[int]]]], split: str = "val") -> Path:
    """One video "a": for every frame (id, category_id, flat pixels) of its segments."""
    images, entries = [], []
    for t, segments in enumerate(frames):
        stem = f"{t:08d}"
        ids = np.zeros(SIZE, np.int64)
        for id, _, pixels in segments:
            ids.flat[pixels] = id
        frame(root / "images" / "a" / f"{stem}.jpg")
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1)
        save(root / "panomasksRGB" / "a" / f"{stem}.png", colours.astype(np.uint8))
        images.append({"id": stem, "width": SIZE[1], "height": SIZE[0], "file_name": f"{stem}.jpg"})
        info = [{"id": i, "category_id": c, "iscrowd": 0, "area": len(p)} for i, c, p in segments]
        entries.append({"image_id": stem, "file_name": f"{stem}.png", "segments_info": info})
    content = {
        "videos": [{"video_id": "a", "images": images}],
        "annotations": [{"video_id": "a", "annotations": entries}],
        "categories": VIPSEG_CATEGORIES,
    }
    write_json(root / f"panoptic_gt_VIPSeg_{split}.json", content)
    return root


def ytvis(names: list[str], segmentations: list[Any], **change: Any) -> dict[str, Any]:
    """A JSON of one video 7, "vid", with one annotation of category 1; `change` replaces its top entries."""
    files = [f"vid/{t:05d}.jpg" for t in range(len(segmentations))]
    video = {"id": 7, "width": SIZE[1], "height": SIZE[0], "length": len(files), "file_names": files}
    annotation = {"id": 3, "video_id": 7, "category_id": 1, "iscrowd": 0, "segmentations": segmentations}
    categories = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
    return {"videos": [video], "annotations": [annotation], "categories": categories, **change}


def ytvis_frames(folder: Path, count: int, video: str = "vid") -> None:
    for t in range(count):
        frame(folder / video / f"{t:05d}.jpg")
