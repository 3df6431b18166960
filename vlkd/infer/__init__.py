"""Use of a student: images, folders and video in; label maps, overlays and numbers out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlkd.infer.postprocess import panoptic_segments, semantic_labels
    from vlkd.infer.predictor import Predictor, Segmentation

__all__ = ["Predictor", "Segmentation", "panoptic_segments", "semantic_labels"]

_HOMES = {
    "Predictor": "predictor",
    "Segmentation": "predictor",
    "panoptic_segments": "postprocess",
    "semantic_labels": "postprocess",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
