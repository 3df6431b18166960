"""Videos of the procedural world, rendered in memory, as training data."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkd.data.module import Split
from vlkd.data.sample import Segment
from vlkd.data.video.clip_module import VideoClipModuleBase
from vlkd.data.video.record import Form, Labels, VideoDataset, VideoRecord, Vocabulary
from vlkd.data.video.splits import with_split
from vlkd.data.video.writer import FIRST
from vlkd.data.world import NAMES, NOVEL, THINGS, World
from vlkd.data.world_module import WorldSegmentationData
from vlkd.errors import UserError


class WorldRecord(VideoRecord):
    """A video of a world, rendered on first use and kept as bytes: (T,H,W,3) frames and (T,H,W) ids."""

    form: Form = "panoptic"
    annotated = True

    def __init__(
        self, world: World, number: int, frames: int, size: tuple[int, int], vocabulary: Vocabulary
    ) -> None:
        super().__init__(f"world{world.seed}/{number:07d}", vocabulary)
        self.world, self.number, self.count, self._size = world, number, frames, size

    @property
    def declared_size(self) -> tuple[int, int]:
        """(H, W) as rendered."""
        return self._size

    @cached_property
    def frame_files(self) -> tuple[Path, ...]:
        """What the frames are called; there are no files."""
        return tuple(Path(self.id) / f"{t:05d}" for t in range(self.count))

    @property
    def labelled(self) -> tuple[int, ...]:
        """Every frame."""
        return tuple(range(self.count))

    def read_labels(self, t: int) -> Labels:
        """Exact segments of frame t."""
        _, ids, categories = self._rendered
        return ids[t].astype(np.int32), [Segment(k, c, c < THINGS) for k, c in categories[t].items()]

    def _image(self, t: int) -> NDArray[np.uint8]:
        return self._rendered[0][t]

    @cached_property
    def _rendered(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[dict[int, int]]]:
        scenes = list(self.world.video(self.number, self.count, self._size))
        ids = np.stack([scene.panoptic for scene in scenes]).astype(np.uint8)
        return np.stack([scene.image for scene in scenes]), ids, [scene.categories for scene in scenes]


class WorldVideoClipData(VideoClipModuleBase):
    """Videos of the procedural world; training and validation never share a number, nor with `write_world`.

    Args:
        train_videos: number of training videos.
        val_videos: number of validation videos, the first ones that write_world writes of "val".
        train_frames: frames of a training video.
        val_frames: frames of a validation video.
        size: height and width in pixels.
        world_seed: of the world itself.
        novel: names that are never labelled for the student; None for the world's own split.
        batch_size: see VideoClipModuleBase.
        num_workers: see VideoClipModuleBase.
        crop_size: of training crops; None for the videos' own size.
        kwargs: see VideoClipModuleBase.
    """

    training_synonyms = staticmethod(WorldSegmentationData.training_synonyms)
    held_out_synonym = staticmethod(WorldSegmentationData.held_out_synonym)

    def __init__(
        self,
        train_videos: int = 400,
        val_videos: int = 20,
        train_frames: int = 8,
        val_frames: int = 24,
        size: tuple[int, int] = (128, 128),
        world_seed: int = 0,
        novel: list[str] | str | None = None,
        batch_size: int = 4,
        num_workers: int = 0,
        crop_size: tuple[int, int] | int | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 < train_videos <= FIRST["val"] or min(val_videos, train_frames, *size) < 1:
            raise UserError(
                f"data.train_videos must be at most {FIRST['val']}; it, val_videos, train_frames and size at "
                "least 1"
            )
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            crop_size=crop_size or (size[0], size[1]),
            val_frames=val_frames,
            **kwargs,
        )
        self.counts: dict[Split, tuple[int, int]] = {
            "train": (train_videos, train_frames),
            "val": (val_videos, val_frames),
        }
        self.size, self.world_seed = (size[0], size[1]), world_seed
        self.novel_names = list(NOVEL) if novel is None else novel

    def build_videos(self, split: Split) -> VideoDataset:
        """Videos of a split, rendered when they are looked at."""
        isthing = tuple(k < THINGS for k in range(len(NAMES)))
        plain = Vocabulary(NAMES, NAMES, tuple(range(len(NAMES))), isthing)
        vocabulary = with_split(plain, "world", novel=self.novel_names)
        world, (count, frames) = World(self.world_seed), self.counts[split]
        first = FIRST[split]
        records = [
            WorldRecord(world, number, frames, self.size, vocabulary)
            for number in range(first, first + count)
        ]
        return VideoDataset(records, vocabulary, Path(f"world{self.world_seed}"))
