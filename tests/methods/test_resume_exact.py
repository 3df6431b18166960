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
CLIPKD = """
model:
  class_path: vlkd.methods.clipkd.CLIPKD
  init_args: {teacher: vlkd-clip-m, student: vlkd-clip-s, lr: 0.002, warmup_steps: 2}
data:
  class_path: vlkd.data.WorldCaptionData
  init_args: {images: 64, size: 32, batch_size: 16, val_scenes: 2, val_pairs: 4}
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
VIDEO_GKC = """
model:
  class_path: vlkd.methods.gkc.VideoGKC
  init_args:
    teacher: vlkd-clip-m
    student:
      class_path: vlkd.models.segmentor.Segmentor
      init_args:
        {backbone: "timm:test_resnet", queries: 6, layers: 1, channels: 32, text_width: 128, memory: true}
    criterion: {points: 64}
    warmup_steps: 2
data:
  class_path: vlkd.data.WorldVideoClipData
  init_args: {train_videos: 6, val_videos: 1, train_frames: 4, size: [64, 64], batch_size: 2, stride: [1, 2]}
"""
CLASSIFIER = """
model:
  class_path: vlkd.methods.{path}
  init_args:
    student: resnet8
    teacher: resnet8
    teacher_arguments: {{}}
    num_classes: 34
    image_size: 16
    weights: {weights}
    options: {options}
data:
  class_path: vlkd.data.WorldClassificationData
  init_args: {{train_images: 48, val_images: 8, size: 16, batch_size: 8}}
"""
KD = CLASSIFIER.format(
    path="kd.KD", weights="{ce: 1.0, kd: 1.0, crd: 0.8}", options="{crd: {negatives: 8, width: 8}}"
)
TRG = CLASSIFIER.format(
    path="trg.TRG", weights="{ce: 1.0, trg_local: 100.0, trg_global: 2.0, trg_contextual: 25.0}", options="{}"
)
ND = CLASSIFIER.format(path="nd.ND", weights="{ce: 1.0, kd: 1.0, nd: 2.0}", options="{}").replace(
    "num_classes: 34", "num_classes: 34\n    missing_classes: skip"
)
TRAINER = "trainer: {max_epochs: 2, accelerator: cpu, enable_model_summary: false, gradient_clip_val: 1.0}"


@pytest.mark.parametrize(
    ("text", "step"),
    [
        pytest.param(CLIP, 3, id="clip, in the first epoch"),
        pytest.param(CLIP, 6, id="clip, after a validation"),
        pytest.param(CLIPKD, 6, id="clipkd, after a validation"),
        pytest.param(GKC, 3, id="gkc, after a validation"),
        pytest.param(VIDEO_GKC, 4, id="gkc of videos, in the second epoch"),
        pytest.param(KD, 4, id="kd with a memory, in the first epoch"),
        pytest.param(ND, 6, id="nd, after a validation"),
        pytest.param(TRG, 8, id="trg, in the second epoch"),
    ],
)
def test_methods_resume_exactly(text: str, step: int, tmp_path: Path) -> None:
    config = tmp_path / "world.yaml"
    config.write_text(textwrap.dedent(text) + TRAINER)
    assert_resume_is_exact(config, tmp_path, step)
