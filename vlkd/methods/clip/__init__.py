"""CLIP training: the symmetric contrastive objective on captioned images."""

from vlkd.methods.clip.method import CLIP

__all__ = ["CLIP"]
