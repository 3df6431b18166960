"""Use of a student: images, folders and video in; label maps or classes, pictures and numbers out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlkd.infer.classify import Classification, ClassPredictor, OpenClassPredictor
    from vlkd.infer.predictor import Predictor, Segmentation
    from vlkd.infer.tracking import TrackPrediction
    from vlkd.infer.video_predictor import FramePrediction, VideoPredictor, VideoSession
    from vlkd.models.flow import build_flow
    from vlkd.models.postprocess import panoptic_segments, semantic_labels

__all__ = [
    "ClassPredictor",
    "Classification",
    "FramePrediction",
    "OpenClassPredictor",
    "Predictor",
    "Segmentation",
    "TrackPrediction",
    "VideoPredictor",
    "VideoSession",
    "build_flow",
    "panoptic_segments",
    "semantic_labels",
]

_HOMES = {
    "ClassPredictor": "vlkd.infer.classify",
    "Classification": "vlkd.infer.classify",
    "FramePrediction": "vlkd.infer.video_predictor",
    "OpenClassPredictor": "vlkd.infer.classify",
    "Predictor": "vlkd.infer.predictor",
    "Segmentation": "vlkd.infer.predictor",
    "TrackPrediction": "vlkd.infer.tracking",
    "VideoPredictor": "vlkd.infer.video_predictor",
    "VideoSession": "vlkd.infer.video_predictor",
    "build_flow": "vlkd.models.flow",
    "panoptic_segments": "vlkd.models.postprocess",
    "semantic_labels": "vlkd.models.postprocess",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
