"""What all training of a CLIP model shares: encoding a batch of captions once, scores, the bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vlkd.errors import UserError
from vlkd.methods.base import Distiller
from vlkd.methods.clip.evaluate import ZeroShot, retrieval_scores
from vlkd.metrics import accuracy
from vlkd.models.clip import CLIPTower, build_clip
from vlkd.text import templates

_MAX_SCALE = 100.0


class CLIPTraining(Distiller):
    """Base of methods whose student is a whole CLIP model; a subclass gives `compute_losses`.

    `model` is the student's network and its only trained part here; `tower` encodes with it.
    """

    tower: CLIPTower
    model: Any

    def __init__(
        self,
        tower: CLIPTower,
        text_from: str | None,
        template_set: str | list[str],
        weights: dict[str, float],
        **optimiser: Any,
    ) -> None:
        super().__init__(weights, **optimiser)
        # Only its network is a submodule: registered twice, every weight would be saved twice.
        object.__setattr__(self, "tower", tower)
        self.model = tower.model.train()
        if getattr(self.model, "logit_bias", None) is not None:
            self.model.logit_bias.requires_grad_(False)  # a softmax does not see it
        self.locked_text = text_from is not None
        if text_from is not None:
            self._lock_text(text_from)
        if isinstance(template_set, str) and "{}" not in template_set:
            templates(template_set)
        self.template_set = template_set
        self._zero_shot: ZeroShot | None = None
        self._gallery = ""

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

    # --- encoding ------------------------------------------------------------------------------------------

    def encode_pairs(
        self, tower: CLIPTower, batch: dict[str, Any], frozen_text: bool
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors (B,D) of the images and of the captions; equal captions are encoded once."""
        texts: list[str] = batch["captions"]
        known = {text: k for k, text in enumerate(dict.fromkeys(texts))}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen_text):
            unique = tower.encode_text(list(known))
        which = torch.tensor([known[text] for text in texts], device=unique.device)
        return tower.encode_image(batch["images"]), unique[which]

    def of_all_processes(self, vectors: Tensor, gradient: bool = True) -> Tensor:
        """(B,...) of each of W processes -> (W B,...), with gradients; as it is on one process."""
        if self.trainer.world_size == 1:
            return vectors
        gathered: Any = self.all_gather(vectors, sync_grads=gradient)
        return gathered.flatten(0, 1)

    def same_captions(self, texts: list[str]) -> Tensor:
        """(W B,W B) bool: which captions of all W processes are the same string."""
        # Not by their vectors: in half precision those of one caption differ from process to process.
        keys = self.of_all_processes(self.caption_keys(texts), gradient=False)
        return keys[:, None] == keys[None]

    def caption_keys(self, texts: list[str]) -> Tensor:
        """(B,) int64, equal for equal strings on every process."""
        digests = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
        return torch.tensor([int.from_bytes(d, "big", signed=True) for d in digests], device=self.device)

    def describe(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        """Inputs and width of the two halves."""
        return tower_rows(self.tower, batch)

    def on_train_batch_end(self, *args: Any) -> None:
        """Keep the logit scale where CLIP keeps it: at most 100."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=float(torch.tensor(_MAX_SCALE).log()))

    # --- scores --------------------------------------------------------------------------------------------

    @property
    def protocol(self) -> dict[str, Any]:
        """Templates, and the gallery of retrieval once it was scored."""
        gallery = {"retrieval gallery": self._gallery} if self._gallery else {}
        return {**super().protocol, "templates": self.template_set, **gallery}

    def score_tower(self, tower: CLIPTower, loader: Iterable[Any]) -> dict[str, float]:
        """The scores of validation for another tower, on labelled batches of all processes and on pairs."""
        names = self.trainer.datamodule.names  # type: ignore[attr-defined]
        if not names:
            return self._recall(tower)
        scorer = ZeroShot(tower, names, self.template_set)
        for number, batch in enumerate(loader):
            images, labels = batch["images"].to(self.device), batch["labels"].to(self.device)
            scorer.update(
                images, labels, self.repeated(number, len(labels), getattr(loader, "loader", loader))
            )
        return {"accuracy": accuracy(self.sum_over_processes(scorer.counts))} | self._recall(tower)

    def on_validation_epoch_start(self) -> None:
        """Encode the vocabulary once."""
        names = self.trainer.datamodule.names  # type: ignore[attr-defined]
        self._zero_shot = ZeroShot(self.tower, names, self.template_set) if names else None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Zero-shot classification of images by the nearest class vector."""
        if self._zero_shot is not None:
            repeated = self.repeated(batch_idx, len(batch["images"]))
            self._zero_shot.update(batch["images"], batch["labels"], repeated)

    def on_validation_epoch_end(self) -> None:
        """Log the accuracy over the images of all processes, and retrieval where there are pairs."""
        scores: dict[str, float] = {}
        if self._zero_shot is not None:
            scores["accuracy"] = accuracy(self.sum_over_processes(self._zero_shot.counts))
        self.log_scores(scores | self._recall(self.tower))

    def _recall(self, tower: CLIPTower) -> dict[str, float]:
        # Every process scores all pairs: a rank in the gallery needs all of it.
        pairs = getattr(self.trainer.datamodule, "pair_batches", None)  # type: ignore[attr-defined]
        found = retrieval_scores(tower, pairs()) if pairs is not None else {}
        if found:
            self._gallery = f"{found.pop('images'):.0f} images, {found.pop('captions'):.0f} captions"
        return found

    def bundle(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Both towers."""
        card = {
            "kind": "clip",
            "architecture": self.tower.architecture,
            "input_spec": self.tower.spec.to_dict(),
        }
        return card, {f"model.{k}": v for k, v in self.model.state_dict().items()}


def tower_rows(tower: CLIPTower, batch: dict[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    """Inputs and width of a tower's two halves, for the dry run."""
    spec, ids = tower.spec, tower.tokenizer(batch["captions"][:1])
    given, own = ("x".join(map(str, size)) for size in (batch["images"].shape[-2:], spec.size))
    return [
        {"part": f"{prefix}image", "given": given, "input": own, "width": spec.width},
        {"part": f"{prefix}text", "input": f"{ids.shape[1]} tokens", "width": spec.width},
    ]
