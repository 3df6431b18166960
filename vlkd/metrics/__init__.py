"""How good: scores of segmentation, video, classes, retrieval, language; fractions in [0, 1] unless said."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "confusion_matrix": "semantic",
    "per_class_iou": "semantic",
    "miou": "semantic",
    "fwiou": "semantic",
    "macc": "semantic",
    "pacc": "semantic",
    "SemanticMetric": "semantic",
    "panoptic_quality": "panoptic",
    "PanopticCounts": "panoptic",
    "PanopticMetric": "panoptic",
    "class_hits": "classification",
    "accuracy": "classification",
    "mean_per_class": "classification",
    "shot_groups": "classification",
    "harmonic_mean": "classification",
    "retrieval_recall": "retrieval",
    "linear_probe": "probes",
    "zero_shot_probe": "probes",
    "token_ranks": "probes",
    "label_accuracy": "language",
    "f1": "language",
    "matthews": "language",
    "pearson": "language",
    "spearman": "language",
    "normalised_answer": "language",
    "squad_scores": "language",
    "video_consistency": "video.consistency",
    "correct_consistency": "video.consistency",
    "ConsistencyMetric": "video.consistency",
    "vpq": "video.vpq",
    "VPQMetric": "video.vpq",
    "stq": "video.stq",
    "STQMetric": "video.stq",
    "hota": "video.hota",
    "HOTAMetric": "video.hota",
    "FlowConsistencyMetric": "video.flow",
    "track_ap": "video.track_ap",
    "TrackAPMetric": "video.track_ap",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
