"""ND: the student's features grow along their class' mean direction in the teacher's feature space."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlkd import losses
from vlkd.errors import UserError
from vlkd.methods.classifier import ClassifierDistiller
from vlkd.methods.nd.means import check_counts, load_class_means, means_key, teacher_class_means
from vlkd.methods.terms import Pair, Term, check_options
from vlkd.models.classifier import Classifier
from vlkd.models.projector import NDProjector


class ND(ClassifierDistiller):
    """A base loss and the ND loss: {kd, nd} is KD++, {dkd, nd} DKD++, {dist, nd} DIST++, {review_kd, nd}
    ReviewKD++.

    Args:
        class_means: stored class means (safetensors); None computes them, once for teacher and data.
        means_augmented: pass the training images through the training augmentation, as released; else as they
        are.
        means_decimals: round features and means to so many decimals (4 as released).
        missing_classes: what to do when a class has no training image: error, or skip it in the ND loss.
        kwargs: see ClassifierDistiller; options.nd: {dropout: 0.5}, of the projector where widths differ.
    """

    def __init__(
        self,
        class_means: str | None = None,
        means_augmented: bool = True,
        means_decimals: int | None = None,
        missing_classes: Literal["error", "skip"] = "error",
        **kwargs: Any,
    ) -> None:
        self._means = {
            "file": class_means,
            "augmented": means_augmented,
            "decimals": means_decimals,
            "skip": missing_classes == "skip",
        }
        super().__init__(**kwargs)

    def build_term(self, name: str, pair: Pair, options: dict[str, Any]) -> Term:
        """`nd`, and those of ClassifierDistiller."""
        if name != "nd":
            return super().build_term(name, pair, options)
        check_options(name, NDProjector, options)
        return NDTerm(pair, self.teacher, self._means, options)


class NDTerm(Term):
    """nd: on pooled features, after a projector (BatchNorm, dropout, linear) where their widths differ."""

    reads_labels = True
    class_means: Tensor

    def __init__(
        self, pair: Pair, teacher: Classifier, means: dict[str, Any], options: dict[str, Any]
    ) -> None:
        super().__init__()
        width, target = pair.student.pooled.shape[1], pair.teacher.pooled.shape[1]
        self.projector = NDProjector(width, target, **options) if width != target else nn.Identity()
        # Not a submodule: the teacher stays out of the checkpoint.
        self._teacher, self._means = [teacher], means
        self.register_buffer("class_means", torch.zeros(teacher.num_classes, target), persistent=False)
        self.skip = False

    def prepare(self, data: Any, device: torch.device) -> None:
        """Find or compute the class means. Raises UserError for a class without samples."""
        teacher, means = self._teacher[0], self._means
        if means["file"]:
            key = means_key(teacher, data, means["augmented"], means["decimals"])
            found, counts = load_class_means(Path(means["file"]), key)
        else:
            found, counts = teacher_class_means(teacher, data, device, means["augmented"], means["decimals"])
        if found.shape != self.class_means.shape:
            raise UserError(f"class means {tuple(found.shape)}: expected {tuple(self.class_means.shape)}")
        check_counts(counts, getattr(data, "names", ()), means["skip"])
        self.skip = bool((counts == 0).any())
        self.class_means.copy_(found)

    def forward(self, pair: Pair) -> Tensor:
        assert pair.labels is not None, "nd needs labels"
        student, teacher, labels = self.projector(pair.student.pooled), pair.teacher.pooled, pair.labels
        if not self.skip:
            return losses.nd(student, teacher, self.class_means, labels)
        known = self.class_means.abs().sum(1) > 0
        values = losses.nd(student, teacher, self.class_means, labels, per_sample=True)
        return values.where(known[labels], 0).sum() / known[labels].sum().clamp(min=1)
