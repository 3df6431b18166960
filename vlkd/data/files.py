"""Reading files so that every fault is one line that names the file; writing them whole or not at all."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlkd.data.sample import Segment, SegmentationDataset, SegmentationSample
from vlkd.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def read_image(path: Path) -> NDArray[np.uint8]:
    """RGB image (H,W,3) uint8, upright by EXIF. Raises UserError: missing, truncated, not an image."""

    def decode(image: Image.Image) -> NDArray[np.uint8]:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))

    return _decoded(path, "image", decode)


def read_labels(path: Path) -> NDArray[Any]:
    """Index PNG (H,W), any integer type. Raises UserError: missing, truncated, more than one channel."""

    def decode(image: Image.Image) -> NDArray[Any]:
        if len(image.getbands()) != 1:
            raise UserError(
                f"{path}: a label file needs one channel of class numbers, this one is {image.mode}; "
                "convert colours to indices first (see datasets/README.md)"
            )
        labels = np.array(image)
        return labels.astype(np.uint8) if labels.dtype == bool else labels

    return _decoded(path, "label file", decode)


def read_colour_ids(path: Path) -> NDArray[np.int32]:
    """Segment ids (H,W) int32 = R + 256 G + 65536 B of a panoptic PNG. Errors as read_labels."""

    def decode(image: Image.Image) -> NDArray[np.int32]:
        if image.mode not in ("RGB", "RGBA"):
            raise UserError(
                f"{path}: a panoptic PNG holds segment ids as RGB colours, this one is {image.mode}"
            )
        return np.array(image)[..., :3].astype(np.int32) @ np.array([1, 256, 65536], dtype=np.int32)

    return _decoded(path, "panoptic PNG", decode)


def _decoded(path: Path, what: str, decode: Callable[[Image.Image], NDArray[Any]]) -> NDArray[Any]:
    try:
        with Image.open(path) as image:
            return decode(image)
    except FileNotFoundError:
        raise UserError(f"{path}: {what} not found") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not an image" if "cannot identify" in str(error) else str(error)
        reason = reason if path.stat().st_size else "0 bytes"
        raise UserError(f"{path}: {what} cannot be read ({reason}); replace the file") from None


def need_folder(path: Path, what: str) -> Path:
    """`path` itself when it is a folder. Raises UserError that says what was expected there."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; expected {what} (layouts: datasets/README.md)")
    return path


class FileSegmentation(SegmentationDataset):
    """A data set whose samples are an image file and a file with its segments."""

    @abstractmethod
    def sample_id(self, index: int) -> str:
        """Identity of a sample, stable over runs."""

    @abstractmethod
    def files(self, index: int) -> tuple[Path, Path]:
        """Image file and segment file."""

    @abstractmethod
    def read_segments(self, index: int) -> tuple[NDArray[np.int32], list[Segment]]:
        """Segment map (H,W), 0 = void, and its segments, none of them empty."""

    def __getitem__(self, index: int) -> SegmentationSample:  # type: ignore[override]
        """Image and segments. Raises UserError naming the file that is missing, broken or of another size."""
        image = read_image(self.files(index)[0])
        segments, info = self.read_segments(index)
        if problem := self._size_problem(index, image, segments):
            raise UserError(problem)
        return SegmentationSample(self.sample_id(index), image, segments, info)

    def check(self, index: int) -> list[str]:
        """Faults of the image, of the segments, and of the two together, one line each."""
        problems: list[str] = []
        image, segments = None, None
        try:
            image = read_image(self.files(index)[0])
        except UserError as error:
            problems.append(str(error))
        try:
            segments = self.read_segments(index)[0]
        except UserError as error:
            problems.append(str(error))
        if image is not None and segments is not None and (p := self._size_problem(index, image, segments)):
            problems.append(p)
        return problems

    def categories(self, index: int) -> frozenset[int]:
        """Class indices of one sample, from the segment file alone."""
        return frozenset(segment.category for segment in self.read_segments(index)[1])

    def missing(self) -> list[str]:
        """Image and segment files that are not there."""
        listed: dict[Path, set[str]] = {}
        lines = []
        for index in range(len(self)):
            for path in self.files(index):
                if path.parent not in listed:
                    folder = path.parent
                    listed[folder] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
                if path.name not in listed[path.parent]:
                    lines.append(f"{path}: not found; sample {self.sample_id(index)!r} needs it")
        return lines

    def _size_problem(self, index: int, image: NDArray[np.uint8], segments: NDArray[np.int32]) -> str:
        if image.shape[:2] == segments.shape:
            return ""
        image_file, segment_file = self.files(index)
        (height, width), (h, w) = image.shape[:2], segments.shape
        return f"{segment_file}: {w}x{h} pixels, but its image {image_file} is {width}x{height}"


def read_text(path: Path, absent: str, encoding: str = "utf-8-sig") -> str:
    """Text of a file. Raises UserError where it cannot be read; `absent` is said of a missing one."""
    try:
        return path.read_text(encoding=encoding)
    except FileNotFoundError:
        raise UserError(f"{path}: {absent}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` when the block ends well and else vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
