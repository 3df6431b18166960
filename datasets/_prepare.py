"""What the prepare scripts share: resumable unpacking and copying, progress, one-line errors."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console
from rich.progress import track

from vlkd.data import SegmentationDataset
from vlkd.errors import UserError

Entry = tuple[str, int, Callable[[], IO[bytes]]]


def run(description: str, prepare: Callable[[Path, Path], None]) -> int:
    """Parse --source and --root, prepare, and print a UserError as one line (exit code 2)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--source", type=Path, required=True, help="what you downloaded (see datasets/README.md)"
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="where the data set goes (data.init_args.root)"
    )
    arguments = parser.parse_args()
    try:
        if not arguments.source.exists():
            raise UserError(f"{arguments.source}: no such file or folder; download the data set there first")
        prepare(arguments.source, arguments.root)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"ready: {arguments.root}")
    return 0


def archive(source: Path, name: str) -> Path:
    """The archive `name` in the folder `source`, or `source` itself. Raises UserError when it is absent."""
    path = source if source.is_file() else source / name
    if not path.is_file():
        raise UserError(f"{path}: not found; download {name} (see datasets/README.md)")
    return path


def unpack(path: Path, place: Callable[[str], Path | None]) -> None:
    """Write every member of a zip or tar file to place(member name) unless None; done ones are skipped."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as content:
                _write_all(path, _zip_entries(content), place)
        else:
            with tarfile.open(path) as content:
                _write_all(path, _tar_entries(content), place)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path}: cannot be unpacked ({error}); download it again") from None


def copy_all(pairs: Iterable[tuple[Path, Path]], title: str) -> None:
    """Copy files to their places; those already there in full size are skipped."""
    for source, target in track(list(pairs), description=title, console=Console(stderr=True), transient=True):
        if not (target.is_file() and target.stat().st_size == source.stat().st_size):
            with source.open("rb") as stream:
                write(target, stream)


def write(target: Path, stream: IO[bytes]) -> None:
    """Write a file under a temporary name, then rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    with partial.open("wb") as out:
        shutil.copyfileobj(stream, out)
    os.replace(partial, target)


def need_complete(*datasets: SegmentationDataset) -> None:
    """Raise UserError naming the first missing file and the number of all."""
    if missing := [line for dataset in datasets for line in dataset.missing()]:
        raise UserError(f"{missing[0]} ({len(missing)} missing in all); the download is incomplete")


def below(root: Path, name: str) -> Path:
    """`name` of an archive member as a path below root. Raises UserError for a name that leads out of it."""
    parts = PurePosixPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute():
        raise UserError(
            f"archive member {name!r} leads out of the target folder; the archive is not the official one"
        )
    return root.joinpath(*parts)


def _zip_entries(content: zipfile.ZipFile) -> Iterator[Entry]:
    for info in content.infolist():
        if not info.is_dir():
            yield info.filename, info.file_size, lambda info=info: content.open(info)  # type: ignore[misc]


def _tar_entries(content: tarfile.TarFile) -> Iterator[Entry]:
    for info in content:
        if info.isfile():
            yield info.name, info.size, lambda info=info: content.extractfile(info)  # type: ignore[misc]


def _write_all(path: Path, entries: Iterable[Entry], place: Callable[[str], Path | None]) -> None:
    console = Console(stderr=True)
    for name, size, opened in track(list(entries), description=path.name, console=console, transient=True):
        target = place(name)
        if target is not None and not (target.is_file() and target.stat().st_size == size):
            with opened() as stream:
                write(target, stream)
