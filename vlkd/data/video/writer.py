"""Videos of the procedural world, written in the layouts of the real data sets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlkd.data.files import whole_file
from vlkd.data.video.masks import encode_mask
from vlkd.data.world import BACKGROUNDS, NAMES, NOVEL, OBJECTS, THINGS, World
from vlkd.data.world.world import Scene
from vlkd.errors import UserError
from vlkd.text.names import nearest_hint

# Backgrounds first: in raw VIPSeg files class 1 cannot be a thing, as 101 would be read as class 101
NAMED = (*BACKGROUNDS, *OBJECTS)
FIRST = {"train": 0, "val": 1_000_000, "valid": 1_000_000, "test": 2_000_000}  # number of a split's video 0
FPS = 24
BURST_EVERY = 4  # BURST labels every so many frames
_VALUES = np.array([NAMED.index(name) + 1 for name in NAMES])


@dataclass(frozen=True)
class Job:
    """What is written: the videos `first`.. of a world, below `root`; labels are withheld from "test"."""

    root: Path
    split: str
    videos: int
    frames: int
    size: tuple[int, int]
    seed: int

    @property
    def labelled(self) -> bool:
        """Whether labels are written."""
        return self.split != "test"

    def scenes(self) -> Iterator[tuple[str, list[Scene]]]:
        """Name and scenes of every video."""
        world = World(self.seed)
        for number in range(FIRST[self.split], FIRST[self.split] + self.videos):
            yield f"{number:07d}", list(world.video(number, self.frames, self.size))


def write_world(
    kind: str,
    root: str | Path,
    split: str = "val",
    videos: int = 4,
    frames: int = 24,
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
) -> Path:
    """Write videos of a world of size (H, W) in a layout of WRITERS; the folder that open_dataset reads.

    Labels are exact, frames are JPEGs. VSPW, VIPSeg and CamVid have all 46 classes, backgrounds first; the
    others have the 34 things, LV-VIS with the world's novel classes as partition 2. The same arguments give
    the same labels again. Raises UserError for an unknown kind or split.
    """
    for value, known, what in ((kind, WRITERS, "layout"), (split, FIRST, "split")):
        if value not in known:
            raise UserError(
                f"cannot write the world as {what} {value!r}{nearest_hint(value, known)}; "
                f"known: {', '.join(known)}"
            )
    job = Job(Path(root), split, videos, frames, size, seed)
    WRITERS[kind](job)
    return job.root


def _write_vspw(job: Job) -> None:
    ids = []
    for id, scenes in job.scenes():
        ids.append(id)
        for t, scene in enumerate(scenes):
            _save(job.root / "data" / id / "origin" / f"{t:08d}.jpg", scene.image)
            if job.labelled:
                _save(job.root / "data" / id / "mask" / f"{t:08d}.png", _classes(scene).astype(np.uint8))
    _write_list(job, ids)


def _write_camvid(job: Job) -> None:
    for id, scenes in job.scenes():
        for t, scene in enumerate(scenes):
            _save(job.root / "images" / job.split / id / f"{t:05d}.jpg", scene.image)
            _save(
                job.root / "labels" / job.split / id / f"{t:05d}.png", (_classes(scene) - 1).astype(np.uint8)
            )
    _write_text(job.root / "names.txt", "".join(f"{name}\n" for name in NAMED))


def _write_vipseg(job: Job) -> None:
    ids = []
    for id, scenes in job.scenes():
        ids.append(id)
        values = _vipseg_values(scenes)
        for t, scene in enumerate(scenes):
            _save(job.root / "imgs" / id / f"{t:08d}.jpg", scene.image)
            if job.labelled:
                mask = values[scene.panoptic].astype(np.uint16)
                _save(job.root / "panomasks" / id / f"{t:08d}.png", mask)
    _write_list(job, ids)


def _write_vipseg_720p(job: Job) -> None:
    ids: list[str] = []
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for id, scenes in job.scenes():
        ids.append(id)
        values = _vipseg_values(scenes)
        images, entries = [], []
        for t, scene in enumerate(scenes):
            stem = f"{t:08d}"
            height, width = scene.panoptic.shape
            images.append({"id": stem, "width": width, "height": height, "file_name": f"{stem}.jpg"})
            _save(job.root / "images" / id / f"{stem}.jpg", scene.image)
            if not job.labelled:
                continue
            mask = values[scene.panoptic]
            _save(job.root / "panomasks" / id / f"{stem}.png", mask.astype(np.uint16))
            colours = np.stack([mask % 256, mask // 256, np.zeros_like(mask)], axis=-1)
            _save(job.root / "panomasksRGB" / id / f"{stem}.png", colours.astype(np.uint8))
            areas = np.bincount(scene.panoptic.ravel())
            segments = [
                {
                    "id": int(values[k]),
                    "category_id": int(_VALUES[c]) - 1,
                    "iscrowd": 0,
                    "area": int(areas[k]),
                }
                for k, c in scene.categories.items()
            ]
            entries.append({"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments})
        videos.append({"video_id": id, "images": images})
        annotations.append({"video_id": id, "annotations": entries})
    if job.labelled:
        content = {"videos": videos, "annotations": annotations, "categories": _categories()}
        _write_text(job.root / f"panoptic_gt_VIPSeg_{job.split}.json", json.dumps(content))
    _write_list(job, ids)


def _tracks_writer(
    json_file: str, frames: str, extra: Callable[[str], dict[str, Any]]
) -> Callable[[Job], None]:
    def write(job: Job) -> None:
        videos: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (id, scenes) in enumerate(job.scenes(), 1):
            for t, scene in enumerate(scenes):
                _save(job.root / frames.format(job.split) / id / f"{t:05d}.jpg", scene.image)
            height, width = job.size
            files = [f"{id}/{t:05d}.jpg" for t in range(len(scenes))]
            facts = {
                "id": number,
                "width": width,
                "height": height,
                "length": len(files),
                "file_names": files,
            }
            videos.append(facts)
            for track, category in _things(scenes).items():
                annotations.append(_annotation(len(annotations) + 1, number, category, track, scenes))
        categories = [{"id": k + 1, "name": name, **extra(name)} for k, name in enumerate(OBJECTS)]
        content = {
            "videos": videos,
            "categories": categories,
            "annotations": annotations if job.labelled else None,
        }
        _write_text(job.root / json_file.format(job.split), json.dumps(content))

    return write


def _write_burst(job: Job) -> None:
    sequences = []
    for number, (id, scenes) in enumerate(job.scenes(), 1):
        names = [f"{t:05d}.jpg" for t in range(len(scenes))]
        for name, scene in zip(names, scenes, strict=True):
            _save(job.root / "images" / job.split / "world" / id / name, scene.image)
        shown = scenes[::BURST_EVERY]
        things = _things(shown)
        masks = [
            {
                str(k): {"rle": encode_mask(scene.panoptic == k)["counts"], "is_gt": True, "score": 1.0}
                for k in things
                if k in scene.categories
            }
            for scene in shown
        ]
        facts = {"id": number, "seq_name": id, "dataset": "world", "fps": FPS}
        facts |= {"width": job.size[1], "height": job.size[0], "all_image_paths": names}
        facts |= {"annotated_image_paths": names[::BURST_EVERY]}
        facts |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
        facts |= {"track_category_ids": {str(k): c + 1 for k, c in things.items()}, "segmentations": masks}
        sequences.append(facts)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(OBJECTS)]
    content = {"sequences": sequences, "categories": categories, "split": job.split}
    _write_text(job.root / "annotations" / job.split / "all_classes.json", json.dumps(content))


def _annotation(id: int, video: int, category: int, track: int, scenes: list[Scene]) -> dict[str, Any]:
    masks = [scene.panoptic == track if track in scene.categories else None for scene in scenes]
    return {
        "id": id,
        "video_id": video,
        "category_id": category + 1,
        "iscrowd": 0,
        "segmentations": [None if mask is None else encode_mask(mask) for mask in masks],
        "bboxes": [None if mask is None else _box(mask) for mask in masks],
        "areas": [None if mask is None else int(mask.sum()) for mask in masks],
    }


def _box(mask: NDArray[np.bool_]) -> list[int]:
    """[x, y, width, height] of a mask (H,W)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def _things(scenes: list[Scene]) -> dict[int, int]:
    """{track id: class index} of the things that are seen in any of the scenes."""
    seen = {k: c for scene in scenes for k, c in scene.categories.items() if c < THINGS}
    return dict(sorted(seen.items()))


def _classes(scene: Scene) -> NDArray[np.int64]:
    """Position in NAMED, from 1, of every pixel's class (H,W)."""
    return _VALUES[scene.semantic]


def _vipseg_values(scenes: list[Scene]) -> NDArray[np.int64]:
    """Raw VIPSeg value of every segment id of a video: class, or 100 x class + instance for things."""
    seen = dict(sorted({k: c for scene in scenes for k, c in scene.categories.items()}.items()))
    values = np.zeros(max(seen) + 1, dtype=np.int64)
    counts: dict[int, int] = {}
    for segment, category in seen.items():
        values[segment] = _VALUES[category]
        if category < THINGS:
            values[segment] = 100 * values[segment] + counts.get(category, 0)
            counts[category] = counts.get(category, 0) + 1
    return values


def _categories() -> list[dict[str, Any]]:
    return [
        {"id": k, "name": name, "isthing": int(name in OBJECTS), "color": [5 * k, 255 - 5 * k, 37 * k % 256]}
        for k, name in enumerate(NAMED)
    ]


def _write_list(job: Job, ids: list[str]) -> None:
    _write_text(job.root / "panoVIPSeg_categories.json", json.dumps(_categories()))
    _write_text(job.root / f"{job.split}.txt", "".join(f"{id}\n" for id in ids))


def _write_text(path: Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _save(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.part{path.suffix}")
    Image.fromarray(array).save(part, quality=95)  # of JPEGs; PNGs know no quality
    os.replace(part, path)


_youtube_vis = _tracks_writer("{0}.json", "{0}/JPEGImages", lambda name: {})
WRITERS: dict[str, Callable[[Job], None]] = {
    "vspw": _write_vspw,
    "vipseg": _write_vipseg,
    "vipseg_720p": _write_vipseg_720p,
    "youtube_vis_2019": _youtube_vis,
    "youtube_vis_2021": _youtube_vis,
    "ovis": _tracks_writer("annotations/annotations_{0}.json", "{0}", lambda name: {}),
    "lvvis": _tracks_writer(
        "{0}/{0}_instances.json",
        "{0}/JPEGImages",
        lambda name: {"partition": 2 if name in NOVEL else 0},
    ),
    "burst": _write_burst,
    "camvid": _write_camvid,
}
