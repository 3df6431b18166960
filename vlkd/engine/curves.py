"""metrics.csv of a run: joined over resumptions, and drawn."""

from __future__ import annotations

import csv
import os
from pathlib import Path

METRICS = "metrics.csv"
Row = dict[str, str]


def set_aside(folder: Path) -> None:
    """Renames metrics.csv to metrics.<n>.csv, because the logger of a resumed run deletes what it finds."""
    current = folder / METRICS
    if current.is_file():
        os.replace(current, folder / f"metrics.{len(_parts(folder)) + 1}.csv")


def join(folder: Path) -> list[Row]:
    """Joins the parts of a resumed run into one metrics.csv; a step logged twice keeps its later value."""
    parts = [*_parts(folder), folder / METRICS]
    rows: list[Row] = []
    for part in parts:
        if not part.is_file():
            continue
        with part.open(newline="", encoding="utf-8") as file:
            later = [row for row in csv.DictReader(file) if row.get("step")]
        if later:
            first = min(int(row["step"]) for row in later)
            rows = [row for row in rows if int(row["step"]) < first] + later
    if len(parts) > 1 and rows:
        columns = sorted({key for row in rows for key in row})
        temporary = folder / f".{METRICS}.tmp"
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, folder / METRICS)
        for part in parts[:-1]:
            part.unlink()
    return rows


def series(rows: list[Row], prefix: str) -> dict[str, tuple[list[int], list[float]]]:
    """Name -> (steps, values) of the columns that begin with `prefix`."""
    names = sorted({key for row in rows for key in row if key.startswith(prefix)})
    found = {}
    for name in names:
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if points:
            found[name.removeprefix(prefix)] = ([step for step, _ in points], [value for _, value in points])
    return found


def draw_curves(folder: Path) -> Path | None:
    """Writes curves.png, losses and scores against the optimiser step; None when nothing was logged."""
    rows = join(folder)
    panels = [(title, found) for title in ("loss", "score") if (found := series(rows, f"{title}/"))]
    if not panels:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (steps, values) in found.items():
            wide = 2.2 if name == "total" else 1.3
            axes.plot(
                steps,
                values,
                label=name,
                linewidth=wide,
                marker="o" if len(steps) < 20 else None,
                markersize=3,
            )
        every = [value for _, values in found.values() for value in values]
        # A perplexity beside fractions would press them onto the axis.
        if min(every) > 0 and (title == "loss" or min(every) < 1 < max(every)):
            axes.set_yscale("log")
        axes.set_title(f"{folder.parent.name}/{folder.name}: {title}", fontsize=9)
        axes.set_xlabel("step")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path = folder / "curves.png"
    temporary = folder / ".curves.tmp.png"
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)
    return path


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("metrics.[0-9]*.csv"), key=lambda path: int(path.name.split(".")[1]))
