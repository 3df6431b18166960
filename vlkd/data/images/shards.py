"""Images in WebDataset tar shards, read in place by position: nothing is unpacked or kept in memory."""

from __future__ import annotations

import hashlib
import re
import struct
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors import safe_open
from torch import Tensor

from vlkd.cache import cache_folder, cache_key, store
from vlkd.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_INDEX = 1  # raise when what is indexed changes: stored indices are keyed by it
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class ShardIndex:
    """Where the images of one shard lie: offsets (n,) and sizes (n,) in bytes, member names joined by NUL."""

    path: Path
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    joined: bytes

    @cached_property
    def names(self) -> list[str]:
        """Member names in the order of the shard."""
        return self.joined.decode(errors="replace").split("\0") if self.joined else []


class ShardImages:
    """Unlabelled images of WebDataset shards in shard order, addressed by number.

    The headers of a shard are read once and indexed; the index is cached under path, size and date. A sample
    is an image member; of a sample with several ("1.jpg", "1.mask.png") the one without a second suffix.

    Args:
        shards: brace pattern ("pool-{000..009}.tar"), glob, one file, or a list of these.

    Raises UserError for no shard, a missing one, a compressed one, or shards without images. A shard that
    ends early is used as far as it goes, with a warning.
    """

    def __init__(self, shards: str | Path | Sequence[str | Path]) -> None:
        listed = [shards] if isinstance(shards, (str, Path)) else shards
        self.shards = [open_index(path) for item in listed for path in expand_shards(item)]
        if not self.shards:
            raise UserError("no shards are named; expected a pattern such as pool-{000..009}.tar")
        self._ends = np.cumsum([len(shard.offsets) for shard in self.shards])
        if not len(self):
            paths = [str(shard.path) for shard in self.shards]
            where = paths[0] if len(paths) == 1 else f"{paths[0]} ... {paths[-1]}"
            raise UserError(f"{where}: no image members; expected NAME.jpg, .jpeg, .png or .webp in the tar")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def image(self, index: int) -> NDArray[np.uint8]:
        """RGB image (H,W,3). Raises UserError naming shard and member when it cannot be decoded."""
        shard, position = self._place(index)
        # Opened for each read: safe in threads and forked workers, no limit on the number of shards.
        with shard.path.open("rb", buffering=0) as stream:
            stream.seek(shard.offsets[position])
            data = stream.read(int(shard.sizes[position]))
        return decode_image(data, lambda: self.name(index))

    def name(self, index: int) -> str:
        """Shard and member, for messages."""
        shard, position = self._place(index)
        return f"{shard.path}:{shard.names[position]}"

    def fingerprint(self) -> str:
        """Short hash of shard names, member names and sizes."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.path.name}\n".encode() + shard.joined + shard.sizes.tobytes())
        return digest.hexdigest()[:16]

    def _place(self, index: int) -> tuple[ShardIndex, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.shards[number]
        return shard, int(index - self._ends[number] + len(shard.offsets))


def expand_shards(pattern: str | Path) -> list[Path]:
    """Files that a brace pattern ("{000..009}", "{a,b}"), a glob or a plain path stands for.

    Raises UserError naming the first missing file, and for an address.
    """
    text = str(Path(pattern).expanduser()) if "://" not in str(pattern) else str(pattern)
    if "://" in text or text.startswith("pipe:"):
        raise UserError(f"{text}: shards are read from local files; download them first and give their path")
    if Path(text).is_file():
        return [Path(text)]
    paths: list[Path] = []
    for part in _expand_braces(text):
        if any(c in part for c in "*?["):
            root = Path(part).anchor or "."
            paths += sorted(p for p in Path(root).glob(str(Path(part).relative_to(root))) if p.is_file())
        else:
            paths.append(Path(part))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise UserError(f"{missing[0]}{more}: no such shard; expected a .tar file")
    if not paths:
        raise UserError(f"{text}: no file matches; expected WebDataset shards (.tar)")
    return paths


def _expand_braces(text: str) -> list[str]:
    found = _BRACES.search(text)
    if found is None:
        return [text]
    if limits := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        first, last = limits[1], limits[2]
        parts = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        parts = found[1].split(",")
    if not parts or parts == [found[1]]:
        raise UserError(f"{text}: {found[0]} is no range; expected {{000..009}} or {{a,b}}")
    before, after = text[: found.start()], text[found.end() :]
    return [whole for part in parts for whole in _expand_braces(before + part + after)]


def open_index(path: Path) -> ShardIndex:
    """The index of one shard, from the cache or from one pass over the shard's headers.

    Raises UserError for a compressed file and for one that is no tar; warns of one that ends early.
    """
    status = path.stat()
    key = cache_key(index=_INDEX, path=str(path.resolve()), size=status.st_size, date=status.st_mtime_ns)
    file = cache_folder() / "shards" / f"{key[:24]}.safetensors"
    if not file.is_file():
        tensors, problem = _read_headers(path, status.st_size)
        store(file, tensors, {"problem": problem})
    with safe_open(file, framework="numpy") as stored:
        offsets, sizes, joined = (stored.get_tensor(name) for name in ("offsets", "sizes", "names"))
        problem = stored.metadata()["problem"]
    if problem:
        rank_zero_warn(f"shard {path} {problem}; its first {len(offsets)} images are used")
    return ShardIndex(path, offsets, sizes, joined.tobytes())


def _read_headers(path: Path, length: int) -> tuple[dict[str, Tensor], str]:
    """Image members of a tar as (offsets, sizes, names), and what is wrong with it ("" for nothing)."""
    members: list[tuple[str, int, int]] = []
    problem = ""
    with path.open("rb") as stream:
        _refuse_compressed(path, stream.read(6))
        stream.seek(0)
        try:
            tar = tarfile.TarFile(fileobj=stream)
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                if info.isreg() and info.offset_data + info.size <= length and _is_image(info.name):
                    members.append((info.name, info.offset_data, info.size))
            # tarfile stops without a word at a cut or damaged header; a whole archive ends with zeros.
            if not _ends_here(stream, tar.offset):
                problem = f"ends early or is damaged at byte {min(tar.offset, length):,}"
        except tarfile.ReadError as error:
            if length and not members and "invalid header" in str(error):
                raise UserError(f"{path}: not a tar file; expected a WebDataset shard") from None
            problem = f"ends early at byte {length:,}"
    plain = {_key(name) for name, _, _ in members if _base(name).count(".") == 1}
    kept = [m for m in members if _base(m[0]).count(".") == 1 or _key(m[0]) not in plain]
    names = "\0".join(name for name, _, _ in kept).encode(errors="replace")
    return {
        "offsets": torch.tensor([offset for _, offset, _ in kept], dtype=torch.int64),
        "sizes": torch.tensor([size for _, _, size in kept], dtype=torch.int64),
        "names": torch.frombuffer(bytearray(names), dtype=torch.uint8) if names else torch.empty(0).byte(),
    }, problem


def _ends_here(stream: BinaryIO, offset: int) -> bool:
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    return len(block) == tarfile.BLOCKSIZE and not any(block)


def _refuse_compressed(path: Path, head: bytes) -> None:
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(
                f"{path}: {kind}-compressed; images are read by position, so decompress the shard first "
                "(for example with gunzip) and give the .tar file"
            )


def _is_image(name: str) -> bool:
    return not _base(name).startswith(".") and name.lower().endswith(SUFFIXES)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _key(name: str) -> str:
    """WebDataset's name of a sample: the path up to the file name's first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def decode_image(data: bytes, name: Callable[[], str]) -> NDArray[np.uint8]:
    """RGB image (H,W,3), upright by EXIF, from the bytes of an image file.

    Raises UserError, with name() as the file's name, for bytes that are no whole image.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "not an image" if "cannot identify" in str(error) else str(error)
        raise UserError(f"{name()}: image cannot be read ({reason})") from None
