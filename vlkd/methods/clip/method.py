"""CLIP: two towers trained to match captioned images; the project's embedded teacher is made this way."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlkd.losses.contrastive import clip_loss
from vlkd.methods.base import Schedule
from vlkd.methods.clip.training import CLIPTraining
from vlkd.models.clip import build_clip


class CLIP(CLIPTraining):
    """Symmetric contrastive training of an open_clip architecture.

    Args:
        architecture: open_clip name, or one of the packaged tiny configs.
        pretrained: tag or file to start from.
        text_from: CLIP model whose text half is copied and locked (as in LiT), so that both share a space.
        template_set: prompt templates of the zero-shot evaluation: a set's name, or a list of templates.
        weights: factor of the loss `contrastive`.
        lr: see Distiller.
        weight_decay: see Distiller.
        warmup_steps: see Distiller.
        schedule: see Distiller.
    """

    def __init__(
        self,
        architecture: str = "vlkd-clip-m",
        pretrained: str | None = None,
        text_from: str | None = None,
        template_set: str | list[str] = "bare",
        weights: dict[str, float] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup_steps: int = 100,
        schedule: Schedule = "cosine",
    ) -> None:
        super().__init__(
            build_clip(architecture, pretrained),
            text_from,
            template_set,
            weights or {"contrastive": 1.0},
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            schedule=schedule,
        )

    def compute_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Contrastive loss over the batch of all processes."""
        image, text = self.encode_pairs(self.tower, batch, self.locked_text)
        image, text = self.of_all_processes(image), self.of_all_processes(text)
        same = self.same_captions(batch["captions"])
        return {"contrastive": clip_loss(image, text, self.model.logit_scale.exp(), same)}
