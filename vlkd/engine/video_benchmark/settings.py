"""What a benchmark's config says: the section `benchmark`, its overrides, and the data set that it names."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlkd.cache import cache_folder, cache_key
from vlkd.errors import UserError

if TYPE_CHECKING:
    from vlkd.data.video import VideoDataset, VideoRecord

SECTION = "benchmark"
# What is measured, and which form of predictions it is measured on.
FORM_OF = {
    "mIoU": "semantic",
    "VC": "semantic",
    "TC": "semantic",
    "VPQ": "panoptic",
    "STQ": "panoptic",
    "AP": "tracks",
    "HOTA": "tracks",
}
ALLOWED = {
    "semantic": ("mIoU", "VC", "TC"),
    "panoptic": ("mIoU", "VC", "TC", "VPQ", "STQ", "AP"),
    "tracks": ("AP",),
    "burst": ("AP", "HOTA"),
}


@dataclass(frozen=True)
class DatasetChoice:
    """A split of a video data set, as for vlkd.data.video.open_dataset.

    `base` and `novel`: a list of names, a text file, or a named split.
    """

    kind: str
    root: str | None = None
    split: str = "val"
    subset: str | None = None
    base: str | list[str] | None = None
    novel: str | list[str] | None = None


@dataclass(frozen=True)
class WorldChoice:
    """The procedural world as the data set: `videos` (0: not the world) of `frames`, `size` (H, W)."""

    videos: int = 0
    frames: int = 24
    size: tuple[int, int] = (128, 128)
    seed: int = 0


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: data, scores (None: all that the labels allow), and how the model is used.

    `templates`, `size`, `device` as for vlkd.infer.Predictor; `tracking`, `smoothing`, `object_threshold` (of
    panoptic segments) as for VideoPredictor; `readers` threads read frames, and videos to be scored, ahead.
    `hota_floor`: tracks of a lower score are left out of HOTA. `flow`: file of torchvision's RAFT weights,
    without which there is no TC.
    """

    dataset: DatasetChoice
    world: WorldChoice = field(default_factory=WorldChoice)
    scores: list[str] | None = None
    vc_windows: tuple[int, ...] = (8, 16)
    vpq_windows: tuple[int, ...] = (1, 2, 4, 6, 8)
    hota_floor: float = 0.1
    flow: str | None = None
    templates: str | None = None
    size: int | None = None
    tracking: Literal["propagate", "match"] | None = None
    smoothing: float = 0.0
    object_threshold: float = 0.8
    readers: int = 2
    device: str = "cpu"

    def plain(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)


def is_benchmark(content: Mapping[str, Any]) -> bool:
    """Whether a config describes a benchmark instead of an experiment."""
    return SECTION in content


def read_settings(config: Path, overrides: Sequence[str] = ()) -> Benchmark:
    """The section of a config file with overrides `--benchmark.KEY=value`.

    Raises UserError for an unknown key (naming the nearest), a value of the wrong type, or an unknown score.
    """
    from jsonargparse import ArgumentParser

    from vlkd.engine.config_errors import check_keys, explain, read_config
    from vlkd.engine.experiment import quiet_libraries

    quiet_libraries()
    content = read_config(config)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Benchmark, SECTION)
    check_keys(parser, {}, content, overrides, str(config))
    try:
        parsed = parser.parse_args(["--config", str(config), *overrides])
        settings: Benchmark = parser.instantiate_classes(parsed)[SECTION]
    except (ArgumentError, TypeError, ValueError) as problem:
        raise explain(problem, str(config)) from None
    _check(settings, str(config))
    return settings


def open_benchmark(settings: Benchmark) -> VideoDataset:
    """The data set of a benchmark; a world is written into the cache first. Raises UserError."""
    from vlkd.data.video import open_dataset

    kind, root, split, subset = place(settings)
    dataset = open_dataset(kind, root, split, subset, base=settings.dataset.base, novel=novel_of(settings))
    if not len(dataset):
        raise UserError(f"{dataset.source}: the split {split!r} has no videos")
    return dataset


def place(settings: Benchmark) -> tuple[str, Path, str, str | None]:
    """Kind, root, split and subset; writes the world if it is not in the cache yet."""
    data = settings.dataset
    if settings.world.videos:
        return data.kind, _world(data, settings.world), data.split, data.subset
    if data.root is None:
        raise UserError(
            f"{SECTION}.dataset.root: missing; pass --{SECTION}.dataset.root=DIR, the folder of {data.kind}"
        )
    return data.kind, Path(data.root), data.split, data.subset


def novel_of(settings: Benchmark) -> str | list[str] | None:
    """The choice of novel classes; of the world its own unless told otherwise."""
    if settings.dataset.novel is None and settings.world.videos:
        from vlkd.data.world import NOVEL, OBJECTS

        whole = settings.dataset.kind in ("vspw", "vipseg", "camvid")
        return [name for name in NOVEL if whole or name in OBJECTS]
    return settings.dataset.novel


def measured(settings: Benchmark, record: VideoRecord) -> list[str]:
    """Names of what is measured on videos like this one, in the order of FORM_OF.

    Raises UserError for a score that the labels of the data set do not allow.
    """
    kind = "burst" if settings.dataset.kind == "burst" else record.form
    allowed = ALLOWED[kind]
    for score in settings.scores or ():
        if score not in allowed:
            raise UserError(
                f"{SECTION}.scores: {score} needs labels that {settings.dataset.kind} does not have; "
                f"possible: {', '.join(allowed)}"
            )
    if settings.flow is None:
        if "TC" in (settings.scores or ()):
            raise UserError(
                f"{SECTION}.scores: TC needs {SECTION}.flow, a file of torchvision's RAFT weights"
            )
        allowed = tuple(score for score in allowed if score != "TC")
    elif "TC" in allowed and not Path(settings.flow).is_file():
        raise UserError(f"{SECTION}.flow: {settings.flow}: no such file; expected torchvision's RAFT weights")
    return [score for score in allowed if settings.scores is None or score in settings.scores]


def _check(settings: Benchmark, name: str) -> None:
    for score in settings.scores or ():
        if score not in FORM_OF:
            near = difflib.get_close_matches(score, FORM_OF, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(
                f"{name}: {SECTION}.scores: {score!r} is unknown; {hint}Known: {', '.join(FORM_OF)}"
            )
    whole = {"readers": settings.readers, "world.frames": settings.world.frames}
    whole |= {"vc_windows": min(settings.vc_windows, default=0)}
    whole |= {"vpq_windows": min(settings.vpq_windows, default=0)}
    for key, value in whole.items():
        if value < 1:
            raise UserError(f"{name}: {SECTION}.{key}: expected 1 or more")
    for key in ("hota_floor", "object_threshold"):
        if not 0 <= getattr(settings, key) <= 1:
            raise UserError(f"{name}: {SECTION}.{key}: expected 0 to 1")
    if settings.world.videos < 0 or min(settings.world.size) < 1:
        raise UserError(f"{name}: {SECTION}.world: expected 0 videos or more, of 1 pixel or more each way")
    if settings.scores == []:
        raise UserError(f"{name}: {SECTION}.scores: the list is empty; known: {', '.join(FORM_OF)}")


def _world(data: DatasetChoice, world: WorldChoice) -> Path:
    """Folder of the world's videos in the layout of the kind, written at first use."""
    from vlkd.data.video.writer import FIRST, write_world
    from vlkd.data.world import World

    if data.split not in FIRST:
        raise UserError(f"{SECTION}.dataset.split: the world has {', '.join(FIRST)}, not {data.split!r}")
    layout = "vipseg_720p" if data.kind == "vipseg" else data.kind
    # A small scene stands for the renderer: another one gives other pixels, so another folder.
    scene = next(iter(World(world.seed).video(FIRST[data.split], 1, (64, 64))))
    pixels = hashlib.sha256(scene.image.tobytes()).hexdigest()
    key = cache_key(layout=layout, split=data.split, **asdict(world), pixels=pixels)
    folder = cache_folder() / "world_videos" / f"{layout}-{key[:16]}"
    if not folder.is_dir():
        print(f"writing {world.videos} videos of {world.frames} frames to {folder}", flush=True)
        part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        try:
            write_world(layout, part, data.split, world.videos, world.frames, world.size, world.seed)
            os.replace(part, folder)
        except OSError as error:
            if not folder.is_dir():  # another process may have been faster
                raise UserError(f"{folder}: the world cannot be written there: {error}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder
