"""Clips of the lexicon's objects in motion, and the MP4 files that they are kept in."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkd.cache import cache_folder, cache_key
from vlkd.data.files import whole_file
from vlkd.data.lexicon.words import ATTRIBUTES, SENTENCES, Lexicon
from vlkd.data.world.names import BACKGROUNDS, COLOURS
from vlkd.data.world.raster import Edges, Part, fill
from vlkd.data.world.scene import light
from vlkd.data.world.shapes import bar, ellipse, poly, rect, star
from vlkd.data.world.textures import pack, patch, unpack
from vlkd.errors import UserError

RENDERER = 1  # raise when pixels or captions change: stored videos are keyed by it
Images = NDArray[np.uint8]
_SHAPES = {
    "round": ellipse(0, 0, 0.9, points=32),
    "square": rect(-0.8, -0.8, 0.8, 0.8),
    "pointed": poly((0, -1.15), (1, 0.58), (-1, 0.58)),
    "starry": star(0, 0, 1.25, 0.55, 5),
}
_MARK = bar(0, 0, 0.62, 0, 0.42)  # off the centre, so that a disc can be seen to turn


@dataclass(frozen=True)
class Film:
    """What is filmed: clips of each noun, so many in one video file, and how."""

    nouns: int = 96
    seed: int = 0
    train_clips: int = 24
    val_clips: int = 4
    per_video: int = 6
    frames: int = 8
    fps: int = 4
    size: int = 64

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 0 or min(self.train_clips, self.val_clips, self.per_video) < 1:
            raise UserError("data: train_clips, val_clips and per_video must be at least 1, seeds 0 or more")
        if self.frames < 2 or self.fps < 1 or self.size < 32 or self.size % 2:
            raise UserError(
                f"data.frames={self.frames}, fps={self.fps}, size={self.size}: expected 2 frames, 1 frame a "
                "second and an even size of 32 or more"
            )

    @property
    def key(self) -> str:
        """Of the stored videos."""
        return cache_key(renderer=RENDERER, **asdict(self))[:24]

    @property
    def folder(self) -> Path:
        """Where the videos are."""
        return cache_folder() / "lexicon" / self.key


@dataclass(frozen=True)
class Plan:
    """All clips in the order of the videos (N,): noun, sentence family, wording, whether of validation."""

    noun: NDArray[np.int64]
    family: NDArray[np.int64]
    wording: NDArray[np.int64]
    val: NDArray[np.bool_]


def plan(film: Film) -> Plan:
    """Which clip shows what: half of each noun's clips with its name, half with its attributes.

    Training clips come first; no video has clips of both.
    """
    parts = []
    for split, each in enumerate((film.train_clips, film.val_clips)):
        rng = np.random.default_rng([film.seed, 1, split])
        count = film.nouns * each
        order = rng.permutation(count)
        noun, turn = (
            np.repeat(np.arange(film.nouns), each)[order],
            np.tile(np.arange(each), film.nouns)[order],
        )
        wording = rng.integers(len(SENTENCES[0]), size=count)
        parts.append((noun, (turn + noun) % 2, wording, np.full(count, bool(split))))
    return Plan(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def videos(film: Film, val: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Numbers of the clips in each video file."""
    found = []
    for split in (False, True):
        clips = np.flatnonzero(val == split)
        found += [clips[k : k + film.per_video] for k in range(0, len(clips), film.per_video)]
    return found


def render_clip(values: dict[str, str], film: Film, number: int) -> Images:
    """Frames (T,H,W,3) of one object before a grey background, softly lit.

    Place, size and angle of a single frame are distributed alike whatever the motion, so that a still picture
    does not tell it: the motion only decides which of them changes with time.
    """
    rng = np.random.default_rng([film.seed, 2, number])
    side = film.size
    texture = unpack(patch(list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))], rng, side, side))
    grey = (texture.astype(np.uint16).sum(2) // 6 + 60).astype(np.uint8)
    backdrop = pack(np.repeat(grey[..., None], 3, 2))
    main = np.array(COLOURS[values["colour"]]) * rng.uniform(0.85, 1.1)
    palette = pack(np.clip(np.stack([main, main * 0.45]), 0, 255).astype(np.uint8))
    edges = Edges.of([Part("main", [_SHAPES[values["shape"]]]), Part("dark", [_MARK])])
    phases, speed = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.7, 1.1) * (1 if rng.random() < 0.5 else -1)
    base, exposure = rng.uniform(0.17, 0.21), int(rng.integers(2**32))
    active = ATTRIBUTES["motion"].index(values["motion"])
    frames = []
    for time in range(film.frames):
        phase = phases.copy()
        phase[active] += time * speed
        across, down, angle, growth = phase
        x, y = (round(side * (0.5 + 0.17 * float(np.sin(v))), 6) for v in (across, down))
        radius = round(side * base * (1 + 0.35 * float(np.sin(growth))), 6)
        c, s = radius * round(float(np.cos(angle)), 9), radius * round(float(np.sin(angle)), 9)
        canvas = backdrop.copy()
        filled = fill(edges.transform(np.array([[c, -s], [s, c]]), np.array([x, y])), side, side)
        assert filled is not None, "the object never leaves the picture"
        window, top = filled
        np.copyto(canvas[window], palette[top], where=top >= 0)
        frames.append(light(np.random.default_rng(exposure), canvas))
    return np.stack(frames)


def film_all(film: Film) -> list[Path]:
    """The video files, rendered on all cores where they are not there yet, and captions.json beside them.

    captions.json has the form of HowTo100M's: {video: {"start", "end", "text"}}, times in seconds.
    """
    lexicon, clips = Lexicon(film.nouns, film.seed), plan(film)
    groups = videos(film, clips.val)
    paths = [film.folder / f"{k:05d}.mp4" for k in range(len(groups))]
    missing = [k for k, path in enumerate(paths) if not path.is_file()]
    if missing:
        from rich.console import Console
        from rich.progress import track

        film.folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as pool:
            work = pool.map(partial(_film, film, paths, groups, clips.noun), missing, chunksize=4)
            title = f"filming {len(missing)} videos"
            for _ in track(work, title, len(missing), console=Console(stderr=True), transient=True):
                pass
    captions = film.folder / "captions.json"
    if not captions.is_file():
        length = film.frames / film.fps
        said = {
            path.stem: {
                "start": [k * length for k in range(len(group))],
                "end": [(k + 1) * length for k in range(len(group))],
                "text": [caption(lexicon, clips, int(n)) for n in group],
            }
            for path, group in zip(paths, groups, strict=True)
        }
        with whole_file(captions) as part:
            part.write_text(json.dumps(said), encoding="utf-8")
    return paths


def caption(lexicon: Lexicon, clips: Plan, number: int) -> str:
    """What is said over a clip."""
    return lexicon.sentence(int(clips.noun[number]), int(clips.family[number]), int(clips.wording[number]))


def _film(
    film: Film,
    paths: list[Path],
    groups: list[NDArray[np.int64]],
    nouns: NDArray[np.int64],
    video: int,
) -> None:
    lexicon = Lexicon(film.nouns, film.seed)
    shots = [render_clip(lexicon.values(int(nouns[n])), film, int(n)) for n in groups[video]]
    write_mp4(paths[video], np.concatenate(shots), film.fps)


def write_mp4(path: Path, frames: Images, fps: int) -> None:
    """Frames (T,H,W,3) as H.264, whole or not at all.

    Without look-ahead: a frame's quality does not depend on what comes after it, which would tell the motion.
    """
    import av

    part = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    with av.open(str(part), "w") as container:
        options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "16"}
        stream: Any = container.add_stream("h264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    os.replace(part, path)


def read_mp4(path: Path, frames: int) -> Images:
    """All frames (T,H,W,3) of a stored video. Raises UserError where it is damaged or has another length."""
    import av

    av.logging.set_level(av.logging.PANIC)
    try:
        with av.open(str(path)) as container:
            found = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, OSError, IndexError):
        found = []
    if len(found) != frames:
        raise UserError(
            f"{path}: {len(found)} frames can be read, expected {frames}; delete it to film it again"
        )
    return np.stack(found)
