"""How far apart: plain functions on tensors, float32 inside autocast, no Lightning, no models."""

from vlkd.losses.contrastive import clip_loss, grounding_loss
from vlkd.losses.mask import dice, mask_bce, mask_losses
from vlkd.losses.matching import match, match_batch
from vlkd.losses.relation import text_guided_kd

__all__ = [
    "clip_loss",
    "dice",
    "grounding_loss",
    "mask_bce",
    "mask_losses",
    "match",
    "match_batch",
    "text_guided_kd",
]
