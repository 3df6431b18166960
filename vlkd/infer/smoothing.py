"""Exponential smoothing over the frames of a video, of the class probabilities of pixels and of tracks."""

from __future__ import annotations

import torch
from torch import Tensor

from vlkd.errors import UserError
from vlkd.models.postprocess import SemanticMap, class_probabilities, label_probabilities, semantic_map

_CUT = 0.5  # part of the probability that lies elsewhere from one frame to the next: another scene


def checked_smoothing(smoothing: float) -> float:
    """The factor as it is. Raises UserError outside [0, 1)."""
    if not 0 <= smoothing < 1:
        raise UserError(f"smoothing={smoothing}: expected 0 (none) or more, and less than 1")
    return float(smoothing)


class PixelSmoothing:
    """Semantic maps of successive frames from p_t = a p_(t-1) + (1-a) q_t.

    q (K,h,w) are a frame's class probabilities at mask resolution; labels come from p upsampled. Where more
    than half of the probability moves at once, the scene was cut and p_t = q_t. With `smoothing` a = 0 the
    maps are those of `semantic_map`. `form` as there.
    """

    def __init__(self, smoothing: float, form: str = "strips") -> None:
        self.smoothing, self.form = checked_smoothing(smoothing), form
        self.cut = False  # whether the last frame was taken for another scene
        self._maps: Tensor | None = None

    def __call__(
        self, class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int], *, scores: bool = False
    ) -> SemanticMap:
        """Map of the next frame; arguments as in `semantic_map`, for the same classes each time."""
        if not self.smoothing:
            return semantic_map(class_logits, mask_logits, size, self.form, scores=scores)
        new = class_probabilities(class_logits, mask_logits)
        if self._maps is not None and self._maps.shape == new.shape:
            total = float(new.sum() + self._maps.sum())
            change = new.sub_(self._maps)
            self.cut = float(change.abs().sum()) > _CUT * total
            new = self._maps.add_(change, alpha=1 if self.cut else 1 - self.smoothing)
        self._maps = new
        return label_probabilities(new, size, self.form, scores=scores)


class RowSmoothing:
    """The same for class logits (Q,K+1) whose row i is track i; rows can start anew."""

    def __init__(self, smoothing: float) -> None:
        self.smoothing = checked_smoothing(smoothing)
        self._probs: Tensor | None = None

    def __call__(self, class_logits: Tensor, fresh: Tensor) -> Tensor:
        """Logits whose softmax is the smoothed one; rows `fresh` (Q,) bool forget what they were."""
        if not self.smoothing:
            return class_logits
        new = class_logits.softmax(-1)
        if self._probs is not None:
            kept = torch.where(fresh, 0.0, self.smoothing)[:, None]
            new = kept * self._probs + (1 - kept) * new
        self._probs = new
        return new.clamp(min=torch.finfo(new.dtype).tiny).log()
