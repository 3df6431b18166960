"""The memory of CRD: what it keeps, how it changes, whom it offers as negatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vlkd.errors import UserError
from vlkd.losses import CRDMemory, crd
from vlkd.losses.memory import similarities, weighted_rows


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_state_survives_saving() -> None:
    torch.manual_seed(0)
    first, second = CRDMemory(12, 4, negatives=5), CRDMemory(12, 4, negatives=5)
    crd(unit(3, 4), unit(3, 4), torch.tensor([0, 5, 7]), first)
    assert set(first.state_dict()) == {"student", "teacher", "log_partition"}
    second.load_state_dict(first.state_dict())
    batch = unit(3, 4), unit(3, 4), torch.tensor([1, 5, 2])
    contrast = first.draw(batch[2])
    assert crd(*batch, first, contrast) == crd(*batch, second, contrast)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_update_moves_only_the_rows_of_the_batch() -> None:
    torch.manual_seed(1)
    memory = CRDMemory(6, 4, momentum=0.25)
    before, rows = memory.student.clone(), torch.tensor([4, 1])
    s, t = unit(2, 4), unit(2, 4)
    memory.update(s, t, rows)
    torch.testing.assert_close(memory.student[rows], F.normalize(0.25 * before[rows] + 0.75 * s))
    kept = torch.tensor([0, 2, 3, 5])
    assert torch.equal(memory.student[kept], before[kept])
    torch.testing.assert_close(memory.teacher[rows].norm(dim=1), torch.ones(2))


def test_the_generator_decides_the_negatives() -> None:
    memory, rows = CRDMemory(50, 4, negatives=20), torch.tensor([3, 30])
    drawn = [memory.draw(rows, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    states = [CRDMemory(9, 4, generator=torch.Generator().manual_seed(7)).teacher for _ in range(2)]
    assert torch.equal(*states)


def test_every_other_sample_can_be_a_negative() -> None:
    memory, rows = CRDMemory(5, 2, negatives=4000), torch.tensor([0, 2, 4])
    drawn = memory.draw(rows, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 0], rows)
    for row, places in zip(rows, drawn[:, 1:], strict=True):
        counts = places.bincount(minlength=5)
        assert counts[row] == 0
        # 1000 expected of each; five standard deviations of the binomial are 137.
        assert (counts[torch.arange(5) != row] - 1000).abs().max() < 137


def test_negatives_are_of_other_classes() -> None:
    labels = torch.tensor([2, 0, 2, 1, 0, 2])
    memory, rows = CRDMemory(6, 2, negatives=500, labels=labels), torch.arange(6)
    drawn = memory.draw(rows, torch.Generator().manual_seed(0))[:, 1:]
    assert (labels[drawn] != labels[:, None]).all()
    for row in rows:
        assert set(drawn[row].tolist()) == {i for i in range(6) if labels[i] != labels[row]}


@pytest.mark.parametrize("items", [40, 4000])
def test_similarities_and_weighted_rows_in_both_forms(items: int) -> None:
    torch.manual_seed(2)
    vectors, bank, weights = torch.randn(3, 8).double(), torch.randn(items, 8).double(), torch.randn(3, 6)
    places = torch.randint(items, (3, 6))
    places[:, 1] = places[:, 0]
    torch.testing.assert_close(
        similarities(vectors, bank, places), torch.einsum("bd,bjd->bj", vectors, bank[places])
    )
    torch.testing.assert_close(
        weighted_rows(weights.double(), bank, places),
        torch.einsum("bj,bjd->bd", weights.double(), bank[places]),
    )


def test_large_gathers_go_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    vectors, bank, places = torch.randn(5, 8), torch.randn(900, 8), torch.randint(900, (5, 7))
    whole = similarities(vectors, bank, places)
    monkeypatch.setattr("vlkd.losses.memory._GATHER_LIMIT", 2 * 7 * 8)
    torch.testing.assert_close(similarities(vectors, bank, places), whole)


def test_no_possible_negative() -> None:
    with pytest.raises(UserError, match="there is no negative"):
        CRDMemory(3, 2, labels=torch.ones(3, dtype=torch.long))
    with pytest.raises(UserError, match="memory of 3 samples got 2 labels"):
        CRDMemory(3, 2, labels=torch.arange(2))
