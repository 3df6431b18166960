"""Feature files of videos, one (T,C) array for each video and kind, put on one line of time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlkd.data.files import need_folder
from vlkd.errors import UserError


@dataclass(frozen=True)
class Kind:
    """Files FOLDER/ID + suffix with `rate` rows a second."""

    folder: Path
    suffix: str
    rate: float

    def file(self, id: str) -> Path:
        """A video's file."""
        return self.folder / f"{id}{self.suffix}"


def open_kinds(sources: Sequence[str | Path], rates: Sequence[float] | None = None) -> list[Kind]:
    """The kinds in folders: those of index.json (`vlkd features`), or plain ID.npy files of one kind.

    FOLDER:KIND takes one kind of an index. `rates`: rows a second of plain folders, in their order; 1 by
    default. Raises UserError for a folder that is not there, a kind that it lacks and an unreadable index.
    """
    kinds: list[Kind] = []
    plain = iter(rates or ())
    for source in sources:
        folder, _, chosen = str(source).partition(":") if not Path(source).is_dir() else (str(source), "", "")
        path = need_folder(Path(folder).expanduser(), "feature files")
        index = path / "index.json"
        if not index.is_file():
            kinds.append(Kind(path, ".npy", next(plain, 1.0)))
            continue
        try:
            known = {
                k: float(v["fps"]) for k, v in json.loads(index.read_text(encoding="utf-8"))["kinds"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index}: not the index of a feature folder") from None
        if chosen and chosen not in known:
            raise UserError(f"{path}: has no {chosen!r} features; it has {', '.join(known)}")
        kinds += [Kind(path, f".{k}.npy", rate) for k, rate in known.items() if chosen in ("", k)]
    if not kinds or any(kind.rate <= 0 for kind in kinds):
        raise UserError("data.features: expected at least one folder of features, and rates above 0")
    return kinds


class FeatureFiles:
    """Features of the videos `ids` of several kinds, side by side (T,C) on the first kind's line of time.

    Opening reads the head of every file. `rows`: T by id, of the videos that are whole; `problems`: a line
    for each of the others. `width` C: by kind that of most files, or `widths` where given; other files are
    left out. Raises UserError where no video is left.
    """

    def __init__(
        self, kinds: Sequence[Kind], ids: Sequence[str], widths: Sequence[int] | None = None
    ) -> None:
        self.kinds = list(kinds)
        self.problems: list[str] = []
        self.missing: list[str] = []
        shapes: dict[str, list[tuple[int, int]]] = {}
        for id in ids:
            files = [kind.file(id) for kind in self.kinds]
            if absent := [file for file in files if not file.is_file()]:
                self.missing.append(id)
                self.problems.append(f"{absent[0]}: no such feature file; video {id!r} is left out")
                continue
            try:
                shapes[id] = [_shape(file) for file in files]
            except UserError as error:
                self.problems.append(f"{error}; video {id!r} is left out")
        if widths is None:
            counts = [Counter(shape[k][1] for shape in shapes.values()) for k in range(len(self.kinds))]
            widths = [count.most_common(1)[0][0] if count else 0 for count in counts]
        self.widths = tuple(widths)
        self.rows: dict[str, int] = {}
        for id, found in shapes.items():
            if wrong := [k for k, shape in enumerate(found) if shape[1] != self.widths[k]]:
                self.problems.append(
                    f"{self.kinds[wrong[0]].file(id)}: features of width {found[wrong[0]][1]}, expected "
                    f"{self.widths[wrong[0]]} as in the others; video {id!r} is left out"
                )
                continue
            self.rows[id] = found[0][0]
        if not self.rows:
            raise UserError(self.problems[0] if self.problems else "no video to read features of")

    @property
    def width(self) -> int:
        """C, of all kinds together."""
        return sum(self.widths)

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.kinds[0].rate

    def read(self, id: str, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows `places` (M,) of a video: (M,C); of other kinds the row at the middle of the same time.

        Raises UserError for a file that changed or holds values that are not finite.
        """
        middle = (places + 0.5) / self.rate
        parts = []
        for kind, width in zip(self.kinds, self.widths, strict=True):
            stored = _opened(kind.file(id))
            if stored.ndim != 2 or stored.shape[1] != width:
                raise UserError(
                    f"{kind.file(id)}: {stored.shape} now, expected width {width}; did it change?"
                )
            rows = np.minimum((middle * kind.rate).astype(np.int64), len(stored) - 1)
            parts.append(np.asarray(stored[rows], np.float32))
            if not np.isfinite(parts[-1]).all():
                raise UserError(f"{kind.file(id)}: holds values that are not finite; extract it again")
        return np.concatenate(parts, 1)

    def ids_on_disk(self) -> list[str]:
        """Ids of all files of the first kind, sorted."""
        kind = self.kinds[0]
        names = (file.name for file in kind.folder.glob(f"*{kind.suffix}") if not file.name.startswith("."))
        return sorted(name.removesuffix(kind.suffix) for name in names)


def _shape(path: Path) -> tuple[int, int]:
    stored = _opened(path)
    if stored.ndim != 2 or stored.dtype.kind not in "fiu":
        raise UserError(f"{path}: holds {stored.dtype} of shape {stored.shape}; expected numbers (T, C)")
    if not len(stored):
        raise UserError(f"{path}: holds no row: the video has length 0")
    return stored.shape[0], stored.shape[1]


def _opened(path: Path) -> NDArray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such feature file") from None
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a whole .npy file ({reason}); extract it again") from None
