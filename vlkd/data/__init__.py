"""What a model sees: data sets of images with segments, and the LightningDataModules over them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Segment": "sample",
    "SegmentationSample": "sample",
    "SegmentationDataset": "sample",
    "void_label": "sample",
    "FolderSegmentation": "folder",
    "CocoPanoptic": "coco",
    "open_segmentation": "layouts",
    "apply_split": "splits",
    "resolve_novel": "splits",
    "DatasetView": "splits",
    "check_dataset": "check",
    "TrainTransform": "transforms",
    "collate": "transforms",
    "SegmentationModuleBase": "module",
    "SegmentationData": "module",
    "WorldSegmentationData": "world_module",
    "WorldCaptionData": "world_module",
    "CaptionData": "world_module",
    "CaptionFilesData": "caption_files",
    "ClassificationModuleBase": "images.module",
    "ClassificationData": "images.module",
    "WorldClassificationData": "images.world",
    "CoOpData": "images.coop",
    "WebData": "images.web",
    "WorldWebData": "images.web",
    "VideoTextData": "video_text.videos",
    "TextBlocksData": "video_text.texts",
    "VideoClipData": "video.clip_module",
    "WorldVideoClipData": "video.world_clips",
    "LexiconVideoData": "lexicon.module",
    "LexiconData": "lexicon.module",
    "LexiconChoicesData": "downstream.lexicon",
    "GlueData": "downstream.glue",
    "SquadData": "downstream.squad",
    "SwagData": "downstream.choices",
    "PiqaData": "downstream.choices",
    "TracieData": "downstream.tracie",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
