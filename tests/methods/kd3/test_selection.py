"""Which images are kept: the schedule, thresholds and choice against the official code's numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from golden_cases import read

from vlkd.errors import UserError
from vlkd.methods.kd3 import alpha, select
from vlkd.methods.kd3.selection import (
    SelectionOptions,
    class_thresholds,
    confidence,
    confident,
    most_confident,
)


def test_the_functions_need_no_lightning() -> None:
    code = (
        "import sys; from vlkd.methods.kd3 import alpha, mix_distribution, select, weighted_feature_loss;"
        "print('lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False"], done.stderr


def test_teachers_share_of_every_epoch() -> None:
    case = read("kd3_alpha_schedule")
    found = torch.tensor([alpha(int(epoch)) for epoch in case["epoch"]], dtype=torch.float64)
    torch.testing.assert_close(found, case["alpha"], rtol=1e-12, atol=1e-15)


def test_schedule_scales_with_the_run() -> None:
    short = [alpha(epoch, 24) for epoch in range(1, 25)]
    assert short[:11] == sorted(short[:11], reverse=True) and set(short[11:]) == {0.0}
    assert alpha(11, 24) == pytest.approx(alpha(119, 240))
    assert min(alpha(epoch, 24, floor=0.2) for epoch in range(1, 25)) == 0.2
    assert alpha(1, 24, floor=0.2) == alpha(1, 24)


@pytest.mark.parametrize("k", range(4))
def test_official_choice(k: int) -> None:
    case = read("kd3_selection_c10")
    share, cutoff = float(case["alphas"][k]), float(case["p_cutoff"])
    probabilities, classes = confidence(case["logits_t"], case["logits_s"], share)
    torch.testing.assert_close(probabilities, case[f"max_prob_{k}"], rtol=1e-5, atol=0)
    assert torch.equal(classes, case[f"pred_{k}"])
    thresholds = class_thresholds(case[f"count_{k}"], cutoff)
    torch.testing.assert_close(thresholds, case[f"threshold_{k}"], rtol=1e-5, atol=0)
    assert torch.equal(select(case["logits_t"], case["logits_s"], share, cutoff), case[f"selected_{k}"])
    assert torch.equal(select(case["logits_t"], case["logits_s"], alpha(int(case["epochs"][k]))),
                       case[f"selected_{k}"])  # fmt: skip


def test_rare_classes_pass_on_easier_terms_and_the_threshold_itself_does_not_pass() -> None:
    classes = torch.tensor([0, 0, 0, 0, 1, 1])
    # Class 1 is half as frequent: 0.9 * 0.5 / 1.5 = 0.3.
    probabilities = torch.tensor([0.9, 0.91, 0.5, 0.3, 0.31, 0.29])
    assert confident(probabilities, classes, 3, 0.9).tolist() == [False, True, False, False, True, False]


def test_mixing_probabilities_is_another_choice() -> None:
    teacher, student = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 12.0]])
    assert confidence(teacher, student, 0.6, "logits")[1].item() == 0
    value, decision = confidence(teacher, student, 0.6, "probs")
    assert decision.item() == 0
    assert value.item() == pytest.approx(0.6 * torch.sigmoid(torch.tensor(9.0)).item(), abs=1e-4)
    assert confidence(teacher, student, 0.5, "logits")[1].item() == 1


def test_half_precision_is_compared_in_full() -> None:
    case = read("kd3_selection_c10")
    half = [case[key].half() for key in ("logits_t", "logits_s")]
    assert torch.equal(select(*half, 0.5), select(half[0].float(), half[1].float(), 0.5))


def test_most_confident_are_ascending_and_stable() -> None:
    assert most_confident(torch.tensor([0.2, 0.9, 0.5, 0.9, 0.9]), 3).tolist() == [1, 3, 4]
    assert most_confident(torch.ones(5), 2).tolist() == [0, 1]
    assert most_confident(torch.ones(2), 9).tolist() == [0, 1]


def test_bad_input_is_one_line() -> None:
    with pytest.raises(UserError, match=r"teacher logits \(3, 4\), student logits \(3, 5\)"):
        select(torch.zeros(3, 4), torch.zeros(3, 5), 0.5)
    with pytest.raises(UserError, match="keep_count: say how many images mode dfnd keeps"):
        SelectionOptions(mode="dfnd")
    with pytest.raises(UserError, match=r"p_cutoff 1\.5"):
        SelectionOptions(p_cutoff=1.5)
