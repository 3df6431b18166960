"""Contrast between images (or regions) and texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_loss(image: Tensor, text: Tensor, scale: Tensor | float, same_text: Tensor | None = None) -> Tensor:
    """Symmetric cross entropy of B image-text pairs: image, text (B,D) unit vectors, scale the logit factor.

    same_text (B,B) bool marks pairs with an identical text; they are no negatives of each other.
    Source: CLIP (Radford et al. 2021), figure 3.
    """
    with torch.autocast(image.device.type, enabled=False):
        logits = scale * image.float() @ text.float().T
        if same_text is not None:
            others = same_text & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
            logits = logits.masked_fill(others, float("-inf"))
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def grounding_loss(
    regions: Tensor, words: Tensor, region_mask: Tensor, word_mask: Tensor, scale: Tensor | float
) -> Tensor:
    """Caption grounding of B images: regions (B,R,D) and words (B,W,D) unit vectors with masks (B,R), (B,W).

    Each image is compared with each caption by soft alignment (word to region, region to word) of the scaled
    cosines; both scores are contrasted over images and over captions, the mean of the four cross entropies is
    returned. Images without regions or words take no part; fewer than two leave a zero.
    Source: OVR-CNN (Zareian et al. 2021) as used in yongliu20/GKC@21313c8.
    """
    used = region_mask.any(1) & word_mask.any(1)
    if int(used.sum()) < 2:
        return regions.float().sum() * 0.0
    with torch.autocast(regions.device.type, enabled=False):
        r, w, rm, wm = regions[used].float(), words[used].float(), region_mask[used], word_mask[used]
        score = scale * torch.einsum("brd,cwd->bcrw", r, w)
        allowed_r, allowed_w = rm[:, None, :, None], wm[None, :, None, :]
        by_word = score.masked_fill(~allowed_r, float("-inf")).softmax(2).nan_to_num(0.0)
        by_region = score.masked_fill(~allowed_w, float("-inf")).softmax(3).nan_to_num(0.0)
        word_score = ((by_word * score).sum(2) * wm[None]).sum(2) / wm.sum(1)
        region_score = ((by_region * score).sum(3) * rm[:, None]).sum(2) / rm.sum(1)[:, None]
        target = torch.arange(len(r), device=r.device)
        return torch.stack(
            [F.cross_entropy(s, target) for s in (word_score, word_score.T, region_score, region_score.T)]
        ).mean()
