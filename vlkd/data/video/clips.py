"""Short clips of videos for training, the same ones for a seed, an epoch and an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlkd.data.sample import Segment
from vlkd.data.video.record import VideoDataset, VideoRecord
from vlkd.errors import UserError


@dataclass
class Clip:
    """T frames of a video with what is labelled in any of them.

    images (T,H,W,3) uint8 RGB, times (T,), and of M objects (or, in semantic sets, classes): ids (M,), class
    indices (M,), crowd (M,) and masks (T,M,H,W) bool, empty in the frames where the object is not.
    """

    video: str
    times: tuple[int, ...]
    images: NDArray[np.uint8]
    ids: NDArray[np.int64]
    categories: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    masks: NDArray[np.bool_]


def sample_clip(record: VideoRecord, frames: int, stride: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Indices of `frames` frames, `stride` apart, from a random place of the video.

    Only frames with labels count where the video has any: in sparsely labelled sets `stride` steps through
    those. A video that is too short is stepped through as widely as it allows, and one with fewer frames than
    the clip repeats its last. Raises UserError for a video without frames.
    """
    if min(frames, stride) < 1:
        raise UserError(f"a clip of {frames} frames with stride {stride}: both must be at least 1")
    times = record.labelled or tuple(range(len(record)))
    if not times:
        raise UserError(f"video {record.id}: no frame is left to make a clip of")
    if frames > 1:
        stride = max(1, min(stride, (len(times) - 1) // (frames - 1)))
    start = int(rng.integers(max(1, len(times) - stride * (frames - 1))))
    return tuple(times[min(start + stride * k, len(times) - 1)] for k in range(frames))


def read_clip(record: VideoRecord, times: Sequence[int]) -> Clip:
    """Frames and labels of the frames `times` (T,) of a video. Raises UserError as the record does."""
    images = np.stack([record.frame(t) for t in times])
    size = images.shape[1:3]
    if record.form == "tracks":
        present = [track for track in record.tracks if set(track.times) & set(times)]
        ids = [(track.id, track.category, track.crowd) for track in present]
        empty = np.zeros(size, dtype=bool)
        found = [[empty if (mask := track.mask(t)) is None else mask for track in present] for t in times]
        masks = np.array(found, dtype=bool)
    else:
        labels = [record.labels(t) or (np.zeros(size, np.int32), list[Segment]()) for t in times]
        listed = {segment.id: segment for _, info in labels for segment in info}
        ids = [(segment.id, segment.category, segment.crowd) for segment in listed.values()]
        masks = np.array([[segments == id for id, _, _ in ids] for segments, _ in labels], dtype=bool)
    return Clip(
        record.id,
        tuple(times),
        images,
        np.array([id for id, _, _ in ids], dtype=np.int64),
        np.array([category for _, category, _ in ids], dtype=np.int64),
        np.array([crowd for _, _, crowd in ids], dtype=bool),
        masks.reshape(len(times), len(ids), *size),
    )


class VideoClips:
    """One clip of every video; [epoch, index], as EpochSampler gives them, decide which one.

    Args:
        dataset: the videos.
        frames: frames of a clip.
        stride: how many frames apart they are; (least, most) draws it anew for every clip.
        seed: other seeds give other clips.
    """

    def __init__(
        self, dataset: VideoDataset, frames: int = 2, stride: int | tuple[int, int] = 1, seed: int = 0
    ) -> None:
        self.dataset, self.frames, self.stride, self.seed = dataset, frames, stride, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: tuple[int, int]) -> Clip:
        """The clip of (epoch, index). A video that a subset left no frame of gives way to the next one."""
        record, times, _ = self.draw(place)
        return read_clip(record, times)

    def draw(self, place: tuple[int, int]) -> tuple[VideoRecord, tuple[int, ...], np.random.Generator]:
        """Video and frames of the clip of (epoch, index), and the generator that drew them."""
        epoch, index = place
        rng = np.random.default_rng((self.seed, epoch, index))
        following = (self.dataset[(index + k) % len(self.dataset)] for k in range(len(self.dataset)))
        record = next((record for record in following if len(record)), self.dataset[index])
        stride = self.stride
        if not isinstance(stride, int):
            stride = int(rng.integers(stride[0], stride[1] + 1))
        return record, sample_clip(record, self.frames, stride, rng), rng
