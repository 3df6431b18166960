"""Time of one bincount with a bin for void against the boolean-mask form: python benchmarks/confusion.py"""

from __future__ import annotations

import timeit

import numpy as np
import torch

from vlkd.metrics import confusion_matrix


def masked(gt, pred, count):
    """The form most evaluators use: select the labelled pixels first."""
    labelled = (gt >= 0) & (gt < count)
    table = count * gt[labelled].astype(np.int64) + pred[labelled]
    return np.bincount(table, minlength=count * count).reshape(count, count)


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    count = 150
    gt = rng.integers(0, count, (1080, 1920)).astype(np.int64)
    pred = rng.integers(0, count, gt.shape).astype(np.int64)
    gt[rng.random(gt.shape) < 0.2] = 255
    tensors = torch.from_numpy(gt), torch.from_numpy(pred)
    assert np.array_equal(confusion_matrix(gt, pred, count), masked(gt, pred, count))
    runs = {
        "boolean mask, numpy": lambda: masked(gt, pred, count),
        "one bincount, numpy": lambda: confusion_matrix(gt, pred, count),
        "one bincount, torch": lambda: confusion_matrix(*tensors, count),
    }
    times = {name: min(timeit.repeat(run, number=1, repeat=7)) for name, run in runs.items()}
    base = times["boolean mask, numpy"]
    for name, seconds in times.items():
        print(f"{name}: {seconds * 1e3:6.1f} ms for 1080x1920, {base / seconds:.2f} times as fast")


if __name__ == "__main__":
    main()
