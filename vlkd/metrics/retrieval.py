"""Image-text retrieval: how often the right caption, or the right image, is among the first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlkd.errors import UserError


def retrieval_recall(
    image: Tensor, text: Tensor, owner: Tensor, ks: Sequence[int] = (1, 5, 10), chunk: int = 1024
) -> dict[str, float]:
    """{"image_to_text_R@k", "text_to_image_R@k"} as fractions, from image (N,D), text (M,D) and owner (M,).

    owner[m] in 0..N-1 is the image that caption m belongs to; an image may have several. Image to text is a
    hit when any own caption is among the k first of all M, text to image when the own image is among the k
    first of all N. Ties count against the hit: what scores as high as the own one ranks before it, so that
    vectors without any information score 0; a score that is not a number is no hit. At most (chunk, max(N,M))
    similarities exist at once. Raises UserError for shapes that do not fit and an image without caption.
    Source: Karpathy & Fei-Fei 2015 (arXiv 1412.2306), section 4.1.
    """
    _check(image, text, owner, ks)
    owner = owner.to(image.device)
    captions, images = torch.arange(len(text), device=image.device), torch.arange(len(image)).to(image.device)
    ranks = [
        rank_before(part, text, owner[None] == rows[:, None]) for part, rows in _parts(image, images, chunk)
    ]
    found = {f"image_to_text_R@{k}": _below(ranks, k) for k in ks}
    ranks = [
        rank_before(part, image, images[None] == owner[rows, None])
        for part, rows in _parts(text, captions, chunk)
    ]
    return found | {f"text_to_image_R@{k}": _below(ranks, k) for k in ks}


def _parts(vectors: Tensor, rows: Tensor, chunk: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(vectors.split(chunk), rows.split(chunk), strict=True))


def rank_before(query: Tensor, gallery: Tensor, own: Tensor) -> Tensor:
    """Others that rank before the best own one: query (C,D), gallery (G,D), own (C,G) bool -> (C,) int64."""
    with torch.autocast(query.device.type, enabled=False):
        similarity = query.float() @ gallery.float().T
    best = similarity.masked_fill(~own, float("-inf")).amax(1, keepdim=True)
    # Not "similarity >= best": one that is no number would rank behind.
    before = (~(similarity < best) & ~own).sum(1)
    return before.masked_fill(best[:, 0].isnan(), torch.iinfo(before.dtype).max)


def _below(ranks: list[Tensor], k: int) -> float:
    return float((torch.cat(ranks) < k).double().mean())


def _check(image: Tensor, text: Tensor, owner: Tensor, ks: Sequence[int]) -> None:
    fits = image.ndim == text.ndim == 2 and image.shape[1] == text.shape[1] and owner.shape == text.shape[:1]
    if not fits or not len(text):
        raise UserError(
            f"retrieval: images {tuple(image.shape)}, captions {tuple(text.shape)}, owner "
            f"{tuple(owner.shape)}; expected (N,D), (M,D) and (M,), M at least 1"
        )
    if not ks or min(ks) < 1:
        raise UserError(f"retrieval: ks={tuple(ks)}, expected ranks of 1 or more")
    if int(owner.min()) < 0 or int(owner.max()) >= len(image):
        raise UserError(
            f"retrieval: owner {int(owner.min())} to {int(owner.max())}, expected 0 to {len(image) - 1}"
        )
    without = torch.bincount(owner.cpu(), minlength=len(image)) == 0
    if without.any():
        raise UserError(f"retrieval: image {int(without.nonzero()[0])} has no caption; every image needs one")
