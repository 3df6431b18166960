"""A teacher of stage 1 as a bundle, trained for one epoch on the toy videos."""

from __future__ import annotations

import pytest
import torch
from toy_language import VideoTextData, fit

from vlkd.engine.bundle import save_bundle
from vlkd.methods.vidlankd import VideoTextTeacher
from vlkd.models.video_text import VideoSize


@pytest.fixture(scope="session")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(5)
    method = VideoTextTeacher("tiny", video=VideoSize(hidden=12, positions=6), lr=1e-3)
    fit(method, VideoTextData(), limit_val_batches=0)
    card, tensors = method.bundle()
    path = tmp_path_factory.mktemp("stage1") / "teacher.safetensors"
    return str(save_bundle(path, {"name": "toy-teacher", "method": "vidlankd", **card}, tensors))
