"""Reading any usual image as RGB uint8, and writing results whole or not at all."""

from __future__ import annotations

import os
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vlkd.errors import UserError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """RGB image (H,W,3) uint8 of a file, upright (EXIF), first frame of several, transparency over white.

    Raises UserError for files that are missing, empty, damaged, truncated, not images, or of more pixels than
    Pillow's limit against decompression bombs (2 x PIL.Image.MAX_IMAGE_PIXELS, 179 megapixels).
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty: expected an image")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return to_rgb(image)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not an image that can be read (JPEG, PNG, WebP, ...)") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: the image is too large: scale it to less than 179 megapixels") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path}: the image is damaged or cannot be read: {reason.splitlines()[0]}") from None


def to_rgb(image: Image.Image) -> np.ndarray:
    """RGB (H,W,3) uint8 of a PIL image of any mode: upright, 16 bits scaled to 8, transparency over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(np.asarray(image))
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside `path`, which becomes `path` when the block ends well and else vanishes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".part-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_image(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write (H,W,3) uint8 as the format of the suffix."""
    with whole_file(path) as part:
        Image.fromarray(pixels).save(part, quality=92)


def write_labels(path: str | os.PathLike[str], labels: np.ndarray, palette: np.ndarray) -> None:
    """Write labels (H,W) as PNG: indexed with `palette` (K,3) uint8 up to 256 classes, 16-bit grey beyond."""
    if labels.max(initial=0) < 256:
        image = Image.fromarray(labels.astype(np.uint8), mode="P")
        image.putpalette(palette[:256].astype(np.uint8).tobytes())
    else:
        image = Image.fromarray(labels.astype(np.uint16))
    with whole_file(path) as part:
        image.save(part)


def _deep_grey(values: np.ndarray) -> np.ndarray:
    """RGB uint8 of grey with more than 8 bits: whole numbers have 16 bits, floats lie in [0, 1]."""
    top = 1 if values.dtype.kind == "f" else 65535
    grey = np.nan_to_num(values.astype(np.float32)).clip(0, top) * (255 / top)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)
