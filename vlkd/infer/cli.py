"""Command line: segment images, folders and videos with free text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

from vlkd.errors import UserError

if TYPE_CHECKING:
    from vlkd.infer.outputs import Job
    from vlkd.infer.predictor import Predictor

_EXAMPLE = (
    'example: %(prog)s --model gkc-world --classes "car|automobile, tree" photos/ clip.mp4 --out results'
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vlkd infer", description=__doc__, epilog=_EXAMPLE)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="images, videos, folders (searched for both) or globs")
    add("--model", required=True, metavar="NAME_OR_FILE", help="zoo name or bundle file")
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--classes",
        help='"car|automobile, tree, road"; | joins words of one class; default: the model\'s own',
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
    add(
        "--size",
        type=int,
        metavar="N",
        help="short side in pixels that the student works at (default: its own)",
    )
    add(
        "--templates",
        default="{}",
        help='prompts for new names: "{}" (default), "a photo of a {}", vild, ...',
    )
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps")
    add("--every", type=int, default=1, metavar="N", help="use every N-th frame of a video")
    add("--masks", action="store_true", help="also write an indexed PNG for every video frame")
    add("--overwrite", action="store_true", help="do finished inputs again")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 all done, 1 some inputs failed, 2 wrong usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    from vlkd.infer.outputs import find_inputs, is_done, plan

    if args.every < 1:
        raise UserError(f"--every {args.every}: expected 1 or more")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out}: is a file, expected a folder")
    classes = _classes(args)
    files, problems = find_inputs(args.inputs, args.out)
    jobs = plan(files, args.out)
    for problem in problems:
        print(problem, file=sys.stderr)
    if jobs:
        predictor = _predictor(args)
        names = predictor.names(classes)
        settings = {
            "model": args.model,
            "classes": list(names),
            "size": predictor.size,
            "templates": list(predictor.templates),
            "every": args.every,
        }
        done = [] if args.overwrite else [job for job in jobs if is_done(job, args.out, settings)]
        todo = [job for job in jobs if job not in done]
        return _work(predictor, todo, len(done), problems, classes, settings, args)
    return _finish(0, 0, problems, [], 0.0, args.out)


def _classes(args: argparse.Namespace) -> Any:
    if args.classes_file is None:
        return args.classes
    try:
        lines = args.classes_file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes-file {args.classes_file}: cannot be read as text: {error}") from None
    return [name for line in lines if (name := line.split("#")[0].strip())]


def _predictor(args: argparse.Namespace) -> Predictor:
    from vlkd.engine.hub import resolve
    from vlkd.infer.predictor import Predictor

    options = {"size": args.size, "device": args.device, "templates": args.templates}
    return Predictor.from_bundle(resolve(args.model), **options)


def _work(
    predictor: Predictor,
    jobs: list[Job],
    skipped: int,
    problems: list[str],
    classes: Any,
    settings: dict[str, Any],
    args: argparse.Namespace,
) -> int:
    """Do the jobs in turn under a progress bar, noting what fails."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vlkd.infer.outputs import run_image, run_video

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    started, finished, times = perf_counter(), 0, list[float]()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        total = progress.add_task("inputs", total=len(jobs))
        for job in jobs:
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
                progress.stop()
                left = len(jobs) - finished
                print(
                    f"interrupted: {finished} done, {left} left; run the same command again to go on",
                    file=sys.stderr,
                )
                return 130
            else:
                finished += 1
                times += ms
                print(f"{job.source}: {_speed(ms)} -> {args.out / job.stem}.*")
            progress.advance(total)
    return _finish(finished, skipped, problems, times, perf_counter() - started, args.out)


def _finish(
    finished: int, skipped: int, problems: list[str], times: list[float], seconds: float, out: Path
) -> int:
    parts = [f"{finished} done" + (f" in {seconds:.1f} s, {_speed(times)}" if times else "")]
    parts += [f"{skipped} finished before (--overwrite does them again)"] if skipped else []
    parts += [f"{len(problems)} failed"] if problems else []
    print(f"{'; '.join(parts)}. Results are in {out}")
    return 1 if problems else 0


def _speed(times: list[float]) -> str:
    ms = median(times)
    return f"{ms:.0f} ms per image, {1000 / ms:.1f} images/s"
