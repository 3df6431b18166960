"""A bundle of either stage, as probes ask it: states of words, and how like a word is to clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.engine.bundle import load_bundle, read_card
from vlkd.errors import UserError
from vlkd.losses.precision import full
from vlkd.methods.vidlankd.heads import heads_of
from vlkd.methods.vidlankd.retrieval import best_cosines
from vlkd.methods.vidlankd.teacher import VideoTextTeacher
from vlkd.models.language import LanguageModel, language_model_of
from vlkd.text.word_ids import check_same_tokenizer

# Objectives whose heads bring single states to the teacher's, the most direct first. NST compares tokens with
# tokens alone, so what its head gives may be the teacher's space turned in any way.
REACHING = ("contrastive", "hidden", "crd")


class Probed:
    """The language model of a bundle, and what brings its states to where videos are.

    head: name of the student's head that does; "" where none does, and of a teacher, which needs none.
    width: of the space that it reaches; 0 where it reaches none. Raises UserError for a bundle that is no
    language model.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.card = path, read_card(path)
        self.teacher: VideoTextTeacher | None = None
        self.head, self.width, self._map = "", 0, nn.Identity()
        if self.card["kind"] == "video_text":
            self.teacher = VideoTextTeacher.from_bundle(path).eval()  # type: ignore[assignment]
            self.language: LanguageModel = self.teacher.language  # type: ignore[union-attr]
            self.width = self.language.width
            return
        card, tensors = load_bundle(path)
        self.language = language_model_of(card, tensors, str(path))
        heads: Any = heads_of(card, tensors, str(path))
        self.head = next((name for name in REACHING if name in heads), "")
        if self.head:
            self._map, self.width = heads[self.head], card["architecture"]["heads"]["teacher"]

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Last states (B,L,D) of ids (B,L)."""
        return self.language(input_ids, attention_mask)

    def check_taught_by(self, teacher: Probed) -> None:
        """Raises UserError where this student cannot have learned from that teacher."""
        if teacher.teacher is None:
            raise UserError(
                f"{teacher.path}: holds a {teacher.card['kind']} without a video tower; give the bundle or "
                "run folder of stage 1"
            )
        tokenizers = self.language.tokenizer, teacher.language.tokenizer
        check_same_tokenizer(*tokenizers, (str(self.path), str(teacher.path)))
        if self.width and self.width != teacher.width:
            raise UserError(
                f"{self.path}: its head {self.head} gives {self.width} numbers, the videos of {teacher.path} "
                f"have {teacher.width}; give the teacher that it learned from"
            )

    def likeness(self, videos: Tensor, frames: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """From ids (B,L), mask (B,L) to cosines (B,L,M) of the tokens with the teacher's videos (M,T,D).

        frames (M,T): which count; a token is compared with the one that is most like it.
        """
        assert self.width, "no head reaches the videos"

        @torch.no_grad()
        def found(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            unit = F.normalize(full(self._map(self.states(input_ids, attention_mask))), dim=2)
            return best_cosines(unit.flatten(0, 1), videos, frames).unflatten(0, unit.shape[:2])

        return found

    @torch.no_grad()
    def videos(self, video: Tensor, video_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of a teacher: unit vectors (M,T,D) of features (M,T',C), and which count (M,T)."""
        assert self.teacher is not None, "a student sees no video"
        return self.teacher.videos(video, video_mask)
