"""Packs a folder of images (and its sub-folders) into WebDataset tar shards, 10,000 files to a shard."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

from _prepare import run
from rich.console import Console
from rich.progress import track

from vlkd.data.images.shards import SUFFIXES
from vlkd.errors import UserError

PER_SHARD = 10_000


def prepare(source: Path, root: Path) -> None:
    """root/pool-000000.tar and so on: the files as they are, in the order of their paths, under numbers."""
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"{source}: no images; expected files ending in {', '.join(SUFFIXES)}")
    root.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(files), PER_SHARD)
    for start in track(starts, "packing", console=Console(stderr=True), transient=True):
        target = root / f"pool-{start // PER_SHARD:06d}.tar"
        partial = target.with_name(f".{target.name}.part")
        with tarfile.open(partial, "w") as shard:
            for number, path in enumerate(files[start : start + PER_SHARD], start):
                info = tarfile.TarInfo(f"{number:08d}{path.suffix.lower()}")
                info.size = path.stat().st_size
                with path.open("rb") as stream:
                    shard.addfile(info, stream)
        os.replace(partial, target)


if __name__ == "__main__":
    sys.exit(run(__doc__, prepare))
