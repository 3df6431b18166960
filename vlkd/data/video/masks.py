"""Masks as the YouTube-VIS family stores them: compressed or plain run lengths, and polygons."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from vlkd.errors import UserError


def decode_mask(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Mask (H,W) of an RLE {"size", "counts"}, its counts a string or a list of runs, or of polygons.

    Raises UserError for anything else, for runs that do not fill the frame, and for another size.
    """
    height, width = size
    try:
        if isinstance(segmentation, list):
            rle = coco.merge(coco.frPyObjects(segmentation, height, width))
        elif tuple(int(side) for side in segmentation["size"]) != size:
            h, w = segmentation["size"]
            raise UserError(f"an RLE of {w}x{h} pixels, but its video has {width}x{height}")
        elif isinstance(segmentation["counts"], list):
            rle = coco.frPyObjects(segmentation, height, width)
        else:
            rle = segmentation
        return coco.decode(rle).astype(bool)
    except UserError:
        raise
    except Exception as error:  # pycocotools raises bare Exceptions
        raise UserError(f"neither an RLE nor a list of polygons ({error})") from None


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Compressed RLE {"size": [H, W], "counts": str} of a mask (H,W), ready for JSON."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
