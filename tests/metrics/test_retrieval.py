"""Recall at k against sorting by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vlkd.errors import UserError
from vlkd.metrics import retrieval_recall


def slow(image: torch.Tensor, text: torch.Tensor, owner: torch.Tensor, k: int) -> tuple[float, float]:
    table = image @ text.T
    by_image = [
        any(int(owner[m]) == n for m in table[n].argsort(descending=True)[:k].tolist())
        for n in range(len(image))
    ]
    by_text = [int(owner[m]) in table[:, m].argsort(descending=True)[:k].tolist() for m in range(len(text))]
    return sum(by_image) / len(by_image), sum(by_text) / len(by_text)


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_several_captions_an_image_in_chunks(chunk: int) -> None:
    torch.manual_seed(0)
    image = F.normalize(torch.randn(12, 4), dim=1)
    owner = torch.tensor([*range(12), *range(12), 3, 3, 5])[torch.randperm(27)]
    text = F.normalize(image[owner] + 0.8 * torch.randn(27, 4), dim=1)
    found = retrieval_recall(image, text, owner, (1, 2, 5, 40), chunk)
    for k in (1, 2, 5, 40):
        expected = slow(image, text, owner, k)
        assert (found[f"image_to_text_R@{k}"], found[f"text_to_image_R@{k}"]) == pytest.approx(expected)
    assert 0 < found["image_to_text_R@1"] < found["image_to_text_R@5"] and found["text_to_image_R@40"] == 1


def test_one_of_several_own_captions_is_enough() -> None:
    image, text = torch.eye(2), torch.tensor([[1.0, 0], [-1, 0], [0, 1]])
    found = retrieval_recall(image, text, torch.tensor([0, 0, 1]), (1,))
    assert found == {"image_to_text_R@1": 1.0, "text_to_image_R@1": pytest.approx(2 / 3)}


def test_ties_count_against_the_hit() -> None:
    same = torch.ones(4, 3)
    found = retrieval_recall(same, same, torch.arange(4), (1, 3, 4))
    assert [found[f"image_to_text_R@{k}"] for k in (1, 3, 4)] == [0, 0, 1]
    assert [found[f"text_to_image_R@{k}"] for k in (1, 3, 4)] == [0, 0, 1]


def test_what_is_no_number_is_no_hit() -> None:
    image, text = torch.eye(3), torch.eye(3)
    image[1] = float("nan")
    found = retrieval_recall(image, text, torch.arange(3), (1, 9))
    assert found["image_to_text_R@1"] == found["image_to_text_R@9"] == pytest.approx(2 / 3)
    assert found["text_to_image_R@1"] == 0  # the broken image ranks before every other
    assert found["text_to_image_R@9"] == pytest.approx(2 / 3)


def test_full_precision_inside_autocast() -> None:
    image = F.normalize(torch.tensor([[1.0, 0.01], [1.0, 0.011]]), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = retrieval_recall(100 * image, image, torch.arange(2), (1,))
    assert found == {"image_to_text_R@1": 1.0, "text_to_image_R@1": 1.0}


@pytest.mark.parametrize(
    ("owner", "ks", "line"),
    [
        ([0, 1], (1,), r"images \(3, 2\), captions \(3, 2\), owner \(2,\)"),
        ([0, 1, 3], (1,), "owner 0 to 3, expected 0 to 2"),
        ([0, 1, 1], (1,), "image 2 has no caption"),
        ([0, 1, 2], (0,), "expected ranks of 1 or more"),
    ],
)
def test_what_does_not_fit_is_one_line(owner: list[int], ks: tuple[int, ...], line: str) -> None:
    with pytest.raises(UserError, match=line):
        retrieval_recall(torch.rand(3, 2), torch.rand(3, 2), torch.tensor(owner), ks)
