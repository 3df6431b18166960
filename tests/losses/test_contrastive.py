"""Contrastive losses against plain loops."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vlkd.losses import clip_loss, grounding_loss


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_clip_loss_is_the_mean_of_both_directions() -> None:
    torch.manual_seed(0)
    image, text = unit(6, 8), unit(6, 8)
    logits = 10 * image @ text.T
    expected = -(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean()) / 2
    assert torch.allclose(clip_loss(image, text, 10.0), expected)


def test_identical_texts_are_no_negatives() -> None:
    torch.manual_seed(1)
    image, text = unit(3, 8), unit(3, 8)
    text[2] = text[0]
    same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=torch.bool)
    logits = 5 * image @ text.T
    row0 = -(logits[0, [0, 1]].log_softmax(0)[0])
    full = clip_loss(image, text, 5.0, same)
    rows = [row0, -logits[1].log_softmax(0)[1], -(logits[2, [1, 2]].log_softmax(0)[1])]
    columns = [
        -(logits[[0, 1], 0].log_softmax(0)[0]),
        -logits[:, 1].log_softmax(0)[1],
        -(logits[[1, 2], 2].log_softmax(0)[1]),
    ]
    assert torch.allclose(full, (torch.stack(rows).mean() + torch.stack(columns).mean()) / 2, atol=1e-6)


def test_grounding_loss_by_loops() -> None:
    torch.manual_seed(2)
    counts_r, counts_w = [3, 1, 2], [2, 3, 1]
    regions, words = unit(3, 3, 8), unit(3, 3, 8)
    rm = torch.arange(3)[None] < torch.tensor(counts_r)[:, None]
    wm = torch.arange(3)[None] < torch.tensor(counts_w)[:, None]
    by_word, by_region = torch.zeros(3, 3), torch.zeros(3, 3)
    for b in range(3):
        for c in range(3):
            s = 7 * regions[b, : counts_r[b]] @ words[c, : counts_w[c]].T
            by_word[b, c] = (s.softmax(0) * s).sum(0).mean()
            by_region[b, c] = (s.softmax(1) * s).sum(1).mean()
    target = torch.arange(3)
    expected = torch.stack(
        [F.cross_entropy(x, target) for x in (by_word, by_word.T, by_region, by_region.T)]
    ).mean()
    assert torch.allclose(grounding_loss(regions, words, rm, wm, 7.0), expected, atol=1e-5)


def test_grounding_ignores_images_without_words() -> None:
    torch.manual_seed(3)
    regions, words = unit(3, 2, 8).requires_grad_(), unit(3, 2, 8)
    rm, wm = torch.ones(3, 2, dtype=torch.bool), torch.tensor([[1, 1], [0, 0], [1, 0]], dtype=torch.bool)
    loss = grounding_loss(regions, words, rm, wm, 4.0)
    loss.backward()
    assert (
        torch.isfinite(loss)
        and regions.grad is not None
        and (regions.grad[1] == 0).all()
        and (regions.grad[0] != 0).any()
    )
    assert grounding_loss(regions, words, rm, wm & False, 4.0) == 0
