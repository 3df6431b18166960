"""N steps == k steps + resume + N-k steps, wherever the interruption falls."""

from pathlib import Path

import pytest
from exactness import assert_resume_is_exact


@pytest.mark.parametrize(
    ("step", "during", "overrides"),
    [
        pytest.param(9, "training", [], id="middle of the second epoch"),
        pytest.param(6, "training", [], id="last step of an epoch, before its validation"),
        pytest.param(6, "validation", [], id="during a validation"),
        pytest.param(9, "training", ["--data.workers=1"], id="worker process"),
        pytest.param(4, "training", ["--trainer.accumulate_grad_batches=2"], id="accumulated gradients"),
        pytest.param(3, "validation", ["--trainer.val_check_interval=0.5"], id="validation in mid-epoch"),
        pytest.param(
            7,
            "training",
            ["--trainer.max_steps=14", "--trainer.max_epochs=-1", "--trainer.limit_train_batches=5"],
            id="bounded by steps, shortened epochs",
        ),
        pytest.param(
            5,
            "training",
            ["--trainer.max_steps=14", "--trainer.max_epochs=-1", "--trainer.limit_train_batches=5"],
            id="bounded by steps, at an epoch's end",
        ),
    ],
)
def test_resume_is_exact(
    toy_config: Path, tmp_path: Path, step: int, during: str, overrides: list[str]
) -> None:
    assert_resume_is_exact(toy_config, tmp_path, step, during, overrides)
