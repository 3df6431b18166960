"""Fetching one file over HTTP: with progress, resumed where it stopped, checked by its hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from vlkd.errors import UserError

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fetch(source: str, target: Path, digest: str, size: int | None = None) -> Path:
    """Copies `source` (file or http address) to `target`; `<target>.part` keeps what an interruption left.

    Raises UserError when the source cannot be read or its sha256 is not `digest`; `target` then stays absent.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if source.startswith(("http://", "https://")):
        _download(source, part, size)
    else:
        try:
            shutil.copyfile(source, part)
        except OSError as problem:
            raise UserError(f"{source}: cannot be copied: {problem.strerror}") from None
    found = sha256(part)
    if found != digest:
        part.unlink()
        raise UserError(
            f"{source}: sha256 is {found[:16]}..., expected {digest[:16]}...; the file was refused"
        )
    os.replace(part, target)
    return target


def _download(address: str, part: Path, size: int | None) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    have = part.stat().st_size if part.exists() else 0
    if size is not None and have == size:
        return
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if answer.status != 206:  # the server ignored the range and sends the whole file
                have = 0
            length = answer.headers.get("Content-Length")
            total = have + int(length) if length else size
            bar = Progress(
                "{task.description}",
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            with bar, part.open("ab" if have else "wb") as file:
                task = bar.add_task(address.rsplit("/", 1)[-1], total=total, completed=have)
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    bar.advance(task, len(chunk))
    except urllib.error.HTTPError as problem:
        if problem.code == 416:  # nothing is left to send: the part is whole, or is refused by its hash
            return
        raise UserError(f"{address}: the server answered {problem.code} {problem.reason}") from None
    except (OSError, HTTPException) as problem:
        raise UserError(
            f"{address}: download broke off ({problem}); the same command goes on from there"
        ) from None
    if total is not None and part.stat().st_size < total:
        raise UserError(
            f"{address}: download broke off at {part.stat().st_size} of {total} bytes; "
            "the same command goes on from there"
        )
