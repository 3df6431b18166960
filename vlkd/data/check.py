"""Reads a whole data set once and lists everything that is wrong with it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Protocol


class Checkable(Protocol):
    """A data set of images or of videos."""

    def __len__(self) -> int: ...

    def check(self, index: int) -> list[str]: ...


def check_dataset(dataset: Checkable, title: str = "checking", workers: int = 8) -> list[str]:
    """Every problem of every sample, one line each, in the data set's order; progress with ETA on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    problems: list[str] = []
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        for found in progress.track(
            pool.map(dataset.check, range(len(dataset))), total=len(dataset), description=title
        ):
            problems.extend(found)
    return problems
