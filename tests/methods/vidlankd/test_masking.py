"""Hidden words: rates, what is never hidden, and that they depend on nothing but seed, epoch and index."""

from __future__ import annotations

import torch

from vlkd.methods.vidlankd.masking import hide_words, uniform

ORDINARY = torch.arange(5, 1005)
MASK_ID = 4


def hidden(
    ids: torch.Tensor, indices: torch.Tensor, seed: int = 7, epoch: int = 0
) -> tuple[torch.Tensor, ...]:
    return hide_words(ids, torch.ones_like(ids), indices, ORDINARY, MASK_ID, seed, epoch)


def test_numbers_are_splitmix64() -> None:
    limit = 2**64

    def mixed(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % limit
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % limit
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % limit
        return x ^ (x >> 31)

    found = uniform(2**61 + 3, 5, torch.tensor([11, 2**40]), 3, 2)
    for row, index in enumerate((11, 2**40)):
        for place in range(3):
            state = mixed(mixed(mixed(2**61 + 3) ^ 5) ^ index)
            assert found[row, place] == (mixed(mixed(state ^ place) ^ 2) >> 11) / 2**53
    # Steele, Lea and Flood's generator, first number of seed 0.
    assert mixed(0) == 0xE220A8397B1DCDAF


def test_rates_are_those_of_bert() -> None:
    ids = ORDINARY[torch.randint(1000, (400, 100), generator=torch.Generator().manual_seed(0))]
    new, which = hidden(ids, torch.arange(400))
    count = which.sum().item()
    assert abs(count / which.numel() - 0.15) < 0.006
    masked, kept = (new == MASK_ID) & which, (new == ids) & which
    assert abs(masked.sum().item() / count - 0.8) < 0.02
    assert abs(kept.sum().item() / count - 0.1) < 0.02
    random = new[which & ~masked & ~kept]
    assert torch.isin(random, ORDINARY).all() and len(random.unique()) > 350
    assert torch.equal(new[~which], ids[~which])


def test_padding_and_special_tokens_are_never_hidden() -> None:
    ids = torch.randint(0, 9, (200, 50), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(50) < torch.arange(200)[:, None] % 50
    new, which = hide_words(ids, mask, torch.arange(200), ORDINARY, MASK_ID, 1, 0, rate=1.0)
    assert torch.equal(which, mask & (ids >= 5))
    assert torch.equal(new[~which], ids[~which])


def test_a_sequence_is_hidden_the_same_whatever_the_batch_and_its_length() -> None:
    ids = ORDINARY[torch.randint(1000, (8, 20), generator=torch.Generator().manual_seed(0))]
    places = torch.tensor([3, 9, 1, 70, 5, 6, 2, 8])
    new, which = hidden(ids, places)
    order = torch.tensor([5, 0, 3])
    again, which_again = hidden(torch.nn.functional.pad(ids[order], (0, 6), value=9), places[order])
    assert torch.equal(again[:, :20], new[order]) and torch.equal(which_again[:, :20], which[order])
    for other in (hidden(ids, places, epoch=1), hidden(ids, places, seed=8), hidden(ids, places + 100)):
        assert not torch.equal(other[1], which)
