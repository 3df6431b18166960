import textwrap
from pathlib import Path

import pytest
from toy_stages import CONFIG


@pytest.fixture
def toy_config(tmp_path: Path) -> Path:
    """A config of the toy method: 6 steps an epoch, 3 epochs, validation after each."""
    path = tmp_path / "toy.yaml"
    path.write_text(
        textwrap.dedent("""
        model:
          class_path: toy_method.Toy
          init_args:
            weights: {ce: 1.0, kd: 0.5}
            lr: 1e-2
            warmup_steps: 2
        data:
          class_path: toy_method.ToyData
        trainer:
          max_epochs: 3
          accelerator: cpu
          enable_model_summary: false
        """)
    )
    return path


@pytest.fixture
def two_stages(tmp_path: Path) -> Path:
    """Stage 1: 4 steps an epoch, 2 epochs; stage 2: 6 steps an epoch, 3 epochs."""
    (tmp_path / "two.yaml").write_text(CONFIG)
    return tmp_path / "two.yaml"
