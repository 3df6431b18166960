"""COCO panoptic data: a JSON file, a folder of RGB PNGs whose colours are segment ids, a folder of images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkd.data.files import FileSegmentation, need_folder, read_colour_ids
from vlkd.data.sample import Segment, segment_index
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
        content = read_json(self.json)
        try:
            categories = content["categories"]
            raw = [str(category["name"]) for category in categories]
            self.isthing = tuple(bool(category["isthing"]) for category in categories)
            self._class_of = {int(category["id"]): index for index, category in enumerate(categories)}
            image_of = {image["id"]: str(image["file_name"]) for image in content["images"]}
            self._annotations = [
                (
                    image_of[entry["image_id"]],
                    str(entry["file_name"]),
                    listed_segments(entry, self._class_of, self.isthing, self.json),
                )
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
        return read_listed(self.files(index)[1], self._annotations[index][2], self.json)


def listed_segments(
    entry: dict[str, Any], class_of: Mapping[int, int], isthing: Sequence[bool], source: Path
) -> list[Segment]:
    """The segments of one annotation entry. Raises UserError for a category_id that is in no category."""
    segments = []
    for segment in entry["segments_info"]:
        if segment["category_id"] not in class_of:
            raise UserError(
                f"{source}: {entry['file_name']} has category_id {segment['category_id']}, "
                "which its categories do not list"
            )
        category = class_of[segment["category_id"]]
        crowd = bool(segment.get("iscrowd", 0))
        segments.append(Segment(int(segment["id"]), category, isthing[category], crowd))
    return segments


def read_listed(
    path: Path, listed: Sequence[Segment], source: Path
) -> tuple[NDArray[np.int32], list[Segment]]:
    """Segment map (H,W) of a panoptic PNG and those of `listed` that have a pixel in it.

    Raises UserError for an id that `listed`, taken from the JSON `source`, does not have.
    """
    segments = read_colour_ids(path)
    position = segment_index(segments, listed)
    areas = np.bincount(position.ravel(), minlength=len(listed) + 1)
    if areas[-1] and (stray := np.unique(segments[(position == len(listed)) & (segments != 0)])).size:
        raise UserError(f"{path}: segment id {', '.join(map(str, stray[:8]))} is not listed in {source}")
    return segments, [segment for segment, area in zip(listed, areas, strict=False) if area]


def read_json(path: Path, form: type = dict) -> Any:
    """The object (or list) in a JSON file. Raises UserError: missing, broken, or something else in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: annotation file not found (layouts: datasets/README.md)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(content, form):
        expected = "an object" if form is dict else "a list"
        raise UserError(f"{path}: expected a JSON file with {expected} of annotations in it")
    return content
