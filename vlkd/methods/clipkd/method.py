"""CLIPKD: feature mimicry, interactive contrast and affinity mimicry between two CLIP models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.engine.bundle import read_card
from vlkd.engine.hub import resolve
from vlkd.errors import UserError
from vlkd.losses import affinity_mimicry, clip_loss, feature_mimicry, interactive_contrastive
from vlkd.methods.base import Schedule, recorded
from vlkd.methods.clip.training import CLIPTraining, tower_rows
from vlkd.models.clip import build_clip
from vlkd.models.inherit import inherit_weights

LOSSES = ("contrastive", "feature", "interactive", "affinity")
# As released for a width of 512: 2000 times a mean over the width is 3.9 times a sum.
_WEIGHTS = {"contrastive": 1.0, "feature": 4.0, "interactive": 1.0, "affinity": 1.0}


class CLIPKD(CLIPTraining):
    """Distillation of a CLIP model into a smaller one on captioned images.

    Student and teacher may differ in size, normalisation, tokenizer and width.

    Args:
        teacher: zoo name, bundle or open_clip name (see vlkd.models.clip.build_clip).
        teacher_pretrained: tag or file of its weights, with an open_clip name.
        student: architecture; a zoo name or bundle starts from its weights.
        student_pretrained: tag or file to start from, with an open_clip name.
        inherit: halves that start from the teacher's weights where shapes allow: visual, text.
        text_from: CLIP model whose text half is copied and locked.
        template_set: prompt templates of the zero-shot evaluation: a set's name, or a list of templates.
        weights: factors of contrastive, feature, interactive, affinity; only the named are computed.
        lr: see Distiller.
        weight_decay: see Distiller.
        warmup_steps: see Distiller.
        schedule: see Distiller.
    """

    def __init__(
        self,
        teacher: str = "clip-world-m",
        teacher_pretrained: str | None = None,
        student: str = "vlkd-clip-s",
        student_pretrained: str | None = None,
        inherit: list[str] | None = None,
        text_from: str | None = None,
        template_set: str | list[str] = "bare",
        weights: dict[str, float] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup_steps: int = 100,
        schedule: Schedule = "cosine",
    ) -> None:
        weights = weights or dict(_WEIGHTS)
        for name in weights:
            if name not in LOSSES:
                raise UserError(f"model.weights.{name}: no such loss; CLIPKD has {', '.join(LOSSES)}")
        tower, source = build_clip(student, student_pretrained), build_clip(teacher, teacher_pretrained)
        inherited = inherit_weights(tower, source, inherit or ())
        super().__init__(
            tower,
            text_from,
            template_set,
            weights,
            lr=lr,
            weight_decay=weight_decay,
            warmup_steps=warmup_steps,
            schedule=schedule,
        )
        self.hold("teacher", source)
        self.teacher_name = teacher
        self.inherited = inherited
        self._build_projectors(tower.spec.width, source.spec.width)
        if set(weights) == {"feature"}:
            # Nothing else trains the scale, and the student's cosines become the teacher's.
            self.model.logit_scale.requires_grad_(False).fill_(source.model.logit_scale)

    def _build_projectors(self, width: int, teacher_width: int) -> None:
        compared = {"feature", "interactive"} & set(self.weights)
        if compared and width != teacher_width:
            self.image_projector = nn.Linear(width, teacher_width)
            self.text_projector = nn.Linear(width, teacher_width)

    @property
    def protocol(self) -> dict[str, Any]:
        """As CLIP's, and the teacher."""
        return {**super().protocol, "teacher": self.teacher_name}

    def compute_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The named losses over the batch of all processes."""
        pair = self.encode_pairs(self.tower, batch, self.locked_text)
        image, text = (self.of_all_processes(vectors) for vectors in pair)
        same = self.same_captions(batch["captions"])
        scale = self.model.logit_scale.exp()
        losses: dict[str, Tensor] = {}
        if "contrastive" in self.weights:
            losses["contrastive"] = clip_loss(image, text, scale, same)
        if set(self.weights) == {"contrastive"}:
            return losses
        with torch.no_grad():
            of_teacher = self.encode_pairs(self.held("teacher"), batch, frozen_text=True)
            t_image, t_text = (self.of_all_processes(vectors, gradient=False) for vectors in of_teacher)
        if "affinity" in self.weights:
            teacher_scale = self.held("teacher").logit_scale
            losses["affinity"] = affinity_mimicry(image, text, t_image, t_text, scale, teacher_scale)
        if "feature" in self.weights or "interactive" in self.weights:
            image, text = self._projected(image, text)
        if "feature" in self.weights:
            losses["feature"] = feature_mimicry(image, t_image) + feature_mimicry(text, t_text)
        if "interactive" in self.weights:
            losses["interactive"] = interactive_contrastive(image, text, t_image, t_text, scale, same)
        return losses

    def _projected(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Student's vectors as unit vectors of the teacher's width."""
        if not hasattr(self, "image_projector"):
            return image, text
        projected = self.image_projector(image), self.text_projector(text)
        return F.normalize(projected[0].float(), dim=1), F.normalize(projected[1].float(), dim=1)

    def teacher_record(self) -> dict[str, Any] | None:
        """The card of a teacher that is a bundle; of others the name alone."""
        try:
            return recorded(read_card(resolve(self.teacher_name)))
        except UserError:
            return {"name": self.teacher_name}

    def score_teacher(self, loader: Iterable[Any]) -> dict[str, float]:
        """The scores of validation, for the teacher."""
        return self.score_tower(self.held("teacher"), loader)

    def describe(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Inputs and widths of both towers, and what the student inherited."""
        rows = tower_rows(self.tower, batch, "student ") + tower_rows(self.held("teacher"), batch, "teacher ")
        for part, report in self.inherited.items():
            counts = {"copied": report.copied, "sliced": report.sliced, "kept": report.kept}
            rows.append({"part": f"inherited {part}", **counts})
        return rows
