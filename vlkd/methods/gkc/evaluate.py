"""Scores of a segmentation student: the same prediction, labelled with each vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from vlkd.metrics import confusion_matrix, miou
from vlkd.models.clip import CLIPTower
from vlkd.models.postprocess import semantic_labels
from vlkd.models.segmentor import Prediction, Segmentor
from vlkd.text import ClassVectors


class Evaluation:
    """Confusion matrices (K,K) under the class names and, where there are any, under held-out synonyms."""

    def __init__(self, vectors: ClassVectors, data: Any, encode: Callable[[list[str]], ClassVectors]) -> None:
        self.seen = [k for k in range(len(vectors.names)) if k not in data.novel]
        self.unseen = sorted(data.novel)
        self.void = data.void
        self.vocabularies = {"": vectors.vectors}
        if hasattr(data, "held_out_synonym"):
            words = [data.held_out_synonym(name) for name in vectors.names]
            self.vocabularies["_synonyms"] = encode(words).vectors
        self.reset()

    def reset(self) -> None:
        """Start counting anew."""
        size = len(self.seen) + len(self.unseen)
        self.counts = {name: torch.zeros(size, size, dtype=torch.int64) for name in self.vocabularies}

    def update(self, student: Segmentor, prediction: Prediction, batch: dict[str, Any]) -> list[Tensor]:
        """Count the pixels of a batch; the label maps (H,W) of its images under the class names."""
        named = []
        for name, vectors in self.vocabularies.items():
            logits = student.class_logits(prediction.embeddings, vectors.to(prediction.embeddings.device))
            for image, (height, width) in enumerate(batch["sizes"].tolist()):
                # Mask logits lie at stride 4 of the padded image; labels beyond the image are cut off.
                full = (-(-height // 4) * 4, -(-width // 4) * 4)
                masks = prediction.mask_logits[image, :, : full[0] // 4, : full[1] // 4]
                labels = semantic_labels(logits[image], masks, full)[:height, :width]
                truth = batch["semantic"][image, :height, :width]
                self.counts[name] += confusion_matrix(truth, labels, len(vectors), self.void).cpu()
                if not name:
                    named.append(labels)
        return named

    def scores(self, add_up: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """mIoU, mIoU_seen, mIoU_unseen for each vocabulary; add_up sums counts over processes."""
        found: dict[str, float] = {}
        for name, counts in self.counts.items():
            matrix = add_up(counts).cpu()
            found[f"mIoU{name}"] = float(miou(matrix))
            if self.unseen:
                found[f"mIoU_seen{name}"] = float(miou(matrix, self.seen))
                found[f"mIoU_unseen{name}"] = float(miou(matrix, self.unseen))
        return found


class LabelledRegions(Protocol):
    """What a data module's val_regions() gives (vlkd.data.regions.Regions)."""

    def labelled(self, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]: ...


def region_accuracy(
    teacher: CLIPTower, vectors: Tensor, regions: LabelledRegions, limit: int = 2000
) -> dict[str, float]:
    """{"accuracy"} of naming masked regions by the nearest of the class vectors (K,D); empty without regions.

    limit: how many regions, the first ones; enough to tell a wrong teacher in seconds on a CPU.
    """
    device = next(teacher.parameters()).device
    right = total = 0
    for crops, labels in regions.labelled(teacher.spec.size):
        if len(crops):
            embeddings = teacher.encode_image(crops.to(device).float() / 255)
            right += int(((embeddings @ vectors.to(device).T).argmax(1).cpu() == labels).sum())
            total += len(labels)
        if total >= limit:
            break
    return {"accuracy": right / total} if total else {}
