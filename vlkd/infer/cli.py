"""Command line: segment images, folders and videos with free text, or classify them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

from vlkd.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from vlkd.infer.classify import ClassPredictor
    from vlkd.infer.predictor import Predictor

_EXAMPLE = (
    'example: %(prog)s --model gkc-world --classes "car|automobile, tree" photos/ clip.mp4 --out results; '
    "a classifier: %(prog)s student-1234abcd.safetensors photos/ --out results"
)


class Parser(argparse.ArgumentParser):
    """Wrong usage is one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="vlkd infer", description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="images, videos, folders (searched for both) or globs")
    add("--model", metavar="NAME_OR_FILE", help="zoo name or bundle file; default: the first INPUT")
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--classes",
        help='"car|automobile, tree, road"; | joins words of one class; default: the model\'s own. '
        "Of a classifier: the ones to choose among; of an open one any words, or @base, @novel",
    )
    words.add_argument(
        "--classes-file", type=Path, metavar="FILE", help="one class per line; # starts a comment"
    )
    add(
        "--out",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="where results go (default: %(default)s)",
    )
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps")
    add("--every", type=int, default=1, metavar="N", help="use every N-th frame of a video")
    add("--overwrite", action="store_true", help="do finished inputs again")
    add(
        "--templates",
        metavar="T",
        help='prompts for new names: "{}" (default of segmentors), "a photo of a {}", vild, ...; open '
        "classifiers: default as their class vectors were made",
    )
    only = parser.add_argument_group("segmentors only").add_argument
    only("--size", type=int, metavar="N", help="short side in pixels to work at (default: the student's own)")
    only("--masks", action="store_true", help="also write an indexed PNG for every video frame")
    only(
        "--smoothing",
        type=float,
        metavar="A",
        help="part of the class probabilities that stays from frame to frame of a video, 0 to below 1",
    )
    only = parser.add_argument_group("classifiers only").add_argument
    only("--top", type=int, metavar="N", help="classes to write for each image (default: 5)")
    only("--sheet", action="store_true", help="also write sheet.jpg: thumbnails with their labels")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 all done, 1 some inputs failed, 2 wrong usage, 130 interrupted."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.model is None:
        args.model, *args.inputs = args.inputs
        if not args.inputs:
            parser.error("name a model and what it is to look at")
    try:
        return _run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    from vlkd.infer.classify import ClassPredictor
    from vlkd.infer.outputs import find_inputs

    if args.every < 1:
        raise UserError(f"--every {args.every}: expected 1 or more")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out}: is a file, expected a folder")
    classes = _classes(args)
    files, problems = find_inputs(args.inputs, args.out)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not files:
        return finish(0, 0, problems, "", args.out)
    predictor = _predictor(args)
    settings = {"model": args.model, "classes": list(predictor.names(classes)), "every": args.every}
    work = _classify if isinstance(predictor, ClassPredictor) else _segment
    return work(predictor, files, problems, classes, settings, args)


def _classes(args: argparse.Namespace) -> Any:
    if args.classes_file is None:
        return args.classes
    try:
        lines = args.classes_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes-file {args.classes_file}: cannot be read as text: {error}") from None
    return [name for line in lines if (name := line.split("#")[0].strip())]


def _predictor(args: argparse.Namespace) -> Any:
    """Predictor or ClassPredictor, as the bundle's kind has it. Raises UserError for options of the other."""
    from vlkd.engine.bundle import read_card
    from vlkd.engine.hub import resolve

    path = resolve(args.model)
    kind = read_card(path)["kind"]
    kinds = ("segmentor", "classifier", "open_classifier")
    if kind not in kinds:
        raise UserError(f"{path}: the bundle holds a {kind!r}: expected a segmentor or a classifier")
    only = {"size": kinds[:1], "masks": kinds[:1], "smoothing": kinds[:1], "templates": (kinds[0], kinds[2])}
    for option, fitting in (only | {"top": kinds[1:], "sheet": kinds[1:]}).items():
        if kind not in fitting and getattr(args, option) not in (None, False):
            raise UserError(f"--{option}: only for a {fitting[0]}; {args.model} holds: {kind}")
    if kind == "segmentor":
        from vlkd.infer.predictor import Predictor

        return Predictor.from_bundle(path, size=args.size, device=args.device, templates=args.templates)
    from vlkd.infer.classify import ClassPredictor, OpenClassPredictor

    if kind == "classifier":
        return ClassPredictor.from_bundle(path, device=args.device)
    return OpenClassPredictor.from_bundle(path, device=args.device, templates=args.templates)


def _segment(
    predictor: Predictor,
    files: list[Path],
    problems: list[str],
    classes: Any,
    settings: dict[str, Any],
    args: argparse.Namespace,
) -> int:
    """Segment the files in turn, each into files of its own."""
    from vlkd.infer.outputs import is_done, plan, run_image, run_video
    from vlkd.infer.smoothing import checked_smoothing

    settings |= {"size": predictor.size, "templates": list(predictor.templates)}
    settings["smoothing"] = checked_smoothing(args.smoothing or 0.0) or None  # as where the key is missing
    jobs = plan(files, args.out)
    todo = [job for job in jobs if args.overwrite or not is_done(job, args.out, settings, args.masks)]
    started, finished, times = perf_counter(), 0, list[float]()
    with progress_bars() as progress:
        total = progress.add_task("inputs", total=len(todo))
        for job in todo:
            try:
                if job.is_video:
                    task = progress.add_task(job.source.name, total=None)
                    follow = lambda n, m, task=task: progress.update(task, completed=n, total=m)  # noqa: E731
                    ms = run_video(predictor, job, args.out, classes, settings, args.masks, follow)
                    progress.remove_task(task)
                else:
                    ms = run_image(predictor, job, args.out, classes, settings)
            except UserError as error:
                problems.append(str(error))
                print(error, file=sys.stderr)
            except KeyboardInterrupt:
                return interrupted(progress, finished, len(todo))
            else:
                finished += 1
                times += ms
                print(f"{job.source}: {_speed(ms)} -> {args.out / job.stem}.*")
            progress.advance(total)
    took = f" in {perf_counter() - started:.1f} s, {_speed(times)}" if times else ""
    return finish(finished, len(jobs) - len(todo), problems, took, args.out)


def _classify(
    predictor: ClassPredictor,
    files: list[Path],
    problems: list[str],
    classes: Any,
    settings: dict[str, Any],
    args: argparse.Namespace,
) -> int:
    """Classify the files, images in batches, into one table."""
    from vlkd.infer.labels import Predictions
    from vlkd.infer.video import is_video

    top = 5 if args.top is None else args.top
    if top < 1:
        raise UserError(f"--top {top}: expected 1 or more")
    table = Predictions(args.out, settings | {"top": top}, args.overwrite)
    todo = [file for file in files if file not in table]
    started, finished, seen = perf_counter(), 0, 0

    def failed(file: Path, error: UserError) -> None:
        table.fail(file, error)
        problems.append(str(error))
        print(error, file=sys.stderr)

    with progress_bars() as progress:
        total = progress.add_task("inputs", total=len(todo))
        try:
            for file, found in predictor.files((f for f in todo if not is_video(f)), classes, top):
                progress.advance(total)
                if isinstance(found, UserError):
                    failed(file, found)
                    continue
                table.add(file, found)
                finished, seen = finished + 1, seen + 1
                print(f"{file}: {found.label} {found.score:.3f}")
                table.save(due=True)
            for file in filter(is_video, todo):
                task = progress.add_task(file.name, total=None)
                try:
                    frames = predictor.video(file, classes, top, every=args.every)
                    count = table.add_video(file, progress.track(frames, task_id=task), args.every)
                    finished, seen = finished + 1, seen + count
                    print(f"{file}: {count} frames")
                except UserError as error:
                    failed(file, error)
                progress.remove_task(task)
                progress.advance(total)
        except KeyboardInterrupt:
            return interrupted(progress, finished, len(todo))
        finally:
            table.save()
    seconds = perf_counter() - started
    if args.sheet:
        table.draw()
    took = f" in {seconds:.1f} s, {seen / seconds:.1f} images/s" if seen else ""
    return finish(finished, len(files) - len(todo), problems, took, args.out)


def progress_bars() -> Progress:
    """Bars with counts and the time that is left, on a terminal's stderr alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def interrupted(progress: Progress, finished: int, count: int) -> int:
    """Say what Ctrl-C has left; the exit code."""
    progress.stop()
    print(
        f"interrupted: {finished} done, {count - finished} left; run the same command again to go on",
        file=sys.stderr,
    )
    return 130


def finish(finished: int, skipped: int, problems: list[str], took: str, out: Path) -> int:
    """Say what was done and where the results are; the exit code."""
    parts = [f"{finished} done{took}"]
    parts += [f"{skipped} finished before (--overwrite does them again)"] if skipped else []
    parts += [f"{len(problems)} failed"] if problems else []
    print(f"{'; '.join(parts)}. Results are in {out}")
    return 1 if problems else 0


def _speed(times: list[float]) -> str:
    ms = median(times)
    return f"{ms:.0f} ms per image, {1000 / ms:.1f} images/s"
