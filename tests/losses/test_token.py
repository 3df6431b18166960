"""Losses of tokens against recorded numbers, the formulas written out, and properties."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from golden_cases import assert_golden, read
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses import (
    knn_edges,
    patch_tokens,
    trg_contextual,
    trg_global,
    trg_local,
    trg_local_dense,
    trg_temperature,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sampled() -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """The oracle's case: its nodes (P,D) of the teacher, of the student projected and raw."""
    case = read("trg_oracle_numpy")
    index = case["sample_index"][..., None]
    teacher, raw = (case[key].take_along_dim(index, 1).flatten(0, 1) for key in ("feat_t", "feat_s"))
    return case, teacher, raw @ case["proj_w"] + case["proj_b"], raw


def test_local_golden() -> None:
    case = read("trg_ref_lpw_rbf")
    case["loss"] = case["loss_mean_over_edges"]
    edges = case["edge_src"], case["edge_dst"]

    def loss(d: dict[str, Tensor]) -> Tensor:
        return trg_local(d["tokens_s"], d["tokens_t"], edges, "rbf", "edges")

    assert_golden(loss, case, ["tokens_s"])
    s, t = case["tokens_s"], case["tokens_t"]
    for reduction, key in (("nodes", "loss_mean_over_nodes"), ("sum", "loss_sum")):
        torch.testing.assert_close(trg_local(s, t, edges, reduction=reduction), case[key], rtol=1e-5, atol=0)
    found = {tuple(edge) for edge in torch.stack(knn_edges(t, 6), 1).tolist()}
    assert found == {tuple(edge) for edge in torch.stack(edges, 1).tolist()}


def test_global_golden() -> None:
    case = read("trg_ref_nce_t075")
    assert_golden(
        lambda d: trg_global(d["tokens_s"], d["tokens_t"], case["nce_T"].item()), case, ["tokens_s"]
    )


def test_knn_edges_oracle() -> None:
    case, teacher, projected, raw = sampled()
    for tokens, key in ((teacher, "knn_t"), (projected, "knn_s_projected"), (raw, "knn_s_raw")):
        source, target = knn_edges(tokens, 4)
        near = torch.zeros(20, 20, dtype=torch.bool)
        near[target, source] = True
        assert torch.equal(near, case[key])


@pytest.mark.parametrize("sigma", [1, 24])
def test_local_readings_oracle(sigma: int) -> None:
    case, teacher, projected, raw = sampled()
    readings = {
        "literal_KLst": (projected, "literal_KLst"),
        "literal_KLts": (projected, "literal_KLts"),
        "literal_raw": (raw, "literal_raw_KLts"),
        "tknn": (projected, "tknn_KLts"),
        "masked": (projected, "masked_KLts"),
    }
    for mode, (student, key) in readings.items():
        value = trg_local_dense(student, teacher, 4, sigma, mode)  # type: ignore[arg-type]
        torch.testing.assert_close(value, case[f"local_{key}_sigma{sigma}"], rtol=1e-7, atol=0)
    edges = knn_edges(teacher, 4)
    masked = trg_local(projected, teacher, edges, sigma=float(sigma))
    torch.testing.assert_close(20 * masked, case[f"local_masked_KLts_sigma{sigma}"], rtol=1e-7, atol=0)


def test_global_and_contextual_oracle() -> None:
    case, teacher, projected, _ = sampled()
    for tau in (0.5, 0.1, 0.07):
        value = 20 * trg_global(projected.unflatten(0, (4, 5)), teacher.unflatten(0, (4, 5)), tau)
        torch.testing.assert_close(value, case[f"global_sum_tau{tau}"], rtol=1e-7, atol=0)
    value = trg_contextual(case["feat_s"], case["feat_t"])
    torch.testing.assert_close(value, case["inner_mse"], rtol=1e-7, atol=0)


def test_patch_tokens_oracle() -> None:
    case = read("trg_oracle_patchify")
    assert torch.equal(patch_tokens(case["feat"], int(case["patch"])), case["tokens"])
    assert torch.equal(patch_tokens(case["feat"]), case["tokens_p1"])
    wide = random(2, 3, 4, 6)
    assert torch.equal(patch_tokens(wide, 2), F.unfold(wide, 2, stride=2).transpose(1, 2))


@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
def test_local_by_loops(kernel: str) -> None:
    s, t = random(7, 5), random(7, 3, seed=1)
    edges = torch.tensor([1, 2, 0, 5, 6, 1, 3]), torch.tensor([0, 0, 4, 4, 4, 2, 2])

    def distribution(x: Tensor, node: int) -> Tensor:
        near = [x[i] for i, j in zip(*edges, strict=True) if j == node]
        if kernel == "cosine":
            values = [F.cosine_similarity(x[node], other, dim=0) for other in near]
        else:
            values = [(-(x[node] - other).square().sum() / 2).exp() for other in near]
        return torch.stack(values).softmax(0)

    total = sum(
        (distribution(t, i) * (distribution(t, i) / distribution(s, i)).log()).sum() for i in (0, 2, 4)
    )
    found = {r: trg_local(s, t, edges, kernel, r) for r in ("sum", "nodes", "edges")}  # type: ignore[arg-type]
    torch.testing.assert_close(found["sum"], total)
    torch.testing.assert_close(found["nodes"], total / 7)
    torch.testing.assert_close(found["edges"], total / 7)


@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
def test_local_in_chunks(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s, t = random(12, 4).requires_grad_(), random(12, 4, seed=1)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        edges = knn_edges(t, 3)
        loss = trg_local(s, t, edges, kernel)  # type: ignore[arg-type]
        return edges[0], loss, torch.autograd.grad(loss, s)[0]

    whole = run()
    monkeypatch.setattr("vlkd.losses.token._LIMIT", 20)
    for found, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", ["literal_KLst", "literal_KLts", "tknn", "masked"])
def test_gradient_of_the_readings(mode: str) -> None:
    s, t = random(6, 4).requires_grad_(), random(6, 4, seed=1)
    assert torch.autograd.gradcheck(lambda x: trg_local_dense(x, t, 2, 3.0, mode), (s,))  # type: ignore[arg-type]


def test_equal_tokens_cost_nothing() -> None:
    tokens = random(9, 4).float()
    for mode in ("literal_KLst", "literal_KLts", "tknn", "masked"):
        assert trg_local_dense(tokens, tokens, 3, mode=mode) == 0  # type: ignore[arg-type]
    assert trg_contextual(tokens[None], tokens[None]) == 0
    assert trg_local(tokens[:1], tokens[:1], knn_edges(tokens[:1], 0)) == 0


def test_neighbours_far_from_the_origin() -> None:
    tokens = (100 + 0.01 * random(30, 4)).float()
    order = torch.cdist(tokens.double(), tokens.double()).fill_diagonal_(math.inf).argsort(1)[:, :3]
    assert torch.equal(knn_edges(tokens, 3)[0].view(30, 3), order)


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: trg_local(s, t, knn_edges(t, 2)),
        lambda s, t: trg_local_dense(s, t, 2, 4.0),
        lambda s, t: trg_global(s, t, 0.1),
        trg_contextual,
    ],
)
def test_float32_inside_autocast(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    s, t = random(2, 5, 4).bfloat16(), random(2, 5, 4, seed=1).bfloat16()
    expected = loss(s.float(), t.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(s, t)
        torch.testing.assert_close(loss(s.float(), t.float()), expected)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_temperature() -> None:
    assert [trg_temperature(p) for p in (-1, 0, 1, 2)] == pytest.approx([0.5, 0.5, 0.07, 0.07])
    assert trg_temperature(0.5, 1.0, 0.0) == pytest.approx(0.5)
    assert trg_temperature(0.25, 1.0, 0.0) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert trg_temperature(0.25, 0.9, 0.1, "linear") == pytest.approx(0.7)
    assert trg_temperature(0.9, 0.3, 0.1, "constant") == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patch_tokens(random(1, 2, 7, 7), 2), r"patch of 2 cells does not divide a map of \(7, 7\)"),
        (lambda: knn_edges(random(4, 2), 4), "k=4 nearest neighbours among 4 tokens"),
        (lambda: trg_global(random(4, 2), random(4, 3), 0.1), "project the student's"),
        (lambda: trg_contextual(random(1, 4, 2), random(1, 5, 2)), "the same B and N"),
        (lambda: trg_local(random(4, 2), random(5, 2), knn_edges(random(5, 2), 2)), "sample the same places"),
        (lambda: trg_local(random(4, 2), random(4, 2), knn_edges(random(4, 2), 2), "l2"), "rbf or cosine"),  # type: ignore[arg-type]
        (lambda: trg_local_dense(random(4, 2), random(4, 2), 2, mode="exact"), "reading 'exact'"),  # type: ignore[arg-type]
        (lambda: trg_temperature(0.5, shape="step"), "shape 'step' is unknown"),  # type: ignore[arg-type]
    ],
)
def test_one_clear_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
