"""Matching and the losses of one decoder level: masks and class names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.losses.mask import mask_losses
from vlkd.losses.matching import match_batch
from vlkd.models.segmentor import Prediction

IGNORE = -100


@dataclass
class MaskCriterion:
    """Matching and point-sampled mask losses.

    cost: factors of class, mask and dice in the matching; points: sampled per mask; no_object: weight of that
    class; region_dropout: probability that a matched query takes no part in the classification; teach_void:
    whether queries on unlabelled pixels are taught "no object" (as upstream) or left alone.
    """

    cost: tuple[float, float, float] = (2.0, 5.0, 5.0)
    points: int = 12544
    no_object: float = 0.1
    region_dropout: float = 0.5
    teach_void: bool = False

    def assign(self, logits: Tensor, prediction: Prediction, targets: list[dict[str, Any]]) -> Matches:
        """Hungarian matching on the logits of the class names (B,Q,K+1)."""
        pairs = match_batch(logits.detach(), prediction.mask_logits.detach(), targets, self.cost, self.points)
        return Matches.of(pairs, logits.device)

    def masks(
        self, prediction: Prediction, matches: Matches, targets: list[dict[str, Any]], count: float
    ) -> dict[str, Tensor]:
        """Cross entropy and dice of the matched masks; count is the number that the sums are divided by."""
        chosen = prediction.mask_logits[matches.image, matches.query]
        truth = [
            t["masks"][m]
            for t, m in zip(targets, matches.per_image(matches.segment, len(targets)), strict=True)
        ]
        return mask_losses(chosen, torch.cat(truth), count, self.points)

    def classes(
        self, logits: Tensor, matches: Matches, labels: Tensor, kept: Tensor, unknown: Tensor | None = None
    ) -> Tensor:
        """Cross entropy of logits (B,Q,K+1) with labels (N,) of matched queries, where kept (N,) is True.

        Other queries are taught "no object", except where unknown (B,Q) says that nobody knows what they see.
        """
        nothing = logits.shape[-1] - 1
        target = torch.full(logits.shape[:2], nothing, dtype=torch.long, device=logits.device)
        if unknown is not None:
            target[unknown] = IGNORE
        target[matches.image, matches.query] = torch.where(kept, labels, IGNORE)
        weight = torch.ones(logits.shape[-1], device=logits.device)
        weight[nothing] = self.no_object
        return F.cross_entropy(logits.float().transpose(1, 2), target, weight, ignore_index=IGNORE)

    def dropout(self, matches: Matches) -> Tensor:
        """Which matched queries take part in the classification (N,)."""
        return torch.rand(len(matches.image), device=matches.image.device) >= self.region_dropout


@dataclass
class Matches:
    """N matched queries of a batch, ordered by image and by segment: image (N,), query (N,), segment (N,)."""

    image: Tensor
    query: Tensor
    segment: Tensor

    @classmethod
    def of(cls, pairs: list[tuple[Tensor, Tensor]], device: torch.device) -> Matches:
        """From (queries, segments) per image."""
        # Ordered by segment, so that every decoder level sees the regions in the same order.
        order = [segment.argsort() for _, segment in pairs]
        image = torch.cat([torch.full_like(q, k) for k, (q, _) in enumerate(pairs)])
        query = torch.cat([q[o] for (q, _), o in zip(pairs, order, strict=True)])
        segment = torch.cat([s[o] for (_, s), o in zip(pairs, order, strict=True)])
        return cls(image.to(device), query.to(device), segment.to(device))

    def per_image(self, values: Tensor, images: int) -> list[Tensor]:
        """Split values (N,...) by image."""
        return list(values.split(torch.bincount(self.image, minlength=images).tolist()))

    def gather(self, values: list[Tensor]) -> Tensor:
        """values[b] (M_b,...) per segment -> (N,...) per matched query."""
        parts = self.per_image(self.segment, len(values))
        return torch.cat([v[s] for v, s in zip(values, parts, strict=True)])

    def first(self, limit: int) -> Matches:
        """At most `limit` of them, drawn at random and kept in order, so that pairs never mix images."""
        if len(self.image) <= limit:
            return self
        kept = torch.randperm(len(self.image), device=self.image.device)[:limit].sort().values
        return Matches(self.image[kept], self.query[kept], self.segment[kept])


@torch.no_grad()
def over_void(mask_logits: Tensor, semantic: Tensor, void: int) -> Tensor:
    """Queries whose mask lies mostly on void pixels (B,Q): mask_logits (B,Q,h,w), semantic (B,H,W)."""
    height, width = mask_logits.shape[-2:]
    unlabelled = F.adaptive_avg_pool2d((semantic == void).float()[:, None], (height, width))
    masks = mask_logits.sigmoid()
    return (masks * unlabelled).sum((2, 3)) > 0.5 * masks.sum((2, 3))


def grounded(prediction: Prediction, matches: Matches, images: int, limit: int) -> tuple[Tensor, Tensor]:
    """Embeddings of up to `limit` matched regions of each image, padded: (B,R,D) and mask (B,R)."""
    embeddings = prediction.embeddings[matches.image, matches.query]
    parts = [part[:limit] for part in matches.per_image(embeddings, images)]
    width = max([len(part) for part in parts] + [1])
    padded = torch.stack([F.pad(part, (0, 0, 0, width - len(part))) for part in parts])
    mask = torch.arange(width, device=padded.device)[None] < torch.tensor(
        [[len(p)] for p in parts], device=padded.device
    )
    return padded, mask
