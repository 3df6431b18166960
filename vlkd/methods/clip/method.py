"""CLIP: two towers trained to match captioned images; the project's embedded teacher is made this way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses.contrastive import clip_loss
from vlkd.methods.base import Distiller, Schedule
from vlkd.models.clip import CLIPTower, build_clip
from vlkd.text import ClassVectors, templates

_MAX_SCALE = 100.0


class CLIP(Distiller):
    """Symmetric contrastive training of an open_clip architecture.

    Args:
        architecture: open_clip name, or one of the packaged tiny configs.
        pretrained: tag or file to start from.
        text_from: CLIP model whose text half is copied and locked (as in LiT), so that both share a space.
        template_set: prompt templates of the zero-shot evaluation.
        weights: factor of the loss `contrastive`.
        lr: see Distiller.
        weight_decay: see Distiller.
        warmup_steps: see Distiller.
        schedule: see Distiller.
    """

    tower: CLIPTower
    model: Any

    def __init__(
        self,
        architecture: str = "vlkd-clip-m",
        pretrained: str | None = None,
        text_from: str | None = None,
        template_set: str = "bare",
        weights: dict[str, float] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup_steps: int = 100,
        schedule: Schedule = "cosine",
    ) -> None:
        super().__init__(weights or {"contrastive": 1.0}, lr, weight_decay, warmup_steps, schedule=schedule)
        tower = build_clip(architecture, pretrained)
        # Only its network is a submodule: registered twice, every weight would be saved twice.
        object.__setattr__(self, "tower", tower)
        self.model = tower.model.train()
        self.locked_text = text_from is not None
        if text_from is not None:
            self._lock_text(text_from)
        self.template_set = template_set

    def _lock_text(self, source: str) -> None:
        tensors = build_clip(source).text_tensors()
        own = self.tower.text_tensors()
        wrong = [k for k in own if k not in tensors or tensors[k].shape != own[k].shape]
        if wrong:
            raise UserError(
                f"text_from={source}: its text half does not fit {self.tower.name} (tensor {wrong[0]})"
            )
        self.model.load_state_dict(tensors, strict=False)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith("visual.") or name == "logit_scale")

    def compute_losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Contrastive loss over the batch of all processes."""
        texts: list[str] = batch["captions"]
        known = {text: k for k, text in enumerate(dict.fromkeys(texts))}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.locked_text):
            unique = self.tower.encode_text(list(known))
        which = torch.tensor([known[text] for text in texts], device=unique.device)
        image, text = self.tower.encode_image(batch["images"]), unique[which]
        same = which[:, None] == which[None]
        if self.trainer.world_size > 1:
            image, text = self._of_all_processes(image), self._of_all_processes(text)
            same = (text @ text.T) > 1 - 1e-6
        return {"contrastive": clip_loss(image, text, self.model.logit_scale.exp(), same)}

    def describe(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Inputs and width of the two halves."""
        spec, ids = self.tower.spec, self.tower.tokenizer(batch["captions"][:1])
        given, own = ("x".join(map(str, size)) for size in (batch["images"].shape[-2:], spec.size))
        return [
            {"part": "image", "given": given, "input": own, "width": spec.width},
            {"part": "text", "input": f"{ids.shape[1]} tokens", "width": spec.width},
        ]

    def _of_all_processes(self, vectors: Tensor) -> Tensor:
        """(B,D) of each of W processes -> (W B,D), with gradients."""
        gathered: Any = self.all_gather(vectors, sync_grads=True)
        return gathered.flatten(0, 1)

    def on_train_batch_end(self, *args: Any) -> None:
        """Keep the logit scale where CLIP keeps it: at most 100."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=float(torch.tensor(_MAX_SCALE).log()))

    def on_validation_epoch_start(self) -> None:
        """Encode the vocabulary once."""
        names = self.trainer.datamodule.names  # type: ignore[attr-defined]
        self.tower.refresh_identity()
        prompts = templates(self.template_set)
        self._vectors = ClassVectors.build(names, self.tower, prompts).vectors.to(self.device)
        self._counts = torch.zeros(2, dtype=torch.int64)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Zero-shot classification of images by the nearest class vector."""
        predicted = (self.tower.encode_image(batch["images"]) @ self._vectors.T).argmax(1)
        right = (predicted == batch["labels"]).cpu()[~self.repeated(batch_idx, len(predicted))]
        self._counts += torch.tensor([int(right.sum()), len(right)])

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy over the images of all processes."""
        right, total = self.sum_over_processes(self._counts)
        self.log_scores({"accuracy": right / total})

    def bundle(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Both towers."""
        card = {
            "kind": "clip",
            "architecture": self.tower.architecture,
            "input_spec": self.tower.spec.to_dict(),
        }
        return card, {f"model.{k}": v for k, v in self.model.state_dict().items()}
