"""Video data sets with labels: VSPW, VIPSeg, YouTube-VIS, OVIS, BURST, LV-VIS, folders, the written world."""

from vlkd.data.video.clips import Clip, VideoClips, read_clip, sample_clip
from vlkd.data.video.layouts import KINDS, check, open_dataset
from vlkd.data.video.record import Track, VideoDataset, VideoRecord, Vocabulary
from vlkd.data.video.splits import SUBSETS
from vlkd.data.video.writer import write_world

__all__ = [
    "KINDS",
    "SUBSETS",
    "Clip",
    "Track",
    "VideoClips",
    "VideoDataset",
    "VideoRecord",
    "Vocabulary",
    "check",
    "open_dataset",
    "read_clip",
    "sample_clip",
    "write_world",
]
