"""What was kept: selection.csv and selection.png of a run, images per predicted class and epoch."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TABLE, PICTURE = "selection.csv", "selection.png"
_COLUMNS = ("epoch", "teacher_share", "class", "predicted", "kept")
_NAMED = 40  # classes: more names than this cannot be read on the picture


def write_selection(
    folder: Path,
    epoch: int,
    teacher_share: float,
    names: Sequence[str],
    predicted: Sequence[int],
    kept: Sequence[int],
) -> None:
    """Adds an epoch to RUN/selection.csv, one line for each class.

    Lines of this and later epochs, which a resumed run left behind, are replaced.
    """
    path = folder / TABLE
    rows = [row for row in read_selection(folder) if int(row["epoch"]) < epoch]
    rows += [
        dict(zip(_COLUMNS, map(str, (epoch, round(teacher_share, 4), *item)), strict=True))
        for item in zip(names, predicted, kept, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{TABLE}.tmp"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def read_selection(folder: Path) -> list[dict[str, str]]:
    """The lines of RUN/selection.csv; none where there is no such file."""
    path = folder / TABLE
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def draw_selection(folder: Path) -> Path:
    """Draws RUN/selection.png: totals by epoch above, kept images of each class and epoch below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = read_selection(folder)
    epochs = sorted({int(row["epoch"]) for row in rows})
    names = list(dict.fromkeys(row["class"] for row in rows))
    shape = (len(epochs), len(names))
    kept = np.array([int(row["kept"]) for row in rows]).reshape(shape)
    pool = np.array([int(row["predicted"]) for row in rows]).reshape(shape).sum(1)
    share = np.array([float(row["teacher_share"]) for row in rows]).reshape(shape)[:, 0]

    height = 2.4 + (0.17 * len(names) + 0.6 if len(names) <= _NAMED else 5.5)
    figure = Figure(figsize=(8, height), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.8, height - 2.4])
    marker = "." if len(epochs) < 30 else None
    above.plot(epochs, 100 * kept.sum(1) / pool, color="tab:blue", marker=marker)
    above.set_ylabel("kept, % of pool", color="tab:blue")
    above.set_ylim(0, 102)
    above.grid(alpha=0.3)
    other = above.twinx()
    other.plot(epochs, share, color="tab:orange", linestyle="--", marker=marker)
    other.set_ylabel("teacher's share", color="tab:orange")
    other.set_ylim(0, 1.02)
    above.set_title(f"{folder.parent.name}/{folder.name}: images kept of {int(pool[-1]):,}", fontsize=9)
    edges = [*epochs, 2 * epochs[-1] - epochs[-2] if len(epochs) > 1 else epochs[-1] + 1]
    mesh = below.pcolormesh(
        np.array(edges) - 0.5, np.arange(len(names) + 1), kept.T, norm=PowerNorm(0.5, vmin=0)
    )
    below.invert_yaxis()
    if len(names) <= _NAMED:
        below.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=7)
    else:
        below.set_ylabel("predicted class")
    below.set_xlabel("epoch")
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.colorbar(mesh, ax=below, label="images kept")
    path = folder / PICTURE
    temporary = folder / f".{PICTURE}.tmp.png"
    figure.savefig(temporary, dpi=110)
    os.replace(temporary, path)
    return path
