"""N steps equal k steps + resume + N-k steps for the methods themselves (the engine: tests/engine)."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from exactness import assert_resume_is_exact

CLIP = """
model:
  class_path: vlkd.methods.clip.CLIP
  init_args: {architecture: vlkd-clip-s, lr: 0.002, warmup_steps: 2}
data:
  class_path: vlkd.data.WorldCaptionData
  init_args: {images: 64, size: 32, batch_size: 16, val_scenes: 2}
"""
GKC = """
model:
  class_path: vlkd.methods.gkc.GKC
  init_args:
    teacher: vlkd-clip-m
    student:
      class_path: vlkd.models.segmentor.Segmentor
      init_args: {backbone: "timm:test_resnet", queries: 6, layers: 1, channels: 32, text_width: 128}
    criterion: {points: 64}
    caption_words: 4
    warmup_steps: 2
data:
  class_path: vlkd.data.WorldSegmentationData
  init_args: {train_scenes: 8, val_scenes: 2, size: [64, 64], batch_size: 4, scale: [0.8, 1.2]}
"""
TRAINER = "trainer: {max_epochs: 2, accelerator: cpu, enable_model_summary: false, gradient_clip_val: 1.0}"


@pytest.mark.parametrize(
    ("text", "step"),
    [
        pytest.param(CLIP, 3, id="clip, in the first epoch"),
        pytest.param(CLIP, 6, id="clip, after a validation"),
        pytest.param(GKC, 3, id="gkc, after a validation"),
    ],
)
def test_methods_resume_exactly(text: str, step: int, tmp_path: Path) -> None:
    config = tmp_path / "world.yaml"
    config.write_text(textwrap.dedent(text) + TRAINER)
    assert_resume_is_exact(config, tmp_path, step)
