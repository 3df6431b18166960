"""Scores of any CLIP model: zero-shot classification by class vectors, and image-text retrieval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlkd.metrics import accuracy, class_hits, retrieval_recall
from vlkd.metrics.classification import IGNORED
from vlkd.models.clip import CLIPTower
from vlkd.text import ClassVectors

RANKS = (1, 5, 10)


class ZeroShot:
    """Counts (K,2) int64 of images that the nearest of K class vectors names, by true class."""

    def __init__(self, tower: CLIPTower, names: Sequence[str], templates: str | Sequence[str]) -> None:
        tower.refresh_identity()
        self.tower = tower
        self.vectors = ClassVectors.build(names, tower, templates).vectors.to(_device(tower))
        self.counts = torch.zeros(len(names), 2, dtype=torch.int64)

    def update(self, images: Tensor, labels: Tensor, repeated: Tensor | None = None) -> None:
        """Counts images (B,3,H,W) in [0,1] with labels (B,); those `repeated` (B,) bool do not count."""
        logits = self.tower.encode_image(images) @ self.vectors.T
        if repeated is not None:
            labels = labels.masked_fill(repeated.to(labels.device), IGNORED)
        self.counts += class_hits(logits.float(), labels, len(self.counts), topk=(1,)).cpu()


@torch.no_grad()
def zero_shot_scores(
    tower: CLIPTower,
    loader: Iterable[dict[str, Any]],
    names: Sequence[str],
    templates: str | Sequence[str] = "bare",
) -> dict[str, float]:
    """{"accuracy"} as a fraction, of batches {"images" (B,3,H,W) in [0,1], "labels" (B,)} and names (K,).

    templates: a set's name (vlkd.text.templates), one template, or several, averaged as in CLIP. Labels of -1
    do not count. Raises UserError for doubtful names or templates.
    """
    scorer, device = ZeroShot(tower, names, templates), _device(tower)
    for batch in loader:
        if len(batch["images"]):
            scorer.update(batch["images"].to(device), batch["labels"].to(device))
    return {"accuracy": accuracy(scorer.counts)}


@torch.no_grad()
def retrieval_scores(
    tower: CLIPTower, pairs: Iterable[dict[str, Any]], ks: Sequence[int] = RANKS
) -> dict[str, float]:
    """Recall of retrieval_recall, of batches {"images" (B,3,H,W) in [0,1], "captions": B lists of strings}.

    Adds {"images", "captions"}: the size of the gallery. Empty without pairs.
    """
    device = _device(tower)
    images: list[Tensor] = []
    texts: list[Tensor] = []
    owners: list[int] = []
    count = 0
    for batch in pairs:
        images.append(tower.encode_image(batch["images"].to(device)))
        texts.append(tower.encode_text([text for own in batch["captions"] for text in own]))
        owners += [count + place for place, own in enumerate(batch["captions"]) for _ in own]
        count += len(batch["captions"])
    if not count:
        return {}
    found = retrieval_recall(torch.cat(images), torch.cat(texts), torch.tensor(owners), ks)
    return {**found, "images": float(count), "captions": float(len(owners))}


def _device(tower: CLIPTower) -> torch.device:
    return next(tower.parameters()).device
