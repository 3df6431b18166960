"""Stage 1: a BERT and a video tower learn which texts and videos belong together, and hidden words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.engine.bundle import load_bundle
from vlkd.errors import UserError
from vlkd.losses import hinge_all, hinge_half, infonce
from vlkd.losses.precision import full
from vlkd.methods.base import Distiller, Schedule
from vlkd.methods.vidlankd.base import Compat, LanguageDistiller, check_weights
from vlkd.methods.vidlankd.retrieval import Pairs, retrieval_scores
from vlkd.models.language import LanguageModel, language_model_of
from vlkd.models.video_text import VideoSize, VideoTower, video_tower_of
from vlkd.models.weights import fit_weights

Contrast = Literal["hinge_half", "hinge_all", "infonce"]
LOSSES = ("mlm", "contrast")


class VideoTextTeacher(LanguageDistiller):
    """A language model that learns beside a video tower: hidden words, and each token against the videos.

    Args:
        language: see LanguageDistiller.
        dropout: see LanguageDistiller.
        video: the video tower.
        contrast: hinge_half (one wrong video for each text), hinge_all or infonce (the whole batch); null:
        infonce, with compat repo hinge_half.
        margin: of the hinges.
        temperature: of infonce.
        compat: repo: the video tower keeps its random weights and in training its dropout, valid frames are
        those whose last feature is not 0, pooling is of the first frame, positions are added twice.
        weights: factors of mlm and contrast; only the named are computed.
        lr: see Distiller.
        weight_decay: see Distiller.
        warmup_steps: see Distiller.
        schedule: see Distiller.
    """

    def __init__(
        self,
        language: str | LanguageModel = "small",
        dropout: float | None = None,
        video: VideoSize = VideoSize(),  # noqa: B008 (frozen)
        contrast: Contrast | None = None,
        margin: float = 1.0,
        temperature: float = 0.1,
        compat: Compat = "clean",
        weights: dict[str, float] | None = None,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        warmup_steps: int = 0,
        schedule: Schedule = "cosine",
    ) -> None:
        weights = dict.fromkeys(LOSSES, 1.0) if weights is None else weights
        check_weights(weights, LOSSES)
        optimiser = {"lr": lr, "weight_decay": weight_decay, "warmup_steps": warmup_steps}
        super().__init__(language, dropout, compat, weights, **optimiser, schedule=schedule)
        self.contrast = contrast or ("hinge_half" if compat == "repo" else "infonce")
        if compat == "repo" and self.contrast != "hinge_half":
            raise UserError(f"model.contrast={contrast}: the release has hinge_half alone; set compat: clean")
        if temperature <= 0:
            raise UserError(f"model.temperature={temperature}: expected a number above 0")
        self.margin, self.temperature = margin, temperature
        self.video_size = replace(video, pool="first", embed_twice=True) if compat == "repo" else video
        self.video: VideoTower | None = None
        self._pairs: list[Pairs] = []

    # --- data ----------------------------------------------------------------------------------------------

    def build_parts(self, data: Any, stage: str) -> None:
        """The video tower, as wide as the text tower. Raises UserError for data without video."""
        if "contrast" not in self.weights:
            return
        width = getattr(data, "video_width", None)
        if width is None:
            raise UserError(
                f"{type(data).__name__}: has no video_width; stage 1 takes videos with their texts, or "
                "weights: {mlm: 1.0}"
            )
        if self.video is None:
            self.video = VideoTower(int(width), self.language.model.config, self.video_size)
            self.video.requires_grad_(self.compat != "repo")
            self.video.bert.embeddings.word_embeddings.weight.requires_grad_(False)
        if self.video.features != width:
            raise UserError(
                f"data: features of {width} numbers, the video tower takes {self.video.features}; give the "
                "features that it was trained with"
            )

    def load_parts(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """The video tower of a bundle."""
        if self.video is not None:
            state = {k.removeprefix("video."): x for k, x in tensors.items() if k.startswith("video.")}
            fit_weights(self.video, state, source)

    # --- losses --------------------------------------------------------------------------------------------

    def compute_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """mlm and contrast, those that have a weight, from one pass over the masked ids.

        Source: VidLanKD (arXiv 2107.02681), section 3; zinengtang/VidLanKD@46bae35, `vteacher/model.py`.
        """
        ids, hidden = self.hide(batch)
        states = self.language(ids, batch["attention_mask"])
        losses = {}
        if "mlm" in self.weights:
            losses["mlm"] = self.word_loss(states, batch, hidden)
        if "contrast" in self.weights:
            pairs = self.pairs(states, batch)
            losses["contrast"] = self.contrast_loss(
                *(self.of_all_processes(x) for x in (pairs.text, pairs.mask, pairs.video, pairs.frames))
            )
        return losses

    def pairs(self, states: Tensor, batch: Mapping[str, Tensor]) -> Pairs:
        """Unit tokens (B,L,D) of the states and unit vectors of the videos (B,T,D), T = 1 where pooled."""
        vectors, frames = self.videos(batch["video"], batch["video_mask"])
        return Pairs(F.normalize(full(states), dim=2), batch["attention_mask"].bool(), vectors, frames)

    def videos(self, video: Tensor, video_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B,T,C), mask (B,T) -> unit vectors (B,T,D) and which count (B,T), T = 1 where pooled."""
        assert self.video is not None
        valid = video[:, :, -1] != 0 if self.compat == "repo" else video_mask.bool()
        vectors = self.video(video, valid)
        if vectors.ndim == 3:
            return vectors, valid
        frames = valid.any(1, keepdim=True)
        return vectors[:, None], torch.ones_like(frames) if self.compat == "repo" else frames

    def contrast_loss(self, text: Tensor, mask: Tensor, video: Tensor, frames: Tensor) -> Tensor:
        """Tokens (B,L,D) against videos (B,T,D); a video without a valid frame takes no part."""
        some = frames.any(1)
        text, mask, video, frames = (x[some] for x in (text, mask, video, frames))
        if not len(text):
            return text.sum() + video.sum()
        if self.contrast == "infonce":
            return infonce(text, video, mask, self.temperature, frames)
        hinge = hinge_half if self.contrast == "hinge_half" else hinge_all
        return hinge(text, video, mask, self.margin, frames)

    def describe(self, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Sizes of both towers."""
        row = language_row("text", self.language, batch["input_ids"])
        if self.video is None:
            return [row]
        frames, features = batch["video"].shape[1:]
        return [row, {"part": "video", "given": f"{frames} x {features}", "width": self.language.width}]

    # --- scores --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        super().on_validation_epoch_start()
        self._pairs = []

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """As in the base; keep whole texts and their videos."""
        super().validation_step(batch, batch_idx)
        if "contrast" not in self.weights:
            return
        pairs = self.pairs(self.language(batch["input_ids"], batch["attention_mask"]), batch)
        keep = ~self.repeated(batch_idx, len(pairs.text)).to(self.device) & pairs.frames.any(1)
        keep = self.of_all_processes(keep, gradient=False)
        parts = (pairs.text, pairs.mask, pairs.video, pairs.frames)
        self._pairs.append(Pairs(*(self.of_all_processes(x, gradient=False)[keep] for x in parts)))

    def scores(self) -> dict[str, float]:
        """As in the base, and retrieval over all validation pairs."""
        pairs = Pairs.joined(self._pairs) if self._pairs else None
        self._pairs = []
        self._gallery = len(pairs.text) if pairs else 0
        return super().scores() | (retrieval_scores(pairs) if pairs and self._gallery else {})

    _gallery = 0

    @property
    def protocol(self) -> dict[str, Any]:
        """As in the base; the contrast, and among how many videos it is searched."""
        if self.recorded_protocol:
            return self.recorded_protocol
        found = super().protocol
        if self._gallery:
            found["retrieval gallery"] = f"{self._gallery} videos, one text each"
        return found | ({"contrast": self.contrast} if "contrast" in self.weights else {})

    # --- bundle --------------------------------------------------------------------------------------------

    def bundle(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The language model with its tokenizer, and the video tower."""
        card, tensors = language_bundle(self.language)
        if self.video is None:
            return card, tensors
        card["kind"] = "video_text"
        card["architecture"]["video"] = self.video.architecture
        card["training"] = {"compat": self.compat, "contrast": self.contrast, "weights": self.weights}
        return card, tensors | {f"video.{key}": x for key, x in self.video.state_dict().items()}

    @classmethod
    def from_bundle(cls, path: str | Path) -> Distiller:
        """Both towers of a bundle, ready to be scored."""
        card, tensors = load_bundle(path)
        language = language_model_of(card, tensors, str(path))
        method = cls(language, **card.get("training", {}))
        method.video = video_tower_of(card, tensors, language.model.config, str(path))
        method.recorded_protocol = card.get("protocol")
        return method


def language_row(part: str, model: LanguageModel, ids: Tensor) -> dict[str, Any]:
    """A language model's row of the dry run."""
    return {"part": part, "given": f"{ids.shape[1]} tokens", "width": model.width, "name": model.name}


def language_bundle(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Card and tensors of a language model."""
    card = {
        "kind": "language",
        "architecture": {"language": model.architecture},
        "input_spec": {"size": [model.positions], "vocabulary": len(model.tokenizer)},
    }
    return card, model.tensors()
