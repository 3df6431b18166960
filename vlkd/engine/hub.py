"""The model zoo: names, addresses, hashes and licences, all of them in model_zoo/manifest.yaml.

Environment: VLKD_ZOO (folder of the manifest), VLKD_CACHE (downloads; ~/.cache/vlkd), VLKD_MIRROR (folder or
address tried in place of every address), VLKD_OFFLINE=1 (nothing is fetched).
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from vlkd.cache import cache_folder
from vlkd.engine.download import fetch, sha256
from vlkd.errors import UserError


@dataclass(frozen=True)
class Entry:
    """One model of the zoo; `file` is relative to the manifest's folder, `size` in bytes."""

    name: str
    sha256: str
    licence: str
    kind: str
    file: str = ""
    url: str = ""
    size: int | None = None
    input: str = ""
    score: str = ""
    config: str = ""
    command: str = ""
    text: str = ""

    @property
    def filename(self) -> str:
        """The name under which the file lies in the zoo or in the cache."""
        return Path(self.file).name if self.file else self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Zoo:
    """The manifest: its folder and its entries by name."""

    folder: Path
    entries: dict[str, Entry]

    @classmethod
    def open(cls, folder: Path | None = None) -> Zoo:
        """Reads manifest.yaml of `folder` (default: VLKD_ZOO, else model_zoo/ beside the package)."""
        import yaml

        if folder is None:
            folder = Path(os.environ.get("VLKD_ZOO") or Path(__file__).resolve().parents[2] / "model_zoo")
        manifest = folder / "manifest.yaml"
        if not manifest.is_file():
            raise UserError(
                f"{manifest}: no such file; set VLKD_ZOO to the model_zoo folder of a vlkd checkout"
            )
        try:
            content = yaml.safe_load(manifest.read_text(encoding="utf-8")) or {}
            rows = content.get("models") or []
            entries = [Entry(**row) for row in rows]
        except (yaml.YAMLError, TypeError, AttributeError) as problem:
            raise UserError(
                f"{manifest}: {' '.join(str(problem).split())}; see model_zoo/README.md"
            ) from None
        for entry in entries:
            if not (entry.file or entry.url):
                raise UserError(f"{manifest}: {entry.name} has neither file nor url")
        return cls(folder, {entry.name: entry for entry in entries})

    def entry(self, name: str) -> Entry:
        """The entry of that name. Raises UserError naming the nearest one."""
        if name in self.entries:
            return self.entries[name]
        near = difflib.get_close_matches(name, self.entries, n=1)
        hint = (
            f"did you mean {near[0]}?" if near else f"the zoo has: {', '.join(self.entries) or 'nothing yet'}"
        )
        raise UserError(f"{name}: neither a file nor a model of the zoo; {hint}")

    def local(self, entry: Entry) -> Path | None:
        """Where the entry's file lies on this machine, unchecked, or None."""
        places = [self.folder / entry.file] if entry.file else []
        places.append(cache_folder() / entry.sha256[:16] / entry.filename)
        return next((place for place in places if place.is_file()), None)

    def get(self, entry: Entry) -> Path:
        """The entry's file, fetched if need be, its hash checked. Raises UserError when that fails."""
        path = self.local(entry)
        if path is None:
            return self._fetch(entry)
        _check(path, entry)
        return path

    def _fetch(self, entry: Entry) -> Path:
        target = cache_folder() / entry.sha256[:16] / entry.filename
        mirror = os.environ.get("VLKD_MIRROR", "")
        source = f"{mirror.rstrip('/')}/{entry.filename}" if mirror else entry.url
        remote = source.startswith(("http://", "https://"))
        if remote and os.environ.get("VLKD_OFFLINE", "0") not in ("", "0"):
            raise UserError(
                f"{entry.name}: not on this machine and VLKD_OFFLINE is set; place the file at {target}"
            )
        if not source:
            raise UserError(
                f"{self.folder / entry.file}: missing; restore it from the repository or set VLKD_MIRROR"
            )
        return fetch(source, target, entry.sha256, entry.size)


def list_models() -> list[str]:
    """Names of the models in the manifest, sorted."""
    return sorted(Zoo.open().entries)


def resolve(name_or_path: str | Path) -> Path:
    """A local file as it is, the newest bundle of a run folder, or the checked file of a zoo model.

    Raises UserError when it is none of these.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        if not found:
            raise UserError(f"{path}: holds no bundle (*.safetensors); expected the folder of a finished run")
        return found[-1]
    name = str(name_or_path)
    if len(path.parts) > 1 or path.suffix == ".safetensors":
        raise UserError(f"{name}: no such file")
    zoo = Zoo.open()
    return zoo.get(zoo.entry(name))


def _check(path: Path, entry: Entry) -> None:
    # The hash of a 600 MB file takes a second, so what was checked is remembered by size and time of change.
    stat = path.stat()
    seen = (str(path), stat.st_size, stat.st_mtime_ns, entry.sha256)
    if seen in _CHECKED:
        return
    found = sha256(path)
    if found != entry.sha256:
        raise UserError(
            f"{path}: sha256 is {found[:16]}..., expected {entry.sha256[:16]}... for {entry.name}; "
            "delete the file and fetch it again"
        )
    _CHECKED.add(seen)


_CHECKED: set[tuple[str, int, int, str]] = set()
