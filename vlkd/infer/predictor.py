"""Predictor: a student and its words, from image or video to labels at the original resolution."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError
from vlkd.infer.inputs import Classes, ImageLike, pixels_of, usable_device
from vlkd.infer.smoothing import PixelSmoothing
from vlkd.infer.words import Words
from vlkd.models.postprocess import SemanticMap, semantic_map
from vlkd.text.class_vectors import ClassVectors, TextEncoder

_STRIDE = 32
_LONGEST = 4  # long side over short side beyond which the scale follows the long side


class Student(Protocol):
    """What a Predictor needs of vlkd.models.Segmentor."""

    spec: Any

    def __call__(self, images01: Tensor, **memory: Tensor) -> list[Any]: ...

    def class_logits(self, embeddings: Tensor, vectors: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Segmentation:
    """What was found in one image.

    labels (H,W) int64 index `names` (as the user wrote them); areas (K,) fraction of the pixels; scores (K,)
    mean score over a class's own pixels, 0 where it has none; probabilities (K,H,W) float32 on request. From
    a video also frame (H,W,3) uint8 and time in seconds.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    areas: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray | None = None
    frame: np.ndarray | None = None
    time: float | None = None


class Predictor:
    """Segments images and videos with any list of class names.

    `text_encoder` may be a function that fetches one when a name is met that `class_vectors` lacks. `size` is
    the short side the student works at (pixels, default: its card's); `templates` the prompts for new names;
    `form` the post-processing of `semantic_map`; `dtype` e.g. torch.bfloat16; `compile` runs torch.compile.
    """

    def __init__(
        self,
        student: Student,
        class_vectors: ClassVectors | None = None,
        text_encoder: TextEncoder | Callable[[], TextEncoder] | None = None,
        card: Mapping[str, Any] | None = None,
        *,
        size: int | None = None,
        templates: str | Sequence[str] | None = None,
        form: str = "strips",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
    ) -> None:
        if size is not None and size < _STRIDE:
            raise UserError(
                f"size {size} is too small: the student needs a short side of at least {_STRIDE} pixels"
            )
        self.device, self.dtype = usable_device(device), dtype
        self.words = Words(class_vectors, text_encoder, templates, self.device)
        self.templates = self.words.templates
        self.student = student
        if isinstance(student, torch.nn.Module):
            student.eval().requires_grad_(False).to(self.device, dtype)
            self.student = torch.compile(student) if compile else student  # type: ignore[assignment]
        self.class_vectors, self.card, self.form = class_vectors, dict(card or {}), form
        self.size, self._interpolation = size or min(student.spec.size), student.spec.interpolation

    @classmethod
    def from_bundle(cls, path: str | os.PathLike[str], **options: Any) -> Predictor:
        """Predictor of a bundle file of kind "segmentor"; options as in the constructor. Raises UserError."""
        from vlkd.engine.bundle import load_bundle
        from vlkd.models.segmentor import Segmentor

        card, tensors = load_bundle(Path(path))
        if card.get("kind") != "segmentor":
            raise UserError(f"{path}: the bundle holds a {card.get('kind')!r}: expected a segmentor")
        student = Segmentor(**card["architecture"])
        try:
            student.load_state_dict(_part(tensors, "student."))
        except RuntimeError as error:
            detail = " ".join(str(error).split())[:160]
            raise UserError(
                f"{path}: the weights do not fit the architecture in the card: {detail}"
            ) from None
        vectors = ClassVectors.of_bundle(card, tensors)
        return cls(student, vectors, _text_source(card, _part(tensors, "text.")), card, **options)

    def __call__(
        self, image: ImageLike, classes: Classes | None = None, probabilities: bool = False
    ) -> Segmentation:
        """Segment one image into `classes` (default: the classes of the bundle).

        `image`: path, PIL image, RGB array (H,W,3) uint8, or tensor (3,H,W) float in [0,1]. `classes`: a
        list, or a string "car|automobile, tree"; "|" joins words of one class. Raises UserError for an
        unreadable image, an empty or repeating list, and names for which there are no vectors and no text
        encoder.
        """
        names, vectors = self.words(classes)
        pixels = pixels_of(image)
        logits = self.logits(self.level(pixels), vectors)
        with torch.inference_mode():
            found = semantic_map(*logits, _size(pixels), self.form, scores=True, probabilities=probabilities)
            return _segmentation(found, names)

    def names(self, classes: Classes | None = None) -> tuple[str, ...]:
        """The class names that a call with `classes` would use. Raises UserError as a call does."""
        return self.words(classes)[0]

    def outputs(self, image: ImageLike, classes: Classes | None = None) -> tuple[Tensor, Tensor]:
        """The student's class_logits (Q,K+1) and mask_logits (Q,h,w) of one image, before post-processing."""
        _, vectors = self.words(classes)
        return self.logits(self.level(pixels_of(image)), vectors)

    def video(
        self,
        path: str | os.PathLike[str],
        classes: Classes | Callable[[int], Classes] | None = None,
        *,
        every: int = 1,
        smoothing: float = 0.0,
    ) -> Iterator[Segmentation]:
        """Segment a video frame by frame in constant memory, `every` n-th frame only if asked.

        A student with memory is handed that of the frame before. `smoothing`: see PixelSmoothing. To change
        the words while it runs, give a function of the frame index that returns the list to use; each list
        is encoded once, and smoothing starts anew. Raises UserError as VideoFile and __call__ do, and for
        `smoothing` outside [0, 1).
        """
        from vlkd.infer.video import every_nth

        smooth, last, memory = PixelSmoothing(smoothing, self.form), None, None
        if not callable(classes):
            self.words(classes)
        with closing(every_nth(path, every)) as frames:
            for index, frame in frames:
                names, vectors = self.words(classes(index) if callable(classes) else classes)
                if names != last:
                    smooth, last = PixelSmoothing(smoothing, self.form), names
                pixels = pixels_of(frame.image)
                level = self.level(pixels, memory)
                memory = level.memory if self.remembers else None
                with torch.inference_mode():
                    found = smooth(*self.logits(level, vectors), _size(pixels), scores=True)
                    result = _segmentation(found, names)
                yield replace(result, frame=frame.image, time=frame.time)

    @property
    def remembers(self) -> bool:
        """Whether the student takes its memory of the frame before."""
        return bool(getattr(self.student, "arguments", {}).get("memory"))

    @torch.inference_mode()
    def level(self, pixels: Tensor, memory: Tensor | None = None) -> Any:
        """The student's final Prediction for pixels (3,H,W); `memory` is that of the frame before."""
        images = self._resized(pixels)[None].to(self.device)
        images = (images.float() / 255 if images.dtype == torch.uint8 else images).to(self.dtype)
        return self.student(images, **({} if memory is None else {"memory": memory}))[-1]

    @torch.inference_mode()
    def logits(self, level: Any, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """class_logits (Q,K+1) and mask_logits (Q,h,w) of an image's Prediction; vectors (K,D)."""
        logits = self.student.class_logits(level.embeddings, vectors)
        return logits[0].float(), level.mask_logits[0].float()

    def _resized(self, pixels: Tensor) -> Tensor:
        """(3,h,w) with short side `size` (or long side 4 x `size`), both sides multiples of 32."""
        sides = pixels.shape[-2:]
        scale = min(self.size / min(sides), _LONGEST * self.size / max(sides))
        target = [max(_STRIDE, int(side * scale / _STRIDE + 0.5) * _STRIDE) for side in sides]
        if list(sides) == target:
            return pixels
        resized = F.interpolate(pixels[None], target, mode=self._interpolation, antialias=True)[0]
        return resized if resized.dtype == torch.uint8 else resized.clamp_(0, 1)


def _segmentation(found: SemanticMap, names: tuple[str, ...]) -> Segmentation:
    assert found.scores is not None
    flat = found.labels.flatten()
    counts = torch.bincount(flat, minlength=len(names)).double()
    sums = torch.bincount(flat, weights=found.scores.flatten().double(), minlength=len(names))
    return Segmentation(
        found.labels.cpu().numpy(),
        names,
        (counts / len(flat)).cpu().numpy(),
        (sums / counts.clamp(min=1)).cpu().numpy(),
        None if found.probabilities is None else found.probabilities.cpu().numpy(),
    )


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[-2], pixels.shape[-1]


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _text_source(card: Mapping[str, Any], tensors: dict[str, Tensor]) -> Callable[[], TextEncoder] | None:
    """How to get the bundle's text encoder, which costs nothing until a new name is met."""
    if not card.get("text"):
        return None

    def fetch() -> TextEncoder:
        from vlkd.models import clip

        if tensors:
            return clip.text_from_card(card["text"], tensors)
        return clip.build_clip(card["text"]["name"], card["text"].get("pretrained"))

    return fetch
