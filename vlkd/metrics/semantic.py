"""Semantic segmentation scores from one confusion matrix per split; fractions in [0, 1], sums exact in int64.

Convention (spec gkc.md section 11, VSPW and current detectron2): void ground truth is not counted at all; a
mean is over the classes that occur in the ground truth. The mean over classes that occur in ground truth or
prediction (older detectron2 and its copies) is called "union" here, never plain mIoU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from vlkd.errors import UserError

Labels = TypeVar("Labels", Tensor, NDArray[Any])
Convention = Literal["gt", "union"]
MAX_SIDE = 2048  # labels up to here address a joint table directly


def confusion_matrix(
    gt: Labels, pred: Labels, num_classes: int, ignore: int = 255, void_column: bool = False
) -> Labels:
    """Pixel counts (K,K) int64 [gt, pred] of two label maps of one shape; tensor or array as `gt` is.

    Pixels whose ground truth is `ignore` are left out. A prediction may be `ignore` too: such pixels are in
    no cell of (K,K), and in the last column of (K,K+1) with `void_column`, where the scores below count them
    as misses. One bincount; no boolean indexing. Raises UserError for other values outside 0..K-1, for
    unequal shapes, and for `ignore` 255 among 256 or more classes.
    """
    if ignore == 255 and num_classes > 255:
        raise UserError(
            f"ignore=255 is one of the {num_classes} classes; pass ignore=65535 (vlkd.data.void_label)"
        )
    if isinstance(gt, Tensor) and gt.is_cpu:  # numpy counts several times faster than torch on a CPU
        guess = pred.cpu().numpy() if isinstance(pred, Tensor) else pred
        return torch.from_numpy(confusion_matrix(gt.numpy(), guess, num_classes, ignore, void_column))
    if isinstance(gt, Tensor):
        table = _joint_counts(gt.long(), torch.as_tensor(pred, device=gt.device).long(), num_classes, ignore)
    else:
        table = _joint_counts(np.asarray(gt), np.asarray(pred), num_classes, ignore)
    return table if void_column else table[:, :num_classes]


def per_class_iou(cm: Any) -> NDArray[np.float64]:
    """IoU (K,) = TP / (G + P - TP), nan for classes in neither map; `cm` is (K,K) or (K,K+1)."""
    hits, truth, guess = _counts(cm)
    return _ratio(hits, truth + guess - hits)


def miou(cm: Any, classes: Iterable[int] | None = None, convention: Convention = "gt") -> float:
    """Mean IoU over `classes` (default all) in the ground truth, or in either map ("union"); nan if none."""
    hits, truth, guess = _counts(cm)
    present = truth > 0 if convention == "gt" else truth + guess > 0
    return _mean(_ratio(hits, truth + guess - hits), present & _chosen(classes, len(hits)))


def fwiou(cm: Any, classes: Iterable[int] | None = None) -> float:
    """IoU weighted by ground-truth frequency, over `classes` (default all); nan if none occurs."""
    hits, truth, guess = _counts(cm)
    weight = truth * _chosen(classes, len(hits))
    return float(_ratio((weight * np.nan_to_num(_ratio(hits, truth + guess - hits))).sum(), weight.sum()))


def macc(cm: Any, classes: Iterable[int] | None = None) -> float:
    """Mean over classes of the ground truth of TP / G, over `classes` (default all); nan if none occurs."""
    hits, truth, _ = _counts(cm)
    return _mean(_ratio(hits, truth), (truth > 0) & _chosen(classes, len(hits)))


def pacc(cm: Any, classes: Iterable[int] | None = None) -> float:
    """Fraction of labelled pixels of `classes` (default all) that are right; nan if there are none."""
    hits, truth, _ = _counts(cm)
    chosen = _chosen(classes, len(hits))
    return float(_ratio((hits * chosen).sum(), (truth * chosen).sum()))


class SemanticMetric(Metric):
    """Confusion over a whole split, summed over processes.

    compute() gives mIoU, fwIoU, mACC, pACC and mIoU_union over all classes, and with `novel` classes the
    first four again with the suffixes _seen and _unseen. The candidates are all K classes in every case.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(
        self, num_classes: int, novel: Collection[int] = (), ignore: int = 255, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes, self.novel, self.ignore = num_classes, frozenset(novel), ignore
        empty = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)
        self.add_state("confusion", default=empty, dist_reduce_fx="sum")

    def update(self, gt: Tensor, pred: Tensor) -> None:
        """Add label maps of equal shape."""
        self.confusion += confusion_matrix(
            gt.to(self.confusion.device), pred, self.num_classes, self.ignore, void_column=True
        )

    def compute(self) -> dict[str, float]:
        """All scores of the split so far."""
        cm = self.confusion.cpu().numpy()
        scores = {"mIoU_union": miou(cm, convention="union")} | _scores(cm, None, "")
        if self.novel:
            seen = [c for c in range(self.num_classes) if c not in self.novel]
            scores |= _scores(cm, seen, "_seen") | _scores(cm, self.novel, "_unseen")
        return scores


def _scores(cm: NDArray[np.int64], classes: Iterable[int] | None, suffix: str) -> dict[str, float]:
    classes = None if classes is None else list(classes)
    measures = {"mIoU": miou, "fwIoU": fwiou, "mACC": macc, "pACC": pacc}
    return {f"{name}{suffix}": measure(cm, classes) for name, measure in measures.items()}


def _joint_counts(truth: Any, guess: Any, num_classes: int, ignore: int) -> Any:
    """Counts (K,K+1) int64 with predicted void last.

    The labels themselves address the bins, so that void and wrong values between the classes and void cost
    nothing per pixel: they are rows and columns of the table.
    """
    if truth.shape != guess.shape:
        raise UserError(
            f"ground truth {tuple(truth.shape)} and prediction {tuple(guess.shape)} differ in shape"
        )
    where, bincount = (torch.where, torch.bincount) if isinstance(truth, Tensor) else (np.where, np.bincount)
    void = ignore
    if abs(ignore) >= MAX_SIDE:  # a far-away void label would need a huge table
        if (truth == -1).any() or (guess == -1).any():
            raise _wrong_value(-1, "a label map", num_classes, ignore)
        void = -1
        if not isinstance(truth, Tensor):
            truth, guess = truth.astype(np.int64), guess.astype(np.int64)
        truth, guess = where(truth == ignore, void, truth), where(guess == ignore, void, guess)
    low, high = min(0, void), max(num_classes - 1, void)
    for labels, what in ((truth, "ground truth"), (guess, "prediction")):
        for value in () if 0 in labels.shape else (int(labels.min()), int(labels.max())):
            if not low <= value <= high:
                raise _wrong_value(value, what, num_classes, ignore)
    side = high - low + 1
    joint = truth * side if isinstance(truth, Tensor) else np.multiply(truth, side, dtype=np.int64)
    joint += guess
    joint -= low * (side + 1)
    table = bincount(joint.reshape(-1), minlength=side * side).reshape(side, side)
    for counts, what in ((table.sum(1), "ground truth"), (table.sum(0), "prediction")):
        counts[-low : num_classes - low] = 0
        counts[void - low] = 0
        if int(counts.sum()):
            raise _wrong_value(int(counts.argmax()) + low, what, num_classes, ignore)
    result = table[-low : num_classes - low][:, [*range(-low, num_classes - low), void - low]]
    if 0 <= void < num_classes:
        result[void] = 0
        result[:, void] = 0
    return result


def _wrong_value(value: int, what: str, num_classes: int, ignore: int) -> UserError:
    return UserError(
        f"{what} has the value {value}; expected 0..{num_classes - 1}, or the ignored label {ignore}"
    )


def _counts(cm: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """TP, G and P (K,) of a confusion matrix (K,K) or (K,K+1)."""
    matrix = np.asarray(cm.detach().cpu() if isinstance(cm, Tensor) else cm).astype(np.float64)
    if matrix.ndim != 2 or matrix.shape[1] - matrix.shape[0] not in (0, 1):
        raise UserError(f"a confusion matrix is (K,K), or (K,K+1) with a void column; got {matrix.shape}")
    return matrix.diagonal().copy(), matrix.sum(1), matrix.sum(0)[: len(matrix)]


def _chosen(classes: Iterable[int] | None, count: int) -> NDArray[np.bool_]:
    chosen = np.full(count, classes is None)
    if classes is not None:
        chosen[list(classes)] = True
    return chosen


def _ratio(top: Any, bottom: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.true_divide(top, bottom)


def _mean(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> float:
    return float(values[chosen].mean()) if chosen.any() else float("nan")
