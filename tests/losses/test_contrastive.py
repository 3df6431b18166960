"""Contrastive losses against recorded numbers and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from golden_cases import assert_golden, read

from vlkd.errors import UserError
from vlkd.losses import CRDMemory, clip_loss, crd, grounding_loss, nt_xent
from vlkd.losses.memory import similarities


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


def test_nt_xent_golden() -> None:
    case = read("kd3_contrastive_t03")
    assert_golden(lambda d: nt_xent(d["x1"], d["x2"], case["t"].item()), case, ["x1", "x2"])


def test_nt_xent_by_loops() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 6).double(), torch.randn(4, 6).double()
    vectors = [*a, *b]
    total = 0.0
    for i, anchor in enumerate(vectors):
        scores = [F.cosine_similarity(anchor, other, dim=0).item() / 0.2 for other in vectors]
        others = [math.exp(score) for j, score in enumerate(scores) if j != i]
        total -= scores[(i + 4) % 8] - math.log(sum(others))
    assert nt_xent(a, b, 0.2).item() == pytest.approx(total / 8)
    assert nt_xent(a[:1], b[:1]) == 0


def test_nt_xent_float32_inside_autocast() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 6), torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(a, b)
    assert torch.equal(inside, nt_xent(a, b))
    with pytest.raises(UserError, match="one shape"):
        nt_xent(a, b[:4])


def test_crd_golden_in_two_calls() -> None:
    case = read("mdistiller_crd")
    memory = CRDMemory(200, 16, 32, case["nce_T"].item(), case["momentum"].item())
    memory.student.copy_(case["memory_v1_init"])
    memory.teacher.copy_(case["memory_v2_init"])
    for call in range(2):
        features = case[f"f_s_{call}"].requires_grad_()
        s = F.normalize(F.linear(features, case["embed_s_w"], case["embed_s_b"]))
        t = F.normalize(F.linear(case[f"f_t_{call}"], case["embed_t_w"], case["embed_t_b"]))
        contrast, temperature = case[f"contrast_index_{call}"], case["nce_T"]
        raw = [
            similarities(vectors.detach(), bank.clone(), contrast)
            for vectors, bank in ((s, memory.teacher), (t, memory.student))
        ]
        loss = crd(s, t, case[f"index_{call}"], memory, contrast)
        torch.testing.assert_close(loss.detach(), case[f"loss_{call}"], rtol=1e-5, atol=0)
        (gradient,) = torch.autograd.grad(loss, features)
        expected = case[f"grad_f_s_{call}"]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=2e-5 * expected.abs().max().item())
        torch.testing.assert_close(memory.log_partition.exp(), case[f"Z_{call}"], rtol=1e-5, atol=0)
        for key, values, log_z in zip(("out_s", "out_t"), raw, memory.log_partition, strict=True):
            found = (values / temperature - log_z).exp()
            torch.testing.assert_close(found, case[f"{key}_{call}"][..., 0], rtol=1e-5, atol=0)
        torch.testing.assert_close(memory.student, case[f"memory_v1_after_{call}"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(memory.teacher, case[f"memory_v2_after_{call}"], rtol=1e-5, atol=1e-6)


def test_crd_golden_in_float64() -> None:
    case = read("vidlankd_crd_memory")
    temperature = case["ref_step0_params_after"][1].item()
    memory = CRDMemory(40, 8, 6, temperature, 0.5).double()
    memory.student.copy_(case["memory_v1_init"])
    memory.teacher.copy_(case["memory_v2_init"])
    for step in range(3):
        features = case[f"step{step}_f_s"].requires_grad_()
        s = F.normalize(F.linear(features, case["embed_s_w"], case["embed_s_b"]))
        t = F.normalize(F.linear(case[f"step{step}_f_t"], case["embed_t_w"], case["embed_t_b"]))
        loss = crd(s, t, case[f"step{step}_y"], memory, case[f"ref_step{step}_contrast_idx"])
        torch.testing.assert_close(loss.detach(), case[f"ref_step{step}_loss"][0], rtol=1e-9, atol=0)
        (gradient,) = torch.autograd.grad(loss, features)
        torch.testing.assert_close(gradient, case[f"ref_step{step}_grad_f_s"], rtol=1e-8, atol=1e-10)
        partition = case[f"ref_step{step}_params_after"][2:4]
        torch.testing.assert_close(memory.log_partition.exp(), partition, rtol=1e-9, atol=0)
    torch.testing.assert_close(memory.student, case["ref_step2_memory_v1"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(memory.teacher, case["ref_step2_memory_v2"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("items", [20, 400])
def test_crd_gradient_of_both_sides(items: int) -> None:
    torch.manual_seed(1)
    memory = CRDMemory(items, 4, negatives=7, temperature=0.5).double().eval()
    memory.fix(torch.tensor([2.0, 3.0]))
    rows = torch.tensor([3, 0, 9])
    contrast = memory.draw(rows)
    inputs = [torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda s, t: crd(s, t, rows, memory, contrast), inputs)


def test_crd_changes_its_memory_once_a_step_in_training_only() -> None:
    torch.manual_seed(2)
    memory, rows = CRDMemory(9, 4, negatives=3), torch.tensor([2, 6])
    batch = unit(2, 4), unit(2, 4)
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    crd(*batch, rows, memory.eval())
    crd(*batch, rows, memory.train(), update=False)
    for name, value in memory.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    crd(*batch, rows, memory)
    partition = memory.log_partition.clone()
    assert partition.isfinite().all() and not torch.equal(memory.student, before["student"])
    crd(unit(2, 4), unit(2, 4), rows, memory)
    assert torch.equal(memory.log_partition, partition)


def test_crd_at_a_low_temperature_is_finite() -> None:
    torch.manual_seed(3)
    memory, rows = CRDMemory(9, 4, negatives=3, temperature=0.005), torch.tensor([2, 6])
    s = unit(2, 4).requires_grad_()
    memory.teacher[rows] = s.detach()
    loss = crd(s, unit(2, 4), rows, memory)
    loss.backward()
    assert loss.isfinite() and s.grad is not None and s.grad.isfinite().all()


def test_crd_refuses_what_does_not_fit() -> None:
    memory = CRDMemory(9, 4, negatives=3)
    with pytest.raises(UserError, match="indices 2 to 9 in a memory of 9"):
        crd(unit(2, 4), unit(2, 4), torch.tensor([2, 9]), memory)
    with pytest.raises(UserError, match=r"expected \(2, 4\)"):
        crd(unit(2, 5), unit(2, 5), torch.tensor([2, 3]), memory)
