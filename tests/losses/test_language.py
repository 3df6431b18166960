"""Losses of a language student against recorded numbers and plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from golden_cases import read
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses import (
    MemoryCRD,
    crd,
    hidden_l2,
    hinge_all,
    hinge_half,
    infonce,
    nst_tokens,
    nt_xent,
    soft_label,
    token_contrastive,
)

B, L, D = 3, 5, 4
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
DTYPES = [("f64", torch.float64), ("f32", torch.float32)]

Loss = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
OF_STATES: dict[str, Loss] = {
    f"{name} {normalise}": loss
    for normalise in ("clean", "repo")
    for name, loss in {
        "nst": lambda s, t, m, n=normalise: nst_tokens(s, t, m, n),
        "position": lambda s, t, m, n=normalise: token_contrastive(s, t, 0.3, "position", n, m),
        "flat": lambda s, t, m, n=normalise: token_contrastive(s, t, 0.3, "flat", n, m),
    }.items()
} | {"soft_label": lambda s, t, m: soft_label(s, t, m, 2.0), "hidden_l2": hidden_l2}
OF_VIDEOS: dict[str, Loss] = {"half": hinge_half, "all": hinge_all, "infonce": infonce}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(random(*shape, seed=seed), dim=-1)


def states(seed: int = 0) -> tuple[Tensor, Tensor]:
    return random(B, L, D, seed=seed), random(B, L, D, seed=seed + 1)


def inputs(name: str) -> tuple[Loss, Tensor, Tensor]:
    """A loss with what it compares: states, or unit texts and videos."""
    if name in OF_STATES:
        return OF_STATES[name], *states()
    return OF_VIDEOS[name], unit(B, L, D), unit(B, D, seed=1)


def close(found: Tensor, expected: Tensor, kind: str) -> None:
    if kind == "f64":
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    else:
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5 * scale)


def check(loss: Callable[..., Tensor], trained: list[Tensor], expected: list[Tensor], kind: str) -> None:
    """Value, then the gradients with regard to the tensors trained."""
    trained = [x.requires_grad_() for x in trained]
    value = loss(*trained)
    close(value.detach(), expected[0], kind)
    for found, right in zip(torch.autograd.grad(value, trained), expected[1:], strict=True):
        close(found, right, kind)


@pytest.mark.parametrize(("kind", "dtype"), DTYPES)
def test_nst_golden(kind: str, dtype: torch.dtype) -> None:
    case = read("vidlankd_nst")
    s, t = case["use_student"].to(dtype), case["use_teacher_raw"].to(dtype)
    value, gradient = case[f"use_kd1_{kind}"], case[f"use_grad_student_{kind}"]
    check(lambda s: nst_tokens(s, t, normalise="repo"), [s], [value, gradient], kind)
    # The teacher's term is constant: only the divisor, 10 tokens or 4 sequences, changes the gradient.
    clean = case["use_gram_full_mmd_f64"].mean()
    check(lambda s: nst_tokens(s, t), [s], [clean.to(dtype), gradient * 10 / 4], kind)


@pytest.mark.parametrize("temperature", ["1.0", "0.5", "0.07"])
@pytest.mark.parametrize(("kind", "dtype"), DTYPES)
def test_contrast_by_position_golden(kind: str, dtype: torch.dtype, temperature: str) -> None:
    case, tau = read("vidlankd_crd_inbatch"), float(temperature)
    s, t = case["student"].to(dtype), case["teacher_raw"].to(dtype)
    value, gradient = (case[f"{key}_T{temperature}_{kind}"] for key in ("kd2", "grad_student"))
    check(lambda s: token_contrastive(s, t, tau, normalise="repo"), [s], [value, gradient], kind)
    check(lambda s: token_contrastive(s, t, tau), [s], [10 * value, 10 * gradient], kind)
    for mode in ("position", "flat"):
        for i, expected in enumerate(case[f"per_pos_T{temperature}_f64"]):
            one = token_contrastive(s[:, i : i + 1], t[:, i : i + 1], tau, mode, "repo").detach()
            close(one, expected.to(dtype), kind)


@pytest.mark.parametrize("margin", [1.0, 0.5])
@pytest.mark.parametrize("batch", ["even", "odd"])
@pytest.mark.parametrize(("kind", "dtype"), DTYPES)
def test_hinge_half_golden(kind: str, dtype: torch.dtype, batch: str, margin: float) -> None:
    case = read("vidlankd_hinge")
    text, video, mask = (case[f"{batch}_{key}"] for key in ("lang", "visn", "mask"))
    key = f"{batch}_paired_m{margin}"
    check(
        lambda u, v: hinge_half(F.normalize(u, dim=-1), F.normalize(v, dim=-1), mask, margin),
        [text.to(dtype), video.to(dtype)],
        [case[f"{key}_{kind}"], case[f"{key}_gradlang_{kind}"], case[f"{key}_gradvisn_{kind}"]],
        kind,
    )


@pytest.mark.parametrize("margin", [1.0, 0.5])
def test_hinge_all_is_the_recorded_one_without_anchors_that_are_padding(margin: float) -> None:
    case = read("vidlankd_hinge")
    u, v = (F.normalize(case[key].double(), dim=-1) for key in ("bw_lang", "bw_visn"))
    mask, padding = case["bw_mask"], 0.0
    for a in range(4):
        for b in range(4):
            for i in range(6):
                if a != b and mask[a, i] and not mask[b, i]:
                    padding += max(0.0, margin - float(u[b, i] @ v[b]) + float(u[a, i] @ v[b]))
    assert padding > 0
    expected = case[f"bw_intended_m{margin}_f64"].item() - padding / (4 * int(mask.sum()))
    assert hinge_all(u, v, mask, margin).item() == pytest.approx(expected, rel=1e-12)


def test_soft_label_and_l2_golden() -> None:
    case = read("vidlankd_softlabel_l2_rbf")
    found = soft_label(case["student_logits"], case["teacher_logits"], case["mask"])
    close(found, case["soft_ce_masked_mean"], "f64")
    found = hidden_l2(case["l2_student"], case["l2_teacher"], case["mask"])
    close(found, case["l2_sum_over_dim_mean_over_tokens"], "f64")
    close(hidden_l2(case["l2_student"], case["l2_teacher"], None) / 8, case["mse_mean"], "f64")


def test_memory_crd_golden_in_three_steps() -> None:
    case = read("vidlankd_crd_memory")
    memory = MemoryCRD(40, 8, 6, case["ref_step0_params_after"][1].item(), 0.5).double()
    memory.student.copy_(case["memory_v1_init"])
    memory.teacher.copy_(case["memory_v2_init"])
    for step in range(3):
        teacher = F.linear(case[f"step{step}_f_t"], case["embed_t_w"], case["embed_t_b"])
        rows, contrast = case[f"step{step}_y"], case[f"ref_step{step}_contrast_idx"]

        def loss(features: Tensor, teacher=teacher, rows=rows, contrast=contrast) -> Tensor:
            student = F.linear(features, case["embed_s_w"], case["embed_s_b"])
            return memory(student, teacher, rows, contrast)

        expected = [case[f"ref_step{step}_{key}"] for key in ("loss", "grad_f_s")]
        check(loss, [case[f"step{step}_f_s"]], [expected[0][0], expected[1]], "f64")
        close(memory.log_partition.exp(), case[f"ref_step{step}_params_after"][2:4], "f64")
    close(memory.student, case["ref_step2_memory_v1"], "f64")
    close(memory.teacher, case["ref_step2_memory_v2"], "f64")


def test_nst_is_that_of_the_tokens_alone() -> None:
    """Cut-out sequences in the neuron form, pair of coordinates by pair; widths may differ."""
    s, t = random(B, L, D), random(B, L, 7, seed=1)
    whole, without = [], []
    for b in range(B):
        x, y = (F.normalize(F.normalize(z[b, MASK[b]], dim=1), dim=0).T for z in (s, t))
        ss, st, tt = (
            sum(float(p @ q) ** 2 for p in i for q in j) / (len(i) * len(j))
            for i, j in ((x, x), (x, y), (y, y))
        )
        whole.append(ss - 2 * st + tt)
        without.append(ss - 2 * st)
    assert nst_tokens(s, t, MASK).item() == pytest.approx(sum(whole) / B)
    assert nst_tokens(s, t, MASK, "repo").item() == pytest.approx(sum(without) / L)


def test_nst_averages_over_sequences_that_have_a_token() -> None:
    s, t = states()
    mask = MASK.clone()
    mask[1] = False
    torch.testing.assert_close(nst_tokens(s, t, mask), nst_tokens(s[::2], t[::2], MASK[::2]))
    assert nst_tokens(s, s).item() == pytest.approx(0, abs=1e-30)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(nst_tokens(s[..., order], t), nst_tokens(s, t))


def test_contrast_by_position_is_nt_xent_at_each() -> None:
    s, t = states()
    anchors, repo = [], []
    for i in range(L):
        a, b = s[MASK[:, i], i], t[MASK[:, i], i]
        value = nt_xent(a, b, 0.3).item()
        anchors += [value] * (2 * len(a))
        repo.append(value / (2 * len(a)))
    assert token_contrastive(s, t, 0.3, mask=MASK).item() == pytest.approx(sum(anchors) / len(anchors))
    found = token_contrastive(s, t, 0.3, normalise="repo", mask=MASK)
    assert found.item() == pytest.approx(sum(repo) / L)
    empty = MASK.clone()
    empty[:, 0] = False  # a position without any token is no position
    found = token_contrastive(s, t, 0.3, normalise="repo", mask=empty)
    assert found.item() == pytest.approx(sum(repo[1:]) / (L - 1))


def test_flat_contrast_by_loops() -> None:
    s, t = states()
    vectors = [*s[MASK], *t[MASK]]
    count, total = len(vectors) // 2, 0.0
    for i, anchor in enumerate(vectors):
        scores = [F.cosine_similarity(anchor, other, dim=0).item() / 0.3 for other in vectors]
        others = [math.exp(score) for j, score in enumerate(scores) if j != i]
        total -= scores[(i + count) % len(vectors)] - math.log(sum(others))
    found = token_contrastive(s, t, 0.3, "flat", mask=MASK)
    assert found.item() == pytest.approx(total / (2 * count))
    repo = token_contrastive(s, t, 0.3, "flat", "repo", MASK)
    assert repo.item() == pytest.approx(total / (2 * count) ** 2)


def test_one_sequence_has_nothing_to_contrast() -> None:
    s, t = states()
    assert token_contrastive(s[:1], t[:1], 0.3).item() == 0
    assert token_contrastive(s[:1, :1], t[:1, :1], 0.3, "flat").item() == 0
    assert infonce(unit(1, L, D), unit(1, D), None).item() == 0
    assert hinge_all(unit(1, L, D), unit(1, D), None).item() == 0


def test_soft_label_and_l2_by_loops() -> None:
    s, t = states()
    entropy, crossed, squares, count = 0.0, 0.0, 0.0, 0
    for b in range(B):
        for i in range(L):
            if MASK[b, i]:
                p, q = (x[b, i].div(2).softmax(0) for x in (t, s))
                crossed -= 4 * sum(float(p[k] * q[k].log()) for k in range(D))
                entropy -= 4 * sum(float(p[k] * p[k].log()) for k in range(D))
                squares += float((s[b, i] / s[b, i].norm() - t[b, i] / t[b, i].norm()).square().sum())
                count += 1
    assert soft_label(s, t, MASK, 2.0).item() == pytest.approx(crossed / count)
    assert soft_label(t, t, MASK, 2.0).item() == pytest.approx(entropy / count)
    assert hidden_l2(s, t, MASK).item() == pytest.approx(squares / count)
    assert hidden_l2(s, 3 * s, None).item() == pytest.approx(0, abs=1e-30)
    assert hidden_l2(s, -s, None).item() == pytest.approx(4)


@pytest.mark.parametrize("batch", [3, 4])
def test_hinges_and_infonce_by_loops(batch: int) -> None:
    u, v = unit(batch, L, D), unit(batch, D, seed=1)
    mask = MASK[[0, 1, 2, 1][:batch]]
    rows = [*range(batch)] + [batch - 1] * (batch % 2)
    half, whole, nce, twice, count = 0.0, 0.0, 0.0, 0, int(mask.sum())
    for k, a in enumerate(rows):
        partner = rows[(k + len(rows) // 2) % len(rows)]
        for i in range(L):
            if mask[a, i]:
                half += max(0.0, 0.4 - float(u[a, i] @ v[a]) + float(u[a, i] @ v[partner]))
                twice += 1
    for a in range(batch):
        for i in range(L):
            if mask[a, i]:
                own, scores = float(u[a, i] @ v[a]), [float(u[a, i] @ w) for w in v]
                nce -= own / 0.2 - math.log(sum(math.exp(score / 0.2) for score in scores))
                for b in range(batch):
                    if b != a:
                        whole += max(0.0, 0.4 - own + scores[b])
                        if mask[b, i]:
                            whole += max(0.0, 0.4 - float(u[b, i] @ v[b]) + scores[b])
    assert hinge_half(u, v, mask, 0.4).item() == pytest.approx(half / twice)
    assert hinge_all(u, v, mask, 0.4).item() == pytest.approx(whole / (count * batch))
    assert infonce(u, v, mask, 0.2).item() == pytest.approx(nce / count)


def test_hinge_half_of_one_is_the_margin() -> None:
    u, v = unit(1, L, D).requires_grad_(), unit(1, D, seed=1)
    loss = hinge_half(u, v, MASK[:1], 0.7)
    loss.backward()
    assert loss.item() == pytest.approx(0.7) and u.grad is not None and u.grad.abs().max() == 0


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("name", [*OF_STATES, *OF_VIDEOS])
def test_gradients(name: str, mask: Tensor | None) -> None:
    loss, first, second = inputs(name)
    second.requires_grad_(name in OF_VIDEOS)
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, mask), (first.requires_grad_(), second))


@pytest.mark.parametrize("name", [*OF_STATES, *OF_VIDEOS])
def test_the_mask_alone_says_what_counts(name: str) -> None:
    """Values at masked tokens change nothing and get exactly no gradient; a zero is no mask; 0/1 will do."""
    loss, first, second = inputs(name)
    expected = loss(first, second, MASK)
    for value in (0.0, 1e30, math.inf, math.nan):
        x = first.masked_fill(~MASK[..., None], value).requires_grad_()
        other = second if name in OF_VIDEOS else second.masked_fill(~MASK[..., None], value)
        found = loss(x, other, MASK.long())
        found.backward()
        assert x.grad is not None and (x.grad[~MASK] == 0).all()
        assert x.grad.isfinite().all() and x.grad[MASK].abs().sum() > 0
        torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=0)
    zero = first.clone()
    zero[0, 0] = 0
    assert loss(zero, second, MASK) != loss(zero, second, MASK & (zero != 0).any(2))
    torch.testing.assert_close(
        loss(first, second, None), loss(first, second, torch.ones(B, L)), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", [*OF_STATES, *OF_VIDEOS])
def test_without_any_token_the_loss_is_zero(name: str) -> None:
    loss, first, second = inputs(name)
    value = loss(first.requires_grad_(), second, torch.zeros(B, L, dtype=torch.bool))
    value.backward()
    assert value.item() == 0 and first.grad is not None and (first.grad == 0).all()


@pytest.mark.parametrize("name", OF_STATES)
def test_the_teacher_gets_no_gradient(name: str) -> None:
    loss, s, t = inputs(name)
    loss(s.requires_grad_(), t.requires_grad_(), MASK).backward()
    assert t.grad is None and s.grad is not None


@pytest.mark.parametrize("name", [*OF_STATES, *OF_VIDEOS])
def test_full_precision_inside_autocast(name: str) -> None:
    loss, first, second = inputs(name)
    exact = loss(first, second, MASK)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(first.float(), second.float(), MASK)
        half = loss(first.bfloat16(), second.bfloat16(), MASK)
    assert exact.dtype == torch.float64 and found.dtype == half.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)
    assert half == loss(first.bfloat16().float(), second.bfloat16().float(), MASK)


def test_memory_crd_takes_a_sequence_as_the_mean_of_its_tokens() -> None:
    first, second = (MemoryCRD(9, D, 3, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    s, t = (x.float() for x in states())
    rows = torch.tensor([7, 2, 4])
    contrast = first.draw(rows, torch.Generator().manual_seed(1))
    mask = MASK.clone()
    mask[1] = False  # this sequence takes no part
    vectors = [
        torch.stack(
            [
                F.normalize(sum(F.normalize(z[b, i], dim=0) for i in range(L) if mask[b, i]), dim=0)
                for b in (0, 2)
            ]
        )
        for z in (s, t)
    ]
    before = first.student.clone()
    expected = crd(*vectors, rows[::2], second, contrast[::2])
    torch.testing.assert_close(first(s, t, rows, contrast, mask), expected)
    torch.testing.assert_close(first.student, second.student)
    changed = (first.student != before).any(1).nonzero().flatten()
    assert changed.tolist() == [4, 7]
    kept = {name: value.clone() for name, value in first.state_dict().items()}
    s.requires_grad_()
    nothing = first(s, t, rows, contrast, torch.zeros(B, L))
    nothing.backward()
    assert nothing.item() == 0 and s.grad is not None and (s.grad == 0).all()
    assert all(torch.equal(value, kept[name]) for name, value in first.state_dict().items())


def test_memory_crd_gradient_and_draws() -> None:
    memory = MemoryCRD(20, D, 6, temperature=0.5).double().eval()
    memory.fix(torch.tensor([2.0, 3.0]))
    rows = torch.tensor([7, 2, 4])
    contrast = memory.draw(rows)
    s, t = states()
    assert torch.autograd.gradcheck(lambda s: memory(s, t, rows, contrast, MASK), s.requires_grad_())
    assert torch.autograd.gradcheck(lambda s: memory(s, t[:, 0], rows, contrast), s[:, 0])
    with torch.autocast("cpu", torch.bfloat16):
        inside = memory(s.float(), t.float(), rows, contrast, MASK)
    torch.testing.assert_close(inside, memory(s, t, rows, contrast, MASK).float(), rtol=1e-5, atol=0)
    values = [memory(s, t, rows, generator=torch.Generator().manual_seed(seed)).item() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    t.requires_grad_()
    memory(s, t, rows, contrast).backward()
    assert t.grad is None and (s.grad != 0).any()


@pytest.mark.parametrize("name", OF_VIDEOS)
def test_a_token_is_compared_with_the_vector_most_like_it(name: str) -> None:
    loss: Callable[..., Tensor] = OF_VIDEOS[name]
    text, video = unit(B, L, D), unit(B, 6, D, seed=1)
    frames = random(B, 6, seed=2) > -0.5
    assert frames.any(1).all() and not frames.all()
    single = loss(text, video[:, :1], MASK)
    torch.testing.assert_close(single, loss(text, video[:, 0], MASK), rtol=1e-12, atol=0)
    # Each token by itself against the vectors that it would choose: a batch of texts with one token.
    total, scale = 0.0, 1.0
    for a, i in MASK.nonzero().tolist():
        best = [max(float(text[a, i] @ w) for w, some in zip(v, f, strict=True) if some)
                for v, f in zip(video, frames, strict=True)]  # fmt: skip
        if name == "half":
            pair = [*range(B), B - 1]
            places = [k for k in range(B + 1) if pair[k] == a]
            total += sum(max(0.0, 1 - best[a] + best[pair[(k + 2) % 4]]) for k in places)
            scale = MASK[pair].sum().item()
        elif name == "infonce":
            total += math.log(sum(math.exp((x - best[a]) / 0.1) for x in best))
            scale = MASK.sum().item()
        else:
            total += sum(max(0.0, 1 - best[a] + best[b]) for b in range(B) if b != a)
            for b in range(B):
                if b != a and MASK[b, i]:
                    own = max(float(text[b, i] @ w) for w, s in zip(video[b], frames[b], strict=True) if s)
                    total += max(0.0, 1 - own + best[b])
            scale = B * MASK.sum().item()
    assert float(loss(text, video, MASK, frames=frames)) == pytest.approx(total / scale, rel=1e-12)
    video.requires_grad_()
    loss(text, video, MASK, frames=frames).backward()
    assert video.grad is not None and (video.grad[~frames] == 0).all() and video.grad.isfinite().all()


def test_other_shapes_and_words_are_one_line() -> None:
    s, t = states()
    u, v = unit(B, L, D), unit(B, D)
    with pytest.raises(
        UserError, match=r"nst_tokens: student \(3, 5, 4\) and teacher \(3, 4, 4\), .* batch and"
    ):
        nst_tokens(s, t[:, 1:])
    for loss in (hidden_l2, soft_label):
        with pytest.raises(UserError, match=rf"{loss.__name__}: .*\(3, 5, 3\).* a head to the student"):
            loss(s, t[..., 1:], MASK)
    with pytest.raises(UserError, match=r"token_contrastive: mask \(3, 4\), expected \(3, 5\): one flag"):
        token_contrastive(s, t, 1.0, mask=MASK[:, 1:])
    with pytest.raises(UserError, match="token_contrastive: mode 'all' is unknown; use 'position' or 'flat'"):
        token_contrastive(s, t, 1.0, "all")
    for call in (
        lambda: nst_tokens(s, t, None, "mean"),
        lambda: token_contrastive(s, t, 1.0, normalise="mean"),
    ):
        with pytest.raises(UserError, match="normalise 'mean' is unknown; use 'clean' or 'repo'"):
            call()
    for loss in (hinge_half, hinge_all, infonce):
        with pytest.raises(
            UserError, match=rf"{loss.__name__}: texts \(3, 5, 4\) and videos \(3, 5\), .*one pooled"
        ):
            loss(u, u[..., 0], MASK)
        with pytest.raises(UserError, match=rf"{loss.__name__}: .*videos \(3, 5, 4\), frames \(3, 4\), "):
            loss(u, u, MASK, frames=MASK[:, 1:])
        with pytest.raises(UserError, match=rf"{loss.__name__}: mask \(2, 5\)"):
            loss(u, v, MASK[:2])
    memory = MemoryCRD(9, D, 3)
    with pytest.raises(UserError, match=r"crd: .*expected \(3, 4\)"):
        memory(random(B, 6), random(B, 6), torch.arange(B))
    with pytest.raises(UserError, match="MemoryCRD: 2 indices of 3 sequences, expected one each"):
        memory(s, t, torch.arange(2))
    with pytest.raises(UserError, match=r"MemoryCRD: .*expected two"):
        memory(s[:, 0], t[:, 0], torch.arange(B), mask=MASK)
