"""Class means of a teacher's pooled features: one pass over the training set, stored under a key."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlkd.cache import cache_folder, cache_key, store
from vlkd.errors import UserError
from vlkd.models.classifier import Classifier


class ClassSums:
    """Sums (K,D) float64 and counts (K,) of features by class, added batch by batch.

    decimals: round each feature value, and each mean, to so many decimals (4 in the released code); None not
    at all. Source: WangYZ1608/Knowledge-Distillation-via-ND@fc6f3f9.
    """

    def __init__(self, num_classes: int, decimals: int | None = None) -> None:
        self.decimals = decimals
        self.counts = torch.zeros(num_classes, dtype=torch.int64)
        self.sums: Tensor | None = None

    def add(self, features: Tensor, labels: Tensor) -> None:
        """features (B,D), labels (B,)."""
        values = self._rounded(features.detach().cpu().double())
        if self.sums is None:
            self.sums = torch.zeros(len(self.counts), values.shape[1], dtype=torch.float64)
        self.sums.index_add_(0, labels.cpu(), values)
        self.counts += torch.bincount(labels.cpu(), minlength=len(self.counts))

    def means(self) -> Tensor:
        """(K,D) float64, zero for a class without samples."""
        assert self.sums is not None, "nothing was added"
        return self._rounded(self.sums / self.counts.clamp(min=1)[:, None])

    def _rounded(self, values: Tensor) -> Tensor:
        return values if self.decimals is None else values.round(decimals=self.decimals)


def class_means(features: Tensor, labels: Tensor, num_classes: int, decimals: int | None = None) -> Tensor:
    """Mean feature of each class: features (N,D), labels (N,) -> (K,D) float64; see ClassSums."""
    sums = ClassSums(num_classes, decimals)
    sums.add(features, labels)
    return sums.means()


def means_key(teacher: Classifier, data: Any, augmented: bool, decimals: int | None) -> str:
    """Digest of all that class means depend on: the teacher's weights, data, transform, rounding."""
    return cache_key(
        format=1,
        teacher=teacher.identity,
        input=teacher.spec.to_dict(),
        data=data.train_fingerprint(augmented),
        augmented=augmented,
        decimals=decimals,
    )


def teacher_class_means(
    teacher: Classifier, data: Any, device: torch.device, augmented: bool = True, decimals: int | None = None
) -> tuple[Tensor, Tensor]:
    """Class means (K,D) float32 and counts (K,) of the teacher on the training set of a data module.

    Computed once; the second call with the same teacher, data and transform reads them back.
    """
    key = means_key(teacher, data, augmented, decimals)
    path = cache_folder() / "class_means" / f"{key[:24]}.safetensors"
    if not path.is_file():
        sums = ClassSums(teacher.num_classes, decimals)
        with torch.no_grad(), torch.random.fork_rng():  # a run with stored means must draw the same
            for batch in _tracked(data.train_pass(augmented)):
                sums.add(teacher.outputs(batch["images"].to(device)).pooled, batch["labels"])
        store(path, {"class_means": sums.means().float(), "counts": sums.counts}, {"key": key})
    return load_class_means(path, key)


def load_class_means(path: Path, key: str) -> tuple[Tensor, Tensor]:
    """Stored class means and counts. Raises UserError where they are of other teacher, data or transform."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            known = (stored.metadata() or {}).get("key")
            means, counts = stored.get_tensor("class_means"), stored.get_tensor("counts")
    except (SafetensorError, OSError) as problem:
        raise UserError(f"{path}: not a file of class means: {str(problem).splitlines()[0][:120]}") from None
    if known != key:
        raise UserError(
            f"{path}: class means of another teacher, data set, transform or (with augmented images) seed; "
            "leave model.class_means out to have them computed"
        )
    return means, counts


def check_counts(counts: Tensor, names: Sequence[str], skip: bool) -> None:
    """Raise UserError naming the classes without a sample, unless they are to be skipped."""
    empty = [int(k) for k in (counts == 0).nonzero()[:, 0]]
    if empty and not skip:
        shown = ", ".join(names[k] if k < len(names) else str(k) for k in empty[:5])
        raise UserError(
            f"{len(empty)} classes have no training image and so no class mean "
            f"({shown}{', ...' * (len(empty) > 5)}); add images, or leave them "
            "out of the ND loss with model.missing_classes=skip"
        )


def _tracked(batches: Any) -> Any:
    from rich.progress import track

    return track(batches, description="class means", transient=True)
