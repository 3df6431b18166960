"""CIFAR-10 and CIFAR-100, from torchvision's layout or from a JPEG pack, as one tensor."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from vlkd.cache import cache_folder, cache_key
from vlkd.data.files import whole_file
from vlkd.data.images.device import DeviceImages
from vlkd.data.images.shards import decode_image
from vlkd.errors import UserError
from vlkd.text.names import clean_names

CLASSES = {"cifar10": 10, "cifar100": 100}
_DECODER = 1  # raise when decoded pixels change: stored pixels are keyed by it
_SIDE = 32


def read_cifar(kind: str, root: str | Path, train: bool, download: bool = False) -> DeviceImages:
    """One split of "cifar10" or "cifar100", images (N,3,32,32).

    `root` is a pack (.npz), a folder with KIND.npz, or a folder in torchvision's layout, which `download`
    fills.

    Raises UserError for what is missing, damaged or of another class count.
    """
    path = Path(root).expanduser()
    packs = [p for p in (path, path / f"{kind}.npz") if p.suffix == ".npz"]
    pack = next((p for p in packs if p.is_file()), None)
    if pack is None and path.suffix == ".npz":
        raise UserError(f"{path}: no such pack; expected {kind} as an .npz file (datasets/README.md)")
    data = _from_pack(pack, train) if pack else _from_torchvision(kind, path, train, download)
    if len(data.names) != CLASSES[kind]:
        raise UserError(
            f"{path}: {len(data.names)} classes, but {kind} has {CLASSES[kind]}; set data.kind to what it is"
        )
    return data


def _from_torchvision(kind: str, root: Path, train: bool, download: bool) -> DeviceImages:
    from torchvision import datasets

    reader: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    try:
        found = reader(str(root), train=train, download=download)
    except (RuntimeError, OSError) as error:
        if download:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{root}: {kind} could not be downloaded ({reason})") from None
        raise UserError(
            f"{root}: {kind} is missing or damaged; expected {reader.base_folder}/ in it, or set "
            "data.download=true"
        ) from None
    images = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
    return DeviceImages(images, torch.tensor(found.targets), tuple(clean_names(found.classes)))


def _from_pack(path: Path, train: bool) -> DeviceImages:
    split = "train" if train else "test"
    try:
        with np.load(path, allow_pickle=False) as pack:
            names = tuple(clean_names(str(name) for name in pack["class_names"]))
            labels = pack[f"{split}_labels"].astype(np.int64)
            header = pack["header"].tobytes() if "header" in pack else b""
            data, offsets = pack[f"{split}_data"], pack[f"{split}_offsets"]
    except (KeyError, ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path}: no image pack ({error}); expected arrays class_names, {split}_data, {split}_offsets "
            f"and {split}_labels"
        ) from None
    if len(offsets) != len(labels) + 1:
        raise UserError(f"{path}: {len(labels)} {split} labels for {len(offsets) - 1} images")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        wrong = labels.max() if labels.max() >= len(names) else labels.min()
        raise UserError(f"{path}: a {split} label is {wrong}; expected 0 to {len(names) - 1}")
    pixels = _decoded(path, split, header, data, offsets)
    return DeviceImages(torch.from_numpy(pixels), torch.from_numpy(labels), names)


def _decoded(
    path: Path, split: str, header: bytes, data: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Pixels (N,3,32,32), decoded once and then read from the cache."""
    content = hashlib.sha256(header + data.tobytes() + offsets.tobytes()).hexdigest()
    kept = cache_folder() / "packs" / f"{cache_key(decoder=_DECODER, content=content)[:24]}.npy"
    if not kept.is_file():
        from rich.console import Console
        from rich.progress import track

        pixels = np.empty((len(offsets) - 1, 3, _SIDE, _SIDE), np.uint8)
        numbers = range(len(pixels))
        console = Console(stderr=True)
        for k in track(numbers, f"decoding {path.name} {split}", console=console, transient=True):
            name = f"{path}: {split} image {k}"
            scan = data[offsets[k] : offsets[k + 1]].tobytes()
            image = decode_image(header + scan, lambda name=name: name)  # type: ignore[misc]
            if image.shape != (_SIDE, _SIDE, 3):
                raise UserError(f"{name}: {image.shape[1]}x{image.shape[0]} pixels, expected {_SIDE}x{_SIDE}")
            pixels[k] = image.transpose(2, 0, 1)
        with whole_file(kept) as part, part.open("wb") as file:
            np.save(file, pixels)
    return np.load(kept)
