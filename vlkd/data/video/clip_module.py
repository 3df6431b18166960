"""Videos for the Trainer: augmented clips for training, whole videos for validation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, chain
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vlkd.data.loader import EvalSampler, place_of, shuffled_loader
from vlkd.data.module import SegmentationModuleBase, Split
from vlkd.data.sample import Segment, SegmentationDataset, SegmentationSample
from vlkd.data.transforms import TrainTransform, collate, resize_short_side
from vlkd.data.video.clips import VideoClips
from vlkd.data.video.layouts import check, open_dataset
from vlkd.data.video.record import VideoDataset, VideoRecord
from vlkd.data.video.splits import take_subset
from vlkd.errors import UserError


class VideoClipModuleBase(SegmentationModuleBase):
    """Clips and whole videos of whatever `build_videos(split)` returns.

    After setup() as SegmentationModuleBase; `train_dataset` and `val_dataset` hold the labelled frames of the
    videos, and `train_dataset.videos` the videos. Batches are those of `collate_clips`.

    Args:
        subset: what becomes of novel classes in training: "ignore" (their labels become void), "delete" (of
        videos that show any), None (they are labels).
        val_subset: "val_base" or "val_novel" scores those classes alone; None all.
        frames: frames T of a training clip.
        stride: how many labelled frames apart they are; (least, most) draws it anew for every clip.
        batch_size: clips per step and process.
        crop_size: see SegmentationModuleBase; one augmentation serves all frames of a clip.
        scale: see SegmentationModuleBase.
        flip: see SegmentationModuleBase.
        colour_jitter: see SegmentationModuleBase.
        val_size: short side in pixels of validation frames and labels; None keeps their own size.
        val_frames: use the first so many frames of validation videos only; None for all.
        num_workers: loader processes.
        seed: of clip order, choice of frames and augmentation.
        limit: use the first so many training videos only; None for all.
        val_limit: the same for validation.
    """

    train_dataset: VideoFrames | None
    val_dataset: VideoFrames | None

    def __init__(
        self,
        subset: Literal["ignore", "delete"] | None = "ignore",
        val_subset: Literal["val_base", "val_novel"] | None = None,
        frames: int = 2,
        stride: int | tuple[int, int] = 1,
        batch_size: int = 8,
        crop_size: tuple[int, int] | int = 512,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        colour_jitter: float = 0.0,
        val_size: int | None = None,
        val_frames: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
        limit: int | None = None,
        val_limit: int | None = None,
    ) -> None:
        super().__init__(
            novel_handling=subset or "keep",
            batch_size=batch_size,
            crop_size=crop_size,
            scale=scale,
            flip=flip,
            colour_jitter=colour_jitter,
            val_size=val_size,
            num_workers=num_workers,
            seed=seed,
            limit=limit,
            val_limit=val_limit,
        )
        least, most = (stride, stride) if isinstance(stride, int) else stride
        if frames < 1 or not 1 <= least <= most:
            raise UserError(
                f"data.frames={frames}, data.stride={stride}: expected at least 1, small stride first"
            )
        if val_frames is not None and val_frames < 1:
            raise UserError(f"data.val_frames={val_frames}: expected at least 1, or null for all")
        self.subsets: dict[Split, str | None] = {"train": subset, "val": val_subset}
        self.frames, self.stride, self.val_frames = frames, stride, val_frames

    @abstractmethod
    def build_videos(self, split: Split) -> VideoDataset:
        """All videos of a split, novel classes included. Raises UserError where it is not there."""

    def build(self, split: Split) -> SegmentationDataset:
        """The labelled frames of a split, each an image; of validation the first `val_frames` of a video."""
        videos = self.build_videos(split)
        if subset := self.subsets[split]:
            videos = take_subset(videos, subset)
        limit = self.limit if split == "train" else self.val_limit
        if limit is not None:
            kept = videos.records[:limit]
            videos = VideoDataset(kept, videos.vocabulary, videos.source, candidates=videos.candidates)
        return VideoFrames(videos, self.val_frames if split == "val" else None)

    def collate(self, samples: list[SegmentationSample]) -> dict[str, Any]:
        """The batch of one clip; see collate_clips."""
        return collate_clips([samples], self.void)

    def train_dataloader(self) -> DataLoader:
        """Augmented clips in an order given by (seed, epoch); continues in mid-epoch after a resume."""
        assert self.train_dataset is not None, "setup() comes first"
        videos = self.train_dataset.videos
        clips = TrainClips(videos, self.transform, self.frames, self.stride, self.seed)
        return shuffled_loader(clips, self.batch_size, self.seed, self.trainer, **self._loading())

    def val_dataloader(self) -> DataLoader:
        """Whole videos, one at a time; every video counts once on any number of processes."""
        assert self.val_dataset is not None, "setup() comes first"
        videos = self.val_dataset.videos
        dataset = EvalVideos(videos, self.val_size, self.val_frames)
        sampler = EvalSampler(videos, *place_of(self.trainer))
        return DataLoader(dataset, 1, sampler=sampler, **self._loading())

    def _open(self, split: Split) -> SegmentationDataset:
        return self.build(split)

    def _loading(self) -> dict[str, Any]:
        return {**super()._loading(), "collate_fn": partial(collate_clips, void=self.void)}


class VideoClipData(VideoClipModuleBase):
    """Clips of any video data set that `open_dataset` reads.

    Args:
        kind: layout: vspw, vipseg, youtube_vis_2019, youtube_vis_2021, ovis, burst, lvvis or camvid.
        root: folder of the data set.
        train_split: split used for training.
        val_split: split used for validation.
        base: classes that are taught, see vlkd.data.video.open_dataset; None for all but the novel ones.
        novel: names that the student must not see, or a named split; None for the kind's own.
        kwargs: see VideoClipModuleBase.
    """

    def __init__(
        self,
        kind: str,
        root: str,
        train_split: str = "train",
        val_split: str = "val",
        base: list[str] | str | None = None,
        novel: list[str] | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kind, self.root, self.base, self.novel_names = kind, root, base, novel
        self.splits: dict[Split, str] = {"train": train_split, "val": val_split}

    def build_videos(self, split: Split) -> VideoDataset:
        """The split's videos. Raises UserError as open_dataset does."""
        return open_dataset(self.kind, self.root, self.splits[split], base=self.base, novel=self.novel_names)

    def check(self) -> list[str]:
        """Read every frame and label of both splits; every problem, one line each."""
        found = [
            check(self.kind, self.root, name, base=self.base, novel=self.novel_names)
            for name in self.splits.values()
        ]
        return list(dict.fromkeys(chain(*found)))


class VideoFrames(SegmentationDataset):
    """The labelled frames of videos, each as an image; `limit`: of the first so many frames of each video."""

    def __init__(self, videos: VideoDataset, limit: int | None = None) -> None:
        self.videos, self.limit = videos, limit
        self.names, self.isthing, self.novel = videos.names, videos.isthing, videos.novel
        self._ends: list[int] = []

    def __len__(self) -> int:
        return self._places()[-1] if len(self.videos) else 0

    def __getitem__(self, index: int) -> SegmentationSample:  # type: ignore[override]
        ends = self._places()
        video = int(np.searchsorted(ends, index, side="right"))
        record = self.videos[video]
        return frame_sample(record, self._labelled(record)[index - (ends[video - 1] if video else 0)])

    def _places(self) -> list[int]:
        """Number of frames up to the end of each video; to know it may read every label file once."""
        if not self._ends:
            self._ends = list(accumulate(len(self._labelled(record)) for record in self.videos))
        return self._ends

    def _labelled(self, record: VideoRecord) -> Sequence[int]:
        return [t for t in record.labelled if self.limit is None or t < self.limit]


class TrainClips(VideoClips, Dataset):
    """Augmented clips, addressed by (epoch, index): same address, same pixels, in any process."""

    def __init__(
        self,
        videos: VideoDataset,
        transform: TrainTransform,
        frames: int,
        stride: int | tuple[int, int],
        seed: int,
    ) -> None:
        super().__init__(videos, frames, stride, seed)
        self.transform = transform

    def __getitem__(self, place: tuple[int, int]) -> list[SegmentationSample]:  # type: ignore[override]
        record, times, rng = self.draw(place)
        return self.transform.clip([frame_sample(record, t) for t in times], rng)


class EvalVideos(Dataset):
    """Whole videos, addressed by (index, repeated); a repeated one is all void: no metric counts it."""

    def __init__(self, videos: VideoDataset, short_side: int | None, frames: int | None) -> None:
        self.videos, self.short_side, self.frames = videos, short_side, frames

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, address: tuple[int, bool]) -> list[SegmentationSample]:
        index, repeated = address
        record = self.videos[index]
        samples = [
            resize_short_side(frame_sample(record, t), self.short_side)
            for t in range(len(record))[: self.frames]
        ]
        return [sample.keep([not repeated] * len(sample.info)) for sample in samples]


def frame_sample(record: VideoRecord, t: int) -> SegmentationSample:
    """Frame t as an image, "VIDEO/t", whose segment ids stay with their object through the video.

    Things are one segment each, a stuff class is one segment. Where masks of tracks overlap, the later track
    lies on top. All void where frame t has no labels.
    """
    image = record.frame(t)
    if record.form == "tracks":
        segments, info = _painted(record, t)
    else:
        found = record.labels(t)
        segments, info = found if found else (np.zeros(image.shape[:2], np.int32), [])
    return _one_stuff(SegmentationSample(f"{record.id}/{t}", image, segments, info))


def _painted(record: VideoRecord, t: int) -> tuple[np.ndarray, list[Segment]]:
    segments = np.zeros(record.size, np.int32)
    info = []
    for id, track in enumerate(record.tracks, 1):
        if (mask := track.mask(t)) is not None:
            segments[mask] = id
            info.append(Segment(id, track.category, record.vocabulary.isthing[track.category], track.crowd))
    shown = set(np.unique(segments).tolist())
    return segments, [segment for segment in info if segment.id in shown]


def _one_stuff(sample: SegmentationSample) -> SegmentationSample:
    """The sample with the segments of a stuff class made one, under the id of the first of them."""
    first: dict[int, int] = {}
    merged = {s.id: first.setdefault(s.category, s.id) for s in sample.info if not (s.isthing or s.crowd)}
    segments = sample.segments
    for id, kept in merged.items():
        if id != kept:
            segments = np.where(segments == id, kept, segments)
    info = [segment for segment in sample.info if merged.get(segment.id, segment.id) == segment.id]
    return replace(sample, segments=segments, info=info)


def collate_clips(clips: Sequence[Sequence[SegmentationSample]], void: int) -> dict[str, Any]:
    """Batch of B clips of T frames: as vlkd.data.transforms.collate of the B * T frames, clip by clip.

    Besides "frames", T; and in every target "clip", the number of its clip, and "tracks" (M,), the number of
    each segment's object, which is the same in all frames of the clip.
    """
    batch = collate(list(chain(*clips)), void)
    targets = iter(batch["targets"])
    for number, clip in enumerate(clips):
        objects: dict[tuple[int, int], int] = {}
        for sample in clip:
            # Of stuff the class is the object, whatever id it has.
            keys = [(s.category, s.id if s.isthing else 0) for s in sample.info if not s.crowd]
            places = [objects.setdefault(key, len(objects)) for key in keys]
            next(targets).update(clip=number, tracks=torch.tensor(places, dtype=torch.int64))
    return {**batch, "frames": len(clips[0])}
