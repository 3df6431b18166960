"""Command line: feature files of videos, for models that learn from video without decoding it again."""

from __future__ import annotations

import argparse
import glob
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from vlkd.errors import UserError
from vlkd.infer.cli import Parser, finish, interrupted, progress_bars

if TYPE_CHECKING:
    from rich.progress import TaskID

    from vlkd.infer.features import FeatureIndex, Stream
    from vlkd.infer.outputs import Job

_EXAMPLE = "example: %(prog)s videos/ --out features --image timm:resnet50 --video r3d_18"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="vlkd features", description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="videos, folders, globs, or .txt files with one path a line",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="where the feature files go")
    add(
        "--image",
        metavar="MODEL",
        help="2D features: timm:NAME, or a CLIP's open_clip name, zoo name, bundle",
    )
    add("--video", metavar="MODEL", help="3D features: r3d_18, mvit_v2_s or another of torchvision")
    weights = "local file (safetensors or plain torch), or random; default: the published ones"
    add("--weights", metavar="FILE", help=f"of the one model: {weights}")
    add(
        "--image-weights",
        metavar="FILE",
        help="likewise, of --image where both are given; of a CLIP also a tag",
    )
    add("--video-weights", metavar="FILE", help="likewise, of --video")
    add("--fps", type=float, default=1.0, help="2D features a second (default: %(default)s)")
    add("--clip-frames", type=int, default=16, metavar="N", help="frames of a clip (default: %(default)s)")
    add("--clip-fps", type=float, default=24.0, help="frames a second within a clip (default: %(default)s)")
    add("--raw", action="store_true", help="keep the vectors' lengths (default: length 1)")
    add(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="frames at once, clips N / 8 (default: %(default)s)",
    )
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps")
    add(
        "--overwrite",
        action="store_true",
        help="do finished videos again, and replace those of another model",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 all done, 1 some videos failed, 2 wrong usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    _check(args)
    from vlkd.infer.features import FeatureIndex
    from vlkd.infer.outputs import plan

    files, problems = find_videos(args.videos, args.out)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not files:
        return finish(0, 0, problems, "", args.out)
    streams = _streams(args)
    index = FeatureIndex(args.out, streams, args.overwrite)
    jobs = plan(files, args.out, index.owner)
    work = [(job, streams if args.overwrite else index.lacks(job.stem, streams)) for job in jobs]
    todo = [(job, missing) for job, missing in work if missing]
    return _extract_all(todo, len(jobs), index, problems, args)


def _check(args: argparse.Namespace) -> None:
    if not (args.image or args.video):
        raise UserError("name a model: --image for 2D features, --video for 3D features, or both")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out}: is a file, expected a folder")
    for option in ("fps", "clip_fps", "clip_frames", "batch_size"):
        if not getattr(args, option) > 0:
            name = option.replace("_", "-")
            raise UserError(f"--{name} {getattr(args, option)}: expected more than 0")
    if args.weights and args.image and args.video:
        raise UserError("--weights: of which model? Give --image-weights, --video-weights or both")
    for kind in ("image", "video"):
        if getattr(args, f"{kind}_weights") and not getattr(args, kind):
            raise UserError(f"--{kind}-weights: without --{kind}; name the model too")


def find_videos(items: Sequence[str], out: Path) -> tuple[list[Path], list[str]]:
    """Videos of files, folders (recursive), globs and lists (.txt, a path a line); and what failed.

    A list's paths are taken from the working folder, or else from the list's own.
    """
    from vlkd.infer.outputs import find_inputs
    from vlkd.infer.video import is_video

    named = [path for item in items for path in _listed(item)]
    files, problems = find_inputs(named, out)
    # Folders hold pictures too; what was named is tried whatever its suffix.
    videos = [file for file in files if is_video(file) or str(file) in named]
    if files and not videos:
        problems.append(f"{', '.join(items)}: no video in it")
    return videos, problems


def _listed(item: str) -> list[str]:
    path = Path(item)
    if path.suffix.lower() != ".txt" or not path.is_file():
        return [item]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of videos: {error}") from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    # Names are names here: a bracket in one is no pattern.
    return [name if Path(name).exists() else glob.escape(str(path.parent / name)) for name in names]


def _streams(args: argparse.Namespace) -> list[Stream]:
    from vlkd.infer.features import Stream
    from vlkd.infer.inputs import usable_device
    from vlkd.models.frame_features import image_features, video_features

    device = usable_device(args.device)
    streams = []
    if args.image:
        tower = image_features(args.image, args.image_weights or args.weights)
        streams.append(Stream("image", tower.to(device), args.fps, not args.raw))
    if args.video:
        tower = video_features(args.video, args.video_weights or args.weights, args.clip_frames)
        streams.append(Stream("video", tower.to(device), args.clip_fps, not args.raw))
    return streams


@contextmanager
def _between_batches() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits until the function given is called, which then raises KeyboardInterrupt.

    Elsewhere it may meet a decoder's callback, which swallows it, or a file that is half written.
    """
    asked = threading.Event()

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _extract_all(
    todo: list[tuple[Job, list[Stream]]],
    count: int,
    index: FeatureIndex,
    problems: list[str],
    args: argparse.Namespace,
) -> int:
    """The videos in turn; what is whole is kept whatever happens."""
    from vlkd.infer.features import extract

    started, finished, seen = perf_counter(), 0, 0.0
    with _between_batches() as check, progress_bars() as progress:
        total = progress.add_task("videos", total=len(todo))
        try:
            for job, streams in todo:
                task = progress.add_task(job.source.name, total=None)

                def follow(seconds: float, whole: float | None, task: TaskID = task) -> None:
                    check()
                    progress.update(task, completed=int(seconds), total=whole and int(whole))

                try:
                    found = extract(job.source, streams, args.out, job.stem, args.batch_size, follow)
                    index.add(job.stem, job.source, found)
                    finished, seen = finished + 1, seen + found["seconds"]
                    rows = ", ".join(f"{found[s.kind]['rows']} x {s.tower.width}" for s in streams)
                    print(f"{job.source}: {rows} -> {args.out / job.stem}.*.npy")
                except UserError as error:
                    index.fail(job.stem, job.source, error)
                    problems.append(str(error))
                    print(error, file=sys.stderr)
                progress.remove_task(task)
                progress.advance(total)
                if finished < len(todo):
                    check()
        except KeyboardInterrupt:
            return interrupted(progress, finished, len(todo))
        finally:
            index.save()
    seconds = perf_counter() - started
    took = f" in {seconds:.1f} s, {seen / seconds:.1f} s of video a second" if finished else ""
    return finish(finished, count - len(todo), problems, took, args.out)
