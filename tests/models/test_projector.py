"""Projectors against recorded numbers, shapes, and the batch of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_cases import assert_golden, read
from torch import Tensor, nn

from vlkd.errors import UserError
from vlkd.models.projector import (
    FitNetRegressor,
    NDProjector,
    PromptProjector,
    ReviewFusion,
    SharedHeadProjector,
    TokenProjector,
    VIDRegressor,
)


@pytest.mark.parametrize("name", ["kd3_projector_same", "kd3_projector_down"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_shared_head_is_that_of_kd3(name: str, mode: str) -> None:
    case = read(name)
    state = {
        key.removeprefix("sd__").replace("__", "."): x for key, x in case.items() if key.startswith("sd__")
    }
    projector = SharedHeadProjector(12, 16, factor=2)
    projector.load_state_dict(state)
    head = nn.Linear(16, 10)
    head.load_state_dict({"weight": case["cls_weight"], "bias": case["cls_bias"]})
    projector.train(mode == "train")
    with torch.no_grad():
        student, teacher, logits = projector(case["feat_s"], case["feat_t"], head)
    torch.testing.assert_close(student, case[f"{mode}_trans_s"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(teacher, case[f"{mode}_trans_t"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, case[f"{mode}_logits"], rtol=1e-5, atol=1e-6)


def test_shared_head_pools_either_side() -> None:
    projector, head = SharedHeadProjector(3, 8).eval(), nn.Linear(8, 5)
    for student, teacher, grid in (((4, 4), (8, 8), (4, 4)), ((8, 2), (4, 6), (4, 2))):
        maps = torch.rand(2, 3, *student), torch.rand(2, 8, *teacher)
        a, b, logits = projector(*maps, head)
        assert a.shape == b.shape == (2, 8, *grid)
        assert torch.equal(b, F.adaptive_avg_pool2d(maps[1], grid))
        assert torch.allclose(logits, head(a.mean((2, 3))))


def test_fitnet_regressor_is_that_of_mdistiller() -> None:
    case = read("mdistiller_fitnet")
    regressor = FitNetRegressor(16, 24)
    regressor.load_state_dict(
        {
            "0.weight": case["conv_weight"],
            "0.bias": case["conv_bias"],
            "1.weight": case["bn_weight"],
            "1.bias": case["bn_bias"],
        },
        strict=False,
    )
    assert_golden(
        lambda x: F.mse_loss(regressor.to(x["f_s"].dtype)(x["f_s"]), x["f_t"]), case, trained=["f_s"]
    )


def test_vid_regressor_is_that_of_mdistiller() -> None:
    case = read("mdistiller_vid")
    regressor = VIDRegressor(
        16, 24, initial_variance=case["init_pred_var"].item(), epsilon=case["eps"].item()
    )
    torch.testing.assert_close(regressor.log_scale.detach(), case["log_scale"])
    assert regressor.log_scale.requires_grad
    regressor.mean.load_state_dict({f"{2 * i}.weight": case[f"reg_w{i}"] for i in range(3)})

    def loss(x: dict[str, Tensor]) -> Tensor:
        variance = (F.softplus(x["log_scale"]) + case["eps"]).view(1, -1, 1, 1)
        mean = regressor.to(x["f_s"].dtype)(x["f_s"])
        return (0.5 * ((mean - x["f_t"]) ** 2 / variance + variance.log())).mean()

    assert_golden(loss, case, trained=["f_s", "log_scale"])


def by_pixels(fusion: ReviewFusion, maps: list[Tensor]) -> list[Tensor]:
    """Attention based fusion written out, one pixel after the other."""
    stream: Any = None
    outputs = []
    for level, x in zip(list(fusion.levels)[::-1], maps[::-1], strict=True):
        own = level.enter(x)
        fused = own.clone()
        if stream is not None:
            for i in range(own.shape[2]):
                for j in range(own.shape[3]):
                    deeper = stream[
                        :, :, i * stream.shape[2] // own.shape[2], j * stream.shape[3] // own.shape[3]
                    ]
                    both = torch.cat([own[:, :, i, j], deeper], dim=1)
                    weight, bias = level.attention.weight[:, :, 0, 0], level.attention.bias
                    a = (both @ weight.T + bias).sigmoid()
                    fused[:, :, i, j] = a[:, :1] * own[:, :, i, j] + a[:, 1:] * deeper
        stream = fused
        outputs.append(level.leave(fused))
    return outputs[::-1]


def test_review_fusion_is_the_papers() -> None:
    torch.manual_seed(0)
    shapes = [(6, 8, 8), (9, 4, 4), (5, 1, 1)]
    fusion = ReviewFusion([3, 4, 8], shapes, width=7).eval()
    maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 8, 1, 1)]
    with torch.no_grad():
        found, expected = fusion(maps), by_pixels(fusion, maps)
    assert [tuple(x.shape[1:]) for x in found] == shapes
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_review_fusion_takes_other_grids_and_trains() -> None:
    shapes = [(6, 16, 16), (9, 2, 2), (5, 1, 1)]
    fusion = ReviewFusion([3, 4, 8], shapes)
    found = fusion([torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 8, 1, 1)])
    assert [tuple(x.shape[1:]) for x in found] == shapes
    sum(x.square().sum() for x in found).backward()
    assert all(parameter.grad is not None for parameter in fusion.parameters())
    with pytest.raises(UserError, match="3 levels of the student, 2 of the teacher"):
        ReviewFusion([3, 4, 8], shapes[:2])


def test_nd_projector() -> None:
    torch.manual_seed(0)
    projector, x = NDProjector(6, 4), torch.randn(32, 6)
    assert [type(part) for part in projector] == [nn.BatchNorm1d, nn.Dropout, nn.Linear]
    assert projector[1].p == 0.5
    dropped = projector(x)
    projector.eval()
    projector[0].reset_running_stats()
    scale = 1 / (1 + projector[0].eps) ** 0.5
    assert torch.allclose(projector(x), projector[2](x * scale), atol=1e-6)
    assert not torch.allclose(projector(x), dropped)


def test_prompt_projector_is_that_of_promptkd() -> None:
    case = read("promptkd_projector")
    projector = PromptProjector(64, 96)
    projector.load_state_dict(
        {
            key.removeprefix("before_layer"): x.flatten(1) if x.ndim == 4 else x
            for key, x in case.items()
            if key.startswith("before_layer")
        }
    )
    x = case["x_train"].requires_grad_()
    found = projector(x)
    torch.testing.assert_close(found, case["y_train"], rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(found.square().mean(), x)
    expected = case["grad_x_of_mean_square"]
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=2e-5 * expected.abs().max().item())
    torch.testing.assert_close(projector[1].running_mean, case["after_running_mean"])
    torch.testing.assert_close(projector[1].running_var, case["after_running_var"])
    with torch.no_grad():
        found = projector.eval()(case["x_eval"])
    torch.testing.assert_close(found, case["y_eval"], rtol=1e-4, atol=1e-6)


def test_prompt_projector_layers_and_widths() -> None:
    assert sum(x.numel() for x in PromptProjector(512, 768).parameters()) == 986_112
    linear = [part for part in PromptProjector(6, 4, layers=3, hidden=9) if isinstance(part, nn.Linear)]
    assert [(part.in_features, part.out_features) for part in linear] == [(6, 9), (9, 9), (9, 4)]
    single = PromptProjector(6, 4, layers=1)
    assert len(single) == 1 and single(torch.randn(1, 6)).shape == (1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert PromptProjector(6, 4)(torch.randn(3, 6).bfloat16()).dtype == torch.float32
    for layers in (0, 4):
        with pytest.raises(UserError, match=f"{layers} layers; expected 1, 2 or 3"):
            PromptProjector(6, 4, layers=layers)


def test_token_projector() -> None:
    assert TokenProjector(6, 4)(torch.randn(2, 9, 6)).shape == (2, 9, 4)


@pytest.mark.parametrize(
    "run",
    [
        lambda: NDProjector(6, 4)(torch.randn(1, 6)),
        lambda: PromptProjector(6, 4)(torch.randn(1, 6)),
        lambda: FitNetRegressor(6, 4)(torch.randn(1, 6, 1, 1)),
        lambda: SharedHeadProjector(6, 4)(torch.randn(1, 6, 1, 1), torch.randn(1, 4, 1, 1), nn.Linear(4, 2)),
        lambda: ReviewFusion([6], [(4, 1, 1)])([torch.randn(1, 6, 1, 1)]),
    ],
)
def test_batch_of_one_is_refused_in_one_line(run: Any) -> None:
    with pytest.raises(UserError, match="batch of one with BatchNorm") as caught:
        run()
    assert "\n" not in str(caught.value)


def test_other_value_errors_pass_through() -> None:
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        NDProjector(6, 4)(torch.randn(2, 6, 1, 1))


def test_batch_of_one_is_fine_where_statistics_exist() -> None:
    assert FitNetRegressor(6, 4)(torch.randn(1, 6, 3, 3)).shape == (1, 4, 3, 3)
    assert NDProjector(6, 4).eval()(torch.randn(1, 6)).shape == (1, 4)
