"""COCO panoptic data: a JSON file, a folder of RGB PNGs whose colours are segment ids, a folder of images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkd.data.files import FileSegmentation, need_folder, read_colour_ids
from vlkd.data.sample import Segment, index_of
from vlkd.errors import UserError
from vlkd.text.names import clean_names


class CocoPanoptic(FileSegmentation):
    """Images, panoptic PNGs (id = R + 256 G + 65536 B) and their JSON, in the JSON's order.

    Classes are the JSON's categories in its order; names are cleaned for a text encoder unless given. Crowd
    segments are marked, segments without a pixel are dropped.
    Raises UserError for missing files, a JSON of another shape, and ids that JSON and PNG do not share.
    """

    def __init__(
        self,
        images: str | Path,
        panoptic: str | Path,
        annotations: str | Path,
        names: Sequence[str] | None = None,
    ) -> None:
        self.images = need_folder(Path(images), "the images")
        self.panoptic = need_folder(Path(panoptic), "the panoptic PNGs")
        self.json = Path(annotations)
        content = _read_json(self.json)
        try:
            categories = content["categories"]
            raw = [str(category["name"]) for category in categories]
            self.isthing = tuple(bool(category["isthing"]) for category in categories)
            self._class_of = {int(category["id"]): index for index, category in enumerate(categories)}
            image_of = {image["id"]: str(image["file_name"]) for image in content["images"]}
            self._annotations = [
                (image_of[entry["image_id"]], str(entry["file_name"]), self._listed(entry))
                for entry in content["annotations"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.json}: not a COCO panoptic JSON (missing or wrong entry {error})"
            ) from None
        self.names = tuple(names) if names is not None else tuple(clean_names(raw))
        if len(self.names) != len(self.isthing):
            raise UserError(
                f"{self.json}: {len(self.isthing)} categories, but {len(self.names)} names were given"
            )
        if not self._annotations:
            raise UserError(f"{self.json}: no annotated image")
        self.novel: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self._annotations)

    def sample_id(self, index: int) -> str:
        """The image file's name without suffix."""
        return Path(self._annotations[index][0]).with_suffix("").as_posix()

    def files(self, index: int) -> tuple[Path, Path]:
        """Image file and panoptic PNG."""
        image, segments, _ = self._annotations[index]
        return self.images / image, self.panoptic / segments

    def categories(self, index: int) -> frozenset[int]:
        """Class indices of one sample, from the JSON alone."""
        return frozenset(segment.category for segment in self._annotations[index][2])

    def read_segments(self, index: int) -> tuple[NDArray[np.int32], list[Segment]]:
        """Segment map (H,W) with the JSON's ids. Raises UserError for an id that the JSON does not list."""
        path = self.files(index)[1]
        listed = self._annotations[index][2]
        segments = read_colour_ids(path)
        position = index_of(segments, np.array([segment.id for segment in listed], dtype=np.int64))
        areas = np.bincount(position.ravel(), minlength=len(listed) + 1)
        if areas[-1] and (stray := np.unique(segments[(position == len(listed)) & (segments != 0)])).size:
            raise UserError(
                f"{path}: segment id {', '.join(map(str, stray[:8]))} is not listed in {self.json}"
            )
        return segments, [segment for segment, area in zip(listed, areas, strict=False) if area]

    def _listed(self, entry: dict[str, Any]) -> list[Segment]:
        segments = []
        for segment in entry["segments_info"]:
            if segment["category_id"] not in self._class_of:
                raise UserError(
                    f"{self.json}: {entry['file_name']} has category_id {segment['category_id']}, "
                    "which its categories do not list"
                )
            category = self._class_of[segment["category_id"]]
            crowd = bool(segment.get("iscrowd", 0))
            segments.append(Segment(int(segment["id"]), category, self.isthing[category], crowd))
        return segments


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: annotation file not found (layouts: datasets/README.md)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a COCO panoptic JSON (expected an object with images and annotations)")
    return content
