"""CLIP-to-CLIP distillation: a small pair of towers learns from a large one on captioned images."""

from vlkd.methods.clip.evaluate import retrieval_scores, zero_shot_scores
from vlkd.methods.clipkd.method import CLIPKD

__all__ = ["CLIPKD", "retrieval_scores", "zero_shot_scores"]
