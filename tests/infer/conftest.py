"""Students that segment and classify by colour, a text encoder that knows colours: wrong results show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.infer.classify import ClassPredictor
from vlkd.infer.predictor import Predictor
from vlkd.models.spec import InputSpec
from vlkd.text.class_vectors import ClassVectors

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourText:
    """Encodes a colour's word as that colour; counts what it encodes."""

    identity = "colours@1"
    logit_scale = 100.0

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def encode_text(self, texts: list[str]) -> Tensor:
        self.calls.append(list(texts))
        words = {"crimson": "red", "leaf colour": "green"}
        rows = [COLOURS.get(words.get(t, t), (9, 9, 9 + len(t))) for t in texts]
        return F.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


class ColourStudent(nn.Module):
    """One query per primary colour; its mask is where that colour is."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = InputSpec((64, 64), (0.0,) * 3, (1.0,) * 3, "bilinear", 3)
        self.weight = nn.Parameter(torch.eye(3))
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, images01: Tensor) -> list[SimpleNamespace]:
        self.sizes.append(tuple(images01.shape[-2:]))
        masks = 20 * (F.avg_pool2d(images01, 4) - 0.5)
        return [SimpleNamespace(mask_logits=masks, embeddings=self.weight[None])]

    def class_logits(self, embeddings: Tensor, vectors: Tensor) -> Tensor:
        logits = 20 * embeddings @ vectors.to(embeddings.dtype).T
        return torch.cat([logits, torch.full_like(logits[..., :1], 5)], -1)


class ColourClassifier(nn.Module):
    """Logits of red, green, blue: the mean colour, sharpened."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = InputSpec((8, 8), (0.0,) * 3, (1.0,) * 3, "bilinear", 3)
        self.weight = nn.Parameter(10 * torch.eye(3))
        self.batches: list[tuple[int, ...]] = []

    def forward(self, images01: Tensor) -> Tensor:
        self.batches.append(tuple(images01.shape))
        return images01.mean((2, 3)) @ self.weight


@dataclass
class Parts:
    predictor: Predictor
    student: ColourStudent
    text: ColourText


@pytest.fixture
def parts() -> Parts:
    student, text = ColourStudent(), ColourText()
    return Parts(Predictor(student, None, text), student, text)


@pytest.fixture
def classes() -> ClassPredictor:
    """Predictor of a colour's name; two images a batch."""
    return ClassPredictor(ColourClassifier(), list(COLOURS), batch_size=2)


@pytest.fixture
def flat() -> Callable[..., np.ndarray]:
    """Function (colour, height, width) that makes a plain image (H,W,3)."""

    def make(colour: str, height: int = 20, width: int = 30) -> np.ndarray:
        return np.full((height, width, 3), COLOURS[colour], np.uint8)

    return make


@pytest.fixture
def stored() -> ClassVectors:
    """Vectors of the three colours, to be used without a text encoder."""
    return ClassVectors.build(list(COLOURS), ColourText())


@pytest.fixture
def stripes() -> np.ndarray:
    """Red, green, blue thirds from left to right, (96,120,3)."""
    return np.array(list(COLOURS.values()), np.uint8)[np.arange(120) // 40][None].repeat(96, 0)


@pytest.fixture
def write_video():
    """Function (path, frames, codec, fps) that writes (H,W,3) uint8 frames with PyAV."""

    def write(path, frames, codec: str = "mpeg4", fps: int = 10) -> None:
        with av.open(str(path), "w") as container:
            stream = None
            for image in frames:
                if stream is None:
                    stream = container.add_stream(codec, rate=fps)
                    stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
                    stream.bit_rate = 400_000
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())

    return write
