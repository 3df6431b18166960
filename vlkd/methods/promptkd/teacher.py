"""Stage 1: prompts of a large CLIP learned from few labelled images, held near the CLIP they belong to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from vlkd.cache import cache_folder, cache_key, store
from vlkd.engine.bundle import read_card
from vlkd.errors import UserError
from vlkd.losses import kd
from vlkd.methods.base import Distiller, Optimizer
from vlkd.methods.promptkd.base import Choose, PromptDistiller, check_names
from vlkd.models.clip import CLIPTower, build_clip
from vlkd.models.open_classifier import class_logits
from vlkd.models.prompt import PromptedTower
from vlkd.models.prompted import PromptSize, build_prompted, prompt_card
from vlkd.text import ClassVectors
from vlkd.text.templates import templates

_TEXTS = 512  # prompts that are encoded and held at once


@dataclass(frozen=True)
class Averaging:
    """Weight of each epoch's prompts in the final ones: a Gaussian over the epochs, counted from 1.

    mean, std: in epochs; the weights are normalised over the run.
    """

    mean: float = 15.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise UserError(f"model.averaging.std={self.std}: expected epochs above 0, or averaging: null")

    def weight(self, epoch: int, epochs: int) -> float:
        """Of `epoch` (from 1) among `epochs`."""
        exponents = [-0.5 * ((e - self.mean) / self.std) ** 2 for e in range(1, epochs + 1)]
        density = [math.exp(exponent - max(exponents)) for exponent in exponents]
        return density[epoch - 1] / sum(density)


class PromptTeacher(PromptDistiller):
    """Few-shot prompt learning with self-regularisation (PromptSRC, as PromptKD's stage 1 uses it).

    Only base classes are learned where the data has novel ones: labels of novel images are refused.

    Args:
        clip: the CLIP model (see vlkd.models.clip.build_clip).
        pretrained: tag or file, with an open_clip architecture.
        visual: prompts of its image tower; null for towers that take none.
        text: prompts of its text tower; null for none.
        words: what the text prompts start from; as many tokens as `text.length`. null: random.
        template_set: prompts whose mean the text vectors are held near.
        weights: factors of ce, text (L1 to the CLIP's own text vectors), image (the same of images) and
        logits (KL to the CLIP's own answers).
        averaging: of the prompts over the epochs; null to keep the last.
        lr: see PromptDistiller.
        weight_decay: see PromptDistiller.
        warmup_epochs: see PromptDistiller.
        warmup_lr: see PromptDistiller.
        optimizer: see PromptDistiller.
        choose: see PromptDistiller; held_out takes no averaging.
    """

    def __init__(
        self,
        clip: str = "clip-world-m",
        pretrained: str | None = None,
        visual: PromptSize | None = PromptSize(),  # noqa: B008 (frozen)
        text: PromptSize | None = PromptSize(),  # noqa: B008
        words: str | None = "a photo of a",
        template_set: str = "imagenet",
        weights: dict[str, float] | None = None,
        averaging: Averaging | None = Averaging(),
        lr: float = 0.005,
        weight_decay: float = 5e-4,
        warmup_epochs: int = 1,
        warmup_lr: float = 1e-5,
        optimizer: Optimizer = "sgd",
        choose: Choose = "last",
    ) -> None:
        defaults = {"ce": 1.0, "logits": 1.0}
        defaults |= {"text": 25.0} if text else {}
        defaults |= {"image": 10.0} if visual else {}
        weights = defaults if weights is None else weights
        check_names(weights, defaults, "no such loss with these prompts")
        super().__init__(weights, lr, weight_decay, 1.0, warmup_epochs, warmup_lr, optimizer, choose)
        if averaging and choose != "last":
            raise UserError("model.averaging and model.choose=held_out: both decide; set averaging to null")
        self.source = clip, pretrained
        model = build_prompted(build_clip(clip, pretrained), visual, text, words)
        # Not a submodule: the frozen tower is no part of the checkpoint.
        object.__setattr__(self, "model", model)
        self.hold("clip", model.tower)
        self.prompts = model.prompts
        self.templates, self.averaging = templates(template_set), averaging
        self._average: dict[str, Tensor] = {}

    model: PromptedTower

    # --- data ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """As in the base; encode what the text vectors are held near. Raises UserError for novel labels."""
        super().setup(stage)
        if stage != "fit":
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        base = [k for k in range(len(self.names)) if k not in self.novel]
        seen = sorted({int(k) for k in data.train_labels.unique()})
        wrong = [k for k in seen if k not in base]
        if wrong:
            name = self.names[wrong[0]] if wrong[0] >= 0 else "no class"
            raise UserError(
                f"data: training images of {name!r}, which is no base class; stage 1 needs labels of base "
                "classes: set data.classes=base"
            )
        several = next((name for name in self.names if "|" in name and "text" in self.prompts), None)
        if several:
            raise UserError(
                f"data: class {several!r} has several words; learned prompts take one, name it so"
            )
        self.base_names = [self.names[k] for k in base]
        columns = torch.full((len(self.names),), -1)
        columns[base] = torch.arange(len(base))
        self.register_buffer("_columns", columns, persistent=False)
        self.held("clip").to(self.trainer.strategy.root_device)
        self.register_buffer("_anchors", self._fixed_vectors(self.base_names), persistent=False)

    def _fixed_vectors(self, names: list[str]) -> Tensor:
        """(K,D) unit: what text prompts are held near; without them the class vectors that stage 2 takes."""
        if "text" in self.prompts:
            return mean_text_vectors(names, self.held("clip"), self.templates)
        return ClassVectors.build(names, self.held("clip"), self.templates, cache=True).vectors

    # --- losses --------------------------------------------------------------------------------------------

    def compute_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """ce, text, image, logits: those that have a weight. Source: PromptSRC as in PromptKD@ec244f7."""
        clip: CLIPTower = self.held("clip")
        images, labels = batch["images"], self._columns[batch["labels"]]  # type: ignore[index]
        with torch.no_grad():
            own_image = clip.encode_image(images)
            own_logits = class_logits(own_image, self._anchors, clip.logit_scale)  # type: ignore[arg-type]
        image = self.model.encode_image(images) if "visual" in self.prompts else own_image
        text: Any = self.model.encode_text(self.base_names) if "text" in self.prompts else self._anchors
        logits = class_logits(image, text, clip.logit_scale)
        losses = {
            "ce": F.cross_entropy(logits, labels),
            "text": (text - self._anchors).abs().mean(),
            "image": (image - own_image).abs().mean(),
            "logits": kd(logits, own_logits, temperature=1.0, reduction="mean"),
        }
        return {name: losses[name] for name in self.weights}

    def describe(self, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """The CLIP model, its prompts, the classes that are learned."""
        clip: CLIPTower = self.held("clip")
        size = "x".join(map(str, clip.spec.size))
        prompts = {key: f"{x.depth} layers x {x.length}" for key, x in self.prompts.items()}
        return [
            {
                "part": "clip",
                "input": size,
                "width": clip.spec.width,
                "classes": len(self.base_names),
                **prompts,
            }
        ]

    # --- after an epoch ------------------------------------------------------------------------------------

    def learned(self) -> dict[str, Tensor]:
        """The prompts."""
        return dict(self.prompts.named_parameters())

    def on_train_epoch_end(self) -> None:
        """Add this epoch's prompts to the average; after the last epoch they are the average."""
        super().on_train_epoch_end()
        if self.averaging is None:
            return
        epochs = self.trainer.max_epochs or 1
        weight = self.averaging.weight(self.current_epoch + 1, epochs)
        for name, value in self.learned().items():
            before = self._average.get(name, torch.zeros(()))
            self._average[name] = before + weight * value.detach().cpu().double()
        if self.current_epoch + 1 == epochs:
            self.take(self._average)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Best epoch and average travel along."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["average"] = dict(self._average)
        checkpoint["epochs"] = self.trainer.max_epochs

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Inverse of on_save_checkpoint."""
        super().on_load_checkpoint(checkpoint)
        self._average = checkpoint.get("average", {})
        before = checkpoint.get("epochs")
        if self._average and before != self.trainer.max_epochs:
            raise UserError(
                f"trainer.max_epochs={self.trainer.max_epochs}: the average of the prompts was begun over "
                f"{before} epochs; resume with {before}, or begin a new run"
            )

    # --- scores and bundle ---------------------------------------------------------------------------------

    @torch.no_grad()
    def before_scoring(self) -> None:
        """Encode all names, novel ones too, with the present prompts."""
        names, learned = list(self.names), "text" in self.prompts
        found = self.model.encode_text(names) if learned else self._fixed_vectors(names)
        self._vectors = found.to(self.device)

    def logits(self, images01: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] -> logits (B,K)."""
        return class_logits(self.model.encode_image(images01), self._vectors, self.model.logit_scale)

    @property
    def protocol(self) -> dict[str, Any]:
        """As in the base; labels and averaging."""
        if self.recorded_protocol:
            return self.recorded_protocol
        found = {**super().protocol, "labels": "used in training"}
        if self.averaging:
            found["checkpoint"] = (
                f"Gaussian average over the epochs, {self.averaging.mean} ± {self.averaging.std}"
            )
        return found

    def bundle(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The prompts, and which CLIP model they belong to."""
        card = {**prompt_card(self.model, *self.source), "class_names": list(self.names)}
        card["templates"] = list(self.templates)
        return card, {f"prompts.{name}": x for name, x in self.model.prompt_tensors().items()}

    @classmethod
    def from_bundle(cls, path: str | Path) -> Distiller:
        """The CLIP model with the bundle's prompts, ready to be scored."""
        method: Any = super().from_bundle(path)
        method.recorded_protocol = read_card(path).get("protocol")
        return method


def mean_text_vectors(names: Sequence[str], clip: CLIPTower, prompts: Sequence[str]) -> Tensor:
    """(K,D) unit: the mean over templates of what the text half gives, made unit at the end only; stored.

    ClassVectors takes the mean of unit vectors. Source: PromptSRC as in zhengli97/PromptKD@ec244f7.
    """
    key = cache_key(
        kind="mean of raw text vectors", encoder=clip.identity, names=list(names), templates=list(prompts)
    )
    path = cache_folder() / "class_vectors" / f"{key}.safetensors"
    if not path.is_file():
        texts = [prompt.replace("{}", name.replace("_", " ")) for name in names for prompt in prompts]
        step = max(1, _TEXTS // len(prompts)) * len(prompts)
        with torch.no_grad():
            parts = [
                clip.embed_text(texts[k : k + step]).unflatten(0, (-1, len(prompts))).mean(1).cpu()
                for k in range(0, len(texts), step)
            ]
        store(path, {"vectors": F.normalize(torch.cat(parts), dim=-1)}, {})
    with safe_open(path, framework="pt") as stored:
        return stored.get_tensor("vectors")
