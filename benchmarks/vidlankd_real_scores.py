"""Scores of benchmarks/vidlankd_real.py: perplexity of texts, and held-out captions against their videos."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate
from vidlankd_real_data import PIECES

from vlkd.data import TextBlocksData, VideoTextData
from vlkd.methods.vidlankd.base import VALIDATION
from vlkd.methods.vidlankd.masking import hide_words
from vlkd.metrics.retrieval import rank_before
from vlkd.models.language import LanguageModel
from vlkd.models.video_text import VideoTower
from vlkd.text.word_ids import ordinary_ids

PENALTIES = tuple(10.0**k for k in range(-3, 4))
FOLDS = 5


@dataclass
class Captioned:
    """M captions of N videos: ids and mask (M,L), owner (M,) in 0..N-1; features (N,T,C), frames (N,T)."""

    ids: Tensor
    mask: Tensor
    owner: Tensor
    video: Tensor
    frames: Tensor

    @classmethod
    def both(cls, data: VideoTextData) -> tuple[Captioned, Captioned]:
        """Training and validation of a module with fixed windows of one segment."""
        train, val = data.train_set, data.val_set
        return (
            cls._of([train[0, k] for k in range(len(train))], [video for video, _ in train.items]),
            cls._of([val[k, False] for k in range(len(val))], [video for video, _ in val.items]),
        )

    @classmethod
    def _of(cls, items: list[dict[str, Tensor]], owners: list[int]) -> Captioned:
        all = default_collate(items)
        owner = torch.tensor(owners)
        first = [owners.index(video) for video in range(max(owners) + 1)]
        return cls(
            *(all["input_ids"], all["attention_mask"], owner),
            *(all[key][first] for key in ("video", "video_mask")),
        )

    @property
    def features(self) -> Tensor:
        """Mean features (N,C) over the frames."""
        return pooled(self.video, self.frames)

    @property
    def bags(self) -> Tensor:
        """Which ids are there, (M,K)."""
        found = torch.zeros(len(self.ids), PIECES, dtype=torch.float64)
        return found.scatter(1, self.ids, self.mask.double())


@torch.no_grad()
def perplexity(model: LanguageModel, data: TextBlocksData) -> float:
    """Of the words hidden in validation, which are the same for every model."""
    ordinary, hider = torch.tensor(ordinary_ids(data.tokenizer)), int(data.tokenizer.mask_token_id)
    nats, count = 0.0, 0
    for batch in data.val_dataloader():
        words, mask = batch["input_ids"], batch["attention_mask"]
        ids, hidden = hide_words(words, mask, batch["indices"], ordinary, hider, *VALIDATION)
        logits = model.words(model(ids, mask)[hidden])
        nats += float(F.cross_entropy(logits, words[hidden], reduction="sum"))
        count += len(logits)
    return math.exp(nats / count)


@torch.no_grad()
def states(model: LanguageModel, texts: Captioned) -> Tensor:
    """Of all captions (M,L,D)."""
    parts = zip(texts.ids.split(256), texts.mask.split(256), strict=True)
    return torch.cat([model(ids, mask) for ids, mask in parts])


@torch.no_grad()
def vectors(tower: VideoTower, videos: Captioned) -> Tensor:
    """Unit vectors (N,D)."""
    return tower(videos.video, videos.frames)


@torch.no_grad()
def through_head(model: LanguageModel, head: nn.Module, test: Captioned, gallery: Tensor) -> dict[str, float]:
    """Nothing is fitted: mean cosine of a caption's tokens, through the head, with unit videos (N,D)."""
    text = pooled(F.normalize(head(states(model, test)), dim=2), test.mask)
    return ranked(text, gallery, test.owner)


def through_ridge(
    x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor], owners: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """A linear map from captions x (M,D) to videos y (N,C), each of training and test, fitted on training.

    Cosines are taken about the training videos' mean.
    """
    (fit, new), (known, gallery) = (tuple(part.double() for part in pair) for pair in (x, y))
    penalty = _chosen_penalty(fit, known, owners[0])
    middle = known.mean(0)
    text = Ridge(fit, known[owners[0]])(new, penalty) - middle
    return ranked(text, F.normalize(gallery - middle, dim=1), owners[1])


def ranked(text: Tensor, gallery: Tensor, owner: Tensor) -> dict[str, float]:
    """R@1, R@5 and median rank of captions (M,D) among unit videos (N,D)."""
    own = torch.arange(len(gallery)) == owner[:, None]
    ranks = 1 + rank_before(text, gallery, own)
    found = {f"R@{k}": float((ranks <= k).double().mean()) for k in (1, 5)}
    return found | {"median": float(ranks.double().quantile(0.5))}


def pooled(rows: Tensor, mask: Tensor) -> Tensor:
    """Mean (B,D) of rows (B,L,D) where mask (B,L)."""
    weight = mask[:, :, None].to(rows.dtype)
    return (rows * weight).sum(1) / weight.sum(1)


class Ridge:
    """Linear regression of y (M,C) on x (M,D), for any penalty; it is relative to the mean square of x."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.middle, self.shift = x.mean(0), y.mean(0)
        centred = x - self.middle
        self.values, self.axes = torch.linalg.eigh(centred.T @ centred)
        self.target = self.axes.T @ (centred.T @ (y - self.shift))

    def __call__(self, x: Tensor, penalty: float) -> Tensor:
        """x (n,D) -> (n,C)."""
        scale = 1 / (self.values.clamp(min=0) + penalty * self.values.mean())
        return ((x - self.middle) @ self.axes * scale) @ self.target + self.shift


def _chosen_penalty(x: Tensor, y: Tensor, owner: Tensor) -> float:
    """The one with the least squared error on training videos that were left out of the fit."""
    errors = dict.fromkeys(PENALTIES, 0.0)
    for fold in range(FOLDS):
        out = owner % FOLDS == fold
        model = Ridge(x[~out], y[owner[~out]])
        for penalty in PENALTIES:
            errors[penalty] += float((model(x[out], penalty) - y[owner[out]]).square().sum())
    return min(errors, key=errors.__getitem__)


def opened(folder: Path, length: int) -> VideoTextData:
    """Training and test captions one by one, none joined."""
    data = VideoTextData(
        captions=str(folder / "captions.json"),
        features=str(folder / "standard"),
        tokenizer=str(folder / "tokenizer.json"),
        val_ids=str(folder / "test.ids"),
        windows="fixed",
        words=1,
        length=length,
        frames=16,
        num_workers=0,
    )
    data.setup()
    return data
