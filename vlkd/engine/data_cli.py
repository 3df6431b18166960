"""`vlkd data list|check|world|submit`: what a video data set holds, what is wrong with it, what to send."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlkd.data.video import VideoDataset


def data(argv: Sequence[str]) -> int:
    """Runs one data command; the exit code is 1 when `check` finds anything."""
    from vlkd.data.video import check, open_dataset, write_world

    arguments = _parser().parse_args(argv)
    if arguments.command == "world":
        size = tuple(arguments.size)
        root = write_world(
            arguments.kind, arguments.root, arguments.split, arguments.videos, arguments.frames, size,
            arguments.seed,
        )  # fmt: skip
        print(f"written: {arguments.videos} videos of {arguments.frames} frames below {root}")
        return 0
    if arguments.command == "submit":
        return _submit(arguments)
    chosen: dict[str, Any] = {"base": _names(arguments.base), "novel": _names(arguments.novel)}
    given = arguments.kind, arguments.root, arguments.split, arguments.subset
    if arguments.command == "check":
        from vlkd.data.predictions import check_predictions

        folder = arguments.predictions
        return _report(
            check_predictions(folder, open_dataset(*given, **chosen)) if folder else check(*given, **chosen)
        )
    _list(open_dataset(*given, **chosen), arguments.videos)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vlkd data", description="Video data sets (docs/video-data.md).")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("list", "how many videos, frames and classes a split holds, and which classes are novel"),
        ("check", "read every frame and label once (or predictions) and list all that is wrong"),
    ):
        add = _with_place(commands.add_parser(name, help=text)).add_argument
        add("--subset", metavar="NAME", help="ignore, delete, val_base, val_novel; BURST: common, uncommon")
        for which in ("base", "novel"):
            add(f"--{which}", metavar="NAMES", help='"cat, dog", a text file, or a named split')
        if name == "list":
            add("--videos", action="store_true", help="also a line for each video: its frames")
        else:
            add("--predictions", metavar="DIR", help="check these (docs/predictions.md), not the data")
    add = _with_place(
        commands.add_parser("submit", help="write predictions as the zip that the benchmark takes")
    ).add_argument
    add("--predictions", metavar="DIR", required=True, help="their folder (docs/predictions.md)")
    add("--out", metavar="FILE.zip", required=True)
    add = _with_place(
        commands.add_parser("world", help="write the procedural world in a layout")
    ).add_argument
    add("--videos", type=int, default=4)
    add("--frames", type=int, default=24)
    add("--size", type=int, nargs=2, default=(128, 128), metavar=("H", "W"))
    add("--seed", type=int, default=0)
    return parser


def _with_place(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    for name, text in (("kind", "layout, as vspw"), ("root", "its folder"), ("split", "as train or val")):
        parser.add_argument(name, metavar=name.upper(), help=text)
    return parser


def _names(text: str | None) -> str | list[str] | None:
    """A list of names where there is a comma, else a file or named split as it is."""
    return [name.strip() for name in text.split(",") if name.strip()] if text and "," in text else text


def _submit(arguments: argparse.Namespace) -> int:
    from vlkd.data.predictions import write_submission
    from vlkd.data.video import open_dataset

    dataset = open_dataset(arguments.kind, arguments.root, arguments.split)
    path = write_submission(arguments.kind, arguments.predictions, dataset, arguments.out)
    print(f"written: {len(dataset)} videos in {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    return 0


def _report(problems: list[str]) -> int:
    print("\n".join(problems) or "nothing is wrong")
    return 1 if problems else 0


def _list(dataset: VideoDataset, videos: bool) -> None:
    lengths = [len(record) for record in dataset]
    forms = ", ".join(sorted({record.form for record in dataset}))
    labels = "labels withheld" if not any(record.annotated for record in dataset) else f"labels: {forms}"
    print(f"{dataset.source}: {len(dataset)} videos, {sum(lengths)} frames, {labels}")
    counts = (
        f"{len(dataset.base)} base, {len(dataset.novel)} novel, {len(dataset.candidates)} may be predicted"
    )
    print(f"{len(dataset.names)} classes: {counts}")
    for what, indices in (("base", dataset.base), ("novel", dataset.novel)):
        if indices and dataset.novel:
            print(f"{what}: {', '.join(dataset.names[index] for index in sorted(indices))}")
    if videos:
        print("\n".join(f"{record.id}: {n} frames" for record, n in zip(dataset, lengths, strict=True)))
