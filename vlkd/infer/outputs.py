"""Which inputs there are, what their results are called, which are done, and how results are written."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from vlkd.errors import UserError
from vlkd.infer.draw import palette, picture
from vlkd.infer.image_io import IMAGE_SUFFIXES, read_image, whole_file, write_image, write_labels
from vlkd.infer.video import VIDEO_SUFFIXES, VideoFile, VideoWriter, is_video

if TYPE_CHECKING:
    from vlkd.infer.predictor import Predictor, Segmentation


@dataclass(frozen=True)
class Job:
    """One input file and the stem of its results in the output folder."""

    source: Path
    stem: str

    @property
    def is_video(self) -> bool:
        return is_video(self.source)


def find_inputs(items: Sequence[str], out: Path) -> tuple[list[Path], list[str]]:
    """Files of paths, folders (recursive, by suffix, without `out`) and globs; and lines on what failed."""
    files: dict[Path, None] = {}
    problems = []
    for item in items:
        path = Path(item)
        if path.is_dir():
            found = sorted(_media(path, out))
        elif path.exists():
            found = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(item, recursive=True))
            found = [f for m in matches for f in (sorted(_media(m, out)) if m.is_dir() else [m])]
        if not found:
            problems.append(f"{item}: " + ("no image or video in it" if path.is_dir() else "no such file"))
        files |= dict.fromkeys(found)
    return list(files), problems


def plan(files: Iterable[Path], out: Path, owner_of: Callable[[str], str | None] | None = None) -> list[Job]:
    """Jobs with stems of their own: equal ones, in the list or in `out`, add suffix, folder or number.

    `owner_of(stem)`: the input whose results have the stem, or None; by default STEM.json in `out` tells.
    """
    jobs, taken = [], set()
    owner_of = owner_of or (lambda stem: _header(out / f"{stem}.json").get("file"))
    for file in files:
        for stem in _stems(file):
            owner = owner_of(stem) or str(file.resolve())
            if stem.casefold() not in taken and owner == str(file.resolve()):
                break
        taken.add(stem.casefold())
        jobs.append(Job(file, stem))
    return jobs


def is_done(job: Job, out: Path, settings: Mapping[str, Any], masks: bool = False) -> bool:
    """Whether `out` holds this job's whole results, with `masks` of a video too.

    Raises UserError for results of other settings.
    """
    path = out / f"{job.stem}.json"
    header = _header(path)
    if not header:
        return False
    if job.is_video and "complete" not in _last_line(path):
        return False
    changed = [key for key, value in settings.items() if header["settings"].get(key) != value]
    if changed:
        raise UserError(
            f"{path}: these results were made with other {', '.join(changed)}: "
            "choose another --out or pass --overwrite"
        )
    if not (masks and job.is_video):
        return True
    return len(list((out / job.stem).glob("*.png"))) >= _last_line(path)["frames"]


def run_image(
    predictor: Predictor, job: Job, out: Path, classes: Any, settings: Mapping[str, Any]
) -> list[float]:
    """Write STEM.png (indices), STEM.overlay.jpg and, last, STEM.json; returns the prediction's [ms]."""
    image = read_image(job.source)
    start = perf_counter()
    found = predictor(image, classes)
    ms = 1000 * (perf_counter() - start)
    write_labels(out / f"{job.stem}.png", found.labels, palette(len(found.names)))
    write_image(out / f"{job.stem}.overlay.jpg", picture(image, found.labels, found.names, found.areas))
    record = _describe(job, settings, image.shape) | {"ms": round(ms, 1), "classes": _present(found)}
    with whole_file(out / f"{job.stem}.json") as part:
        part.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    return [ms]


def run_video(
    predictor: Predictor,
    job: Job,
    out: Path,
    classes: Any,
    settings: Mapping[str, Any],
    masks: bool = False,
    advance: Callable[[int, int | None], None] = lambda done, total: None,
) -> list[float]:
    """Write STEM.mp4 (overlay), STEM.json (lines: input, frames, end); with `masks` STEM/000000.png, ...

    `advance(frames read, frames or None)` follows the progress. Returns the milliseconds of every frame. Of a
    video that is damaged further on the frames before are kept and the UserError is raised again.
    """
    video, every = VideoFile(job.source), int(settings["every"])
    times: list[float] = []
    failure: UserError | None = None
    with whole_file(out / f"{job.stem}.json") as part, part.open("w", encoding="utf-8") as log:
        with VideoWriter(out / f"{job.stem}.mp4", video.fps / every) as writer:
            frames = predictor.video(
                job.source, classes, every=every, smoothing=settings.get("smoothing") or 0.0
            )
            try:
                for found, ms in _timed(frames):
                    assert found.frame is not None and found.time is not None
                    index = len(times) * every
                    if not times:
                        _line(log, _describe(job, settings, found.frame.shape) | {"fps": video.fps})
                    drawn = picture(found.frame, found.labels, found.names, found.areas, steady=True)
                    writer.write(drawn, found.time)
                    if masks:
                        colours = palette(len(found.names))
                        write_labels(out / job.stem / f"{index:06d}.png", found.labels, colours)
                    row = {"frame": index, "time": round(found.time, 4), "ms": round(ms, 1)}
                    _line(log, row | {"classes": _present(found)})
                    times.append(ms)
                    advance(index + 1, video.frames)
            except UserError as error:
                if not times:
                    raise
                failure = UserError(f"{error} (the {len(times)} before are in {job.stem}.mp4)")
        _line(log, {"error": str(failure)} if failure else {"complete": True, "frames": len(times)})
    if failure:
        raise failure
    return times


def _timed(frames: Iterator[Segmentation]) -> Iterator[tuple[Segmentation, float]]:
    while True:
        start = perf_counter()
        try:
            found = next(frames)
        except StopIteration:
            return
        yield found, 1000 * (perf_counter() - start)


def _describe(job: Job, settings: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "file": str(job.source.resolve()),
        "settings": dict(settings),
        "width": shape[1],
        "height": shape[0],
    }


def _present(found: Segmentation) -> list[dict[str, Any]]:
    order = [int(i) for i in np.argsort(-found.areas, kind="stable") if found.areas[i] > 0]
    return [
        {
            "name": found.names[i],
            "area": round(float(found.areas[i]), 6),
            "score": round(float(found.scores[i]), 4),
        }
        for i in order
    ]


def _media(folder: Path, out: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        media = path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not path.name.startswith(".")
        if media and path.is_file() and out.resolve() not in path.resolve().parents:
            yield path


def _stems(file: Path) -> Iterator[str]:
    suffix, folder = file.suffix[1:].lower(), file.resolve().parent.name
    yield file.stem
    yield f"{file.stem}_{suffix}"
    yield f"{folder}-{file.stem}"
    yield f"{folder}-{file.stem}_{suffix}"
    number = 2
    while True:
        yield f"{file.stem}_{number}"
        number += 1


def _line(log: Any, record: Mapping[str, Any]) -> None:
    log.write(json.dumps(record, ensure_ascii=False) + "\n")


def _header(path: Path) -> dict[str, Any]:
    """First line of a results file; {} where there is none or it is not ours."""
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    return header if isinstance(header, dict) and {"file", "settings"} <= header.keys() else {}


def _last_line(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        lines = file.read().splitlines()
    try:
        return json.loads(lines[-1])
    except (ValueError, IndexError):
        return {}
