"""The world's other looks: the same pixels for a number wherever it stands, and what each look does."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from vlkd.data.world import World, domains
from vlkd.data.world.domains import DOMAINS, shift
from vlkd.errors import UserError

SHIFTED = [domain for domain in DOMAINS if domain != "plain"]
HASHES = {
    "night": "0054a82210f6fe7a",
    "sketch": "497ce32d19d1ef51",
    "infrared": "c84a76c7802c83bc",
}


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    drawn = [World(0).object_photo(i, (24, 24)).image for i in range(7)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous()


def test_plain_is_as_it_was(pictures: Tensor) -> None:
    assert torch.equal(shift(pictures, "plain", 3), pictures)


@pytest.mark.parametrize("domain", SHIFTED)
def test_pixels_belong_to_seed_and_number(
    domain: str, pictures: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pictures.clone()
    whole = shift(pictures, domain, seed=3, first=10)
    assert whole.shape == pictures.shape and whole.dtype == torch.uint8 and torch.equal(pictures, before)
    assert torch.equal(shift(pictures[4:6], domain, seed=3, first=14), whole[4:6])
    monkeypatch.setattr(domains, "_CHUNK", 2)
    assert torch.equal(shift(pictures, domain, seed=3, first=10), whole)
    for other in (shift(pictures, domain, seed=4, first=10), shift(pictures, domain, seed=3, first=11)):
        assert not torch.equal(other, whole)
    same = shift(pictures[:1].repeat(2, 1, 1, 1), domain, seed=3)
    assert not torch.equal(same[0], same[1])
    assert shift(pictures[:0], domain, seed=3).shape == (0, 3, 24, 24)


@pytest.mark.parametrize("domain", SHIFTED)
def test_the_pixels_are_those_of_this_renderer(domain: str, pictures: Tensor) -> None:
    # A change here needs another domains.RENDERER: stored pictures are keyed by it.
    assert domains.RENDERER == 1
    found = hashlib.sha256(shift(pictures, domain, seed=0).numpy().tobytes()).hexdigest()[:16]
    assert found == HASHES[domain]


def test_night_is_darker_bluer_and_flatter(pictures: Tensor) -> None:
    found = shift(pictures, "night", 0).float()
    plain = pictures.float()
    assert (found.mean((1, 2, 3)) < 0.6 * plain.mean((1, 2, 3))).all()
    blue, was = (x[:, 2].mean((1, 2)) / x.mean((1, 2, 3)) for x in (found, plain))
    assert (blue > was).all()
    assert (found.std((1, 2, 3)) < plain.std((1, 2, 3))).all()


def test_a_sketch_is_pale_paper_with_strokes_at_edges() -> None:
    picture = torch.full((1, 3, 32, 32), 230, dtype=torch.uint8)
    picture[..., 16:] = torch.tensor([40, 40, 200], dtype=torch.uint8).view(3, 1, 1)
    found = shift(picture, "sketch", 0).float()[0]
    left, before, after, right = (
        found[..., a:b].mean((1, 2)) for a, b in ((2, 12), (15, 16), (16, 17), (20, 30))
    )
    assert (left > 225).all() and (right > 70).all(), "the colours are a wash on white"
    assert float(right.max() - right.min()) < 0.55 * 160, "and paler than they were"
    assert (before < left - 60).all() and (after < right - 60).all(), "a stroke darkens both sides"


def test_infrared_has_one_channel_and_a_brightness_that_is_warmest() -> None:
    grey = torch.tensor([20, 110, 190, 255], dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    found = shift(grey, "infrared", 0)
    assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 0], found[:, 2])
    cold, mild, hot, bright = found.float().mean((1, 2, 3)).tolist()
    assert cold < mild < hot and bright < hot - 80
    red = (
        torch.tensor([[190, 60, 20], [20, 60, 190]], dtype=torch.uint8).view(2, 3, 1, 1).expand(2, 3, 16, 16)
    )
    warm = shift(red, "infrared", 0).float().mean((1, 2, 3))
    assert warm[0] > warm[1] + 30


def test_unknown_domain(pictures: Tensor) -> None:
    with pytest.raises(UserError, match=r'data\.domain=nigth: unknown \(nearest: "night"\); expected one of'):
        shift(pictures, "nigth", 0)
