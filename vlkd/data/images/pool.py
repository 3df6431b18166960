"""Unlabelled images from folders, tar shards and image packs, merged into one pool."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader

from vlkd.cache import cache_folder, cache_key, store
from vlkd.data.files import IMAGE_SUFFIXES
from vlkd.data.images.files import FileImages, centre, images_below
from vlkd.data.images.shards import ShardImages, decode_image
from vlkd.errors import UserError

_DECODER = 1  # raise when decoded pixels change: stored pools are keyed by it
_CHUNK = 256


class Source(Protocol):
    """Images by number; `image` raises UserError for one that cannot be decoded."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> NDArray[np.uint8]:
        """RGB (H,W,3)."""

    def fingerprint(self) -> str:
        """Short hash of what there is."""


class PackPool:
    """Images of a JPEG pack: .npz with `data` and `offsets`, and `header` where all images share one.

    Of a pack with splits (`train_data`, `train_offsets`, ...) the training split.

    Raises UserError for a file of another form.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with np.load(self.path) as pack:
                prefix = "train_" if "train_data" in pack else ""
                self.data, self.offsets = pack[f"{prefix}data"], pack[f"{prefix}offsets"]
                self.header = pack["header"].tobytes() if "header" in pack else b""
        except (KeyError, ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
            raise UserError(
                f"{path}: no image pack ({error}); expected arrays data and offsets, "
                "or train_data and train_offsets"
            ) from None
        if len(self) < 1:
            raise UserError(f"{path}: holds no image")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def image(self, index: int) -> NDArray[np.uint8]:
        """RGB (H,W,3). Raises UserError naming pack and number."""
        scan = self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()
        return decode_image(self.header + scan, lambda: f"{self.path}: image {index}")

    def fingerprint(self) -> str:
        """Short hash of the bytes of all images."""
        return hashlib.sha256(self.header + self.data.tobytes()).hexdigest()[:16]


class MergedPool:
    """Sources one after the other, or their images `numbers` (N,) alone; an ImageDataset without labels."""

    names: tuple[str, ...] = ()

    def __init__(self, sources: Sequence[Source], numbers: Tensor | None = None) -> None:
        self.sources = list(sources)
        self._ends = np.cumsum([len(source) for source in self.sources])
        self.numbers = torch.arange(int(self._ends[-1])) if numbers is None else numbers
        self.labels = torch.full_like(self.numbers, -1)

    def __len__(self) -> int:
        return len(self.numbers)

    def image(self, index: int) -> NDArray[np.uint8]:
        """RGB (H,W,3). Raises UserError as its source."""
        number = int(self.numbers[index])
        place = int(np.searchsorted(self._ends, number, side="right"))
        source = self.sources[place]
        return source.image(int(number - self._ends[place] + len(source)))

    def select(self, indices: Tensor) -> MergedPool:
        """The images `indices` (M,) alone."""
        return MergedPool(self.sources, self.numbers[indices])

    def fingerprint(self) -> str:
        """Short hash of the sources' fingerprints in their order, and of the numbers."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        numbers = hashlib.sha256(self.numbers.numpy().tobytes()).hexdigest()
        return cache_key(sources=[source.fingerprint() for source in self.sources], numbers=numbers)[:16]


def open_source(name: str | Path) -> Source:
    """A folder with all below it, an image pack (.npz), or shards (a pattern or file).

    Raises UserError when it is none of these, and for one without images.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        files = images_below(path)
        if not files:
            raise UserError(f"{path}: no images here or below; expected {', '.join(IMAGE_SUFFIXES)} files")
        return FileImages(path, files, torch.full((len(files),), -1), ())
    if path.suffix == ".npz":
        if not path.is_file():
            raise UserError(f"{path}: no such image pack")
        return PackPool(path)
    if ".tar" in path.name or any(c in str(name) for c in "*?{"):
        return ShardImages(name)
    raise UserError(
        f"{name}: no such pool; expected a folder of images, shards such as pool-{{000..009}}.tar, "
        "or an .npz pack"
    )


def open_pool(names: Sequence[str | Path]) -> MergedPool:
    """All sources merged. Raises UserError for none, and as open_source."""
    if not names:
        raise UserError("data.pool: names no source; expected folders, shards or .npz packs")
    return MergedPool([open_source(name) for name in names])


def decode_pool(pool: Source, size: int | None, workers: int = 0) -> tuple[Tensor, Tensor]:
    """Every image once: central squares (M,3,S,S) uint8 and the numbers (M,) of those that can be decoded.

    Without a size the images are only tried, and the pixels are (M,0). Cached under the pool's fingerprint.

    Raises UserError when none of them decodes.
    """
    key = cache_key(decoder=_DECODER, pool=pool.fingerprint(), size=size)
    path = cache_folder() / "pool" / f"{key[:24]}.safetensors"
    if not path.is_file():
        loader: DataLoader = DataLoader(
            range(len(pool)),  # type: ignore[arg-type]
            _CHUNK,
            num_workers=workers,
            collate_fn=partial(_decode, pool, size),
            generator=torch.Generator(),
        )
        console = Console(stderr=True)
        parts = list(track(loader, f"decoding {len(pool)} images", console=console, transient=True))
        images, numbers = (torch.cat(part) for part in zip(*parts, strict=True))
        if not len(numbers):
            try:
                pool.image(0)
            except UserError as error:
                raise UserError(f"none of {len(pool)} images can be decoded; the first: {error}") from None
        store(path, {"images": images, "numbers": numbers}, {})
    with safe_open(path, framework="pt") as stored:
        return stored.get_tensor("images"), stored.get_tensor("numbers")


def _decode(pool: Source, size: int | None, numbers: list[int]) -> tuple[Tensor, Tensor]:
    images, good = [], []
    for number in numbers:
        try:
            image = pool.image(number)
        except UserError:
            continue
        good.append(number)
        images.append(image[0, 0, :0] if size is None else centre(image, size, 1).transpose(2, 0, 1))
    shape = (0, 0) if size is None else (0, 3, size, size)
    pixels = (
        torch.from_numpy(np.stack(images)).contiguous() if images else torch.empty(shape, dtype=torch.uint8)
    )
    return pixels, torch.tensor(good, dtype=torch.int64)
