"""GKC: fast open-vocabulary segmentation by text diversification and text-guided distillation."""

from vlkd.methods.gkc.method import GKC, DiversifyOptions, KDOptions
from vlkd.methods.gkc.video import VideoGKC

__all__ = ["GKC", "DiversifyOptions", "KDOptions", "VideoGKC"]
