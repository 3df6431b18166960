"""Tiny CLIP towers with random weights as bundle files, and night pictures of the drawn world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from vlkd.data import WorldClassificationData
from vlkd.engine.bundle import save_bundle
from vlkd.models.clip import CLIPTower, build_clip, from_architecture

PREPROCESS = {"mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1), "interpolation": "bilinear"}


def tiny_clip(width: int = 24, size: int = 16, layers: int = 3, seed: int = 0) -> CLIPTower:
    """A ViT of `layers` layers at `size` pixels, vectors of `width`."""
    torch.manual_seed(seed)
    vision = {"image_size": size, "patch_size": 8, "width": 32, "layers": layers, "head_width": 16}
    text = {"context_length": 24, "vocab_size": 1000, "width": 32, "heads": 2, "layers": 2}
    config = {"embed_dim": width, "vision_cfg": vision, "text_cfg": text}
    return from_architecture(
        {"name": "tiny", "model_cfg": config, "preprocess": {**PREPROCESS, "size": size}}
    )


def save_clip(path: Path, tower: CLIPTower | None = None) -> str:
    """The tower's bundle."""
    tower = tower or tiny_clip()
    card = {"kind": "clip", "name": "tiny", "architecture": tower.architecture}
    save_bundle(path, card, {f"model.{k}": v for k, v in tower.model.state_dict().items()})
    assert build_clip(str(path)).identity == tower.identity
    return str(path)


def night(**options: Any) -> WorldClassificationData:
    """160 training and 60 validation pictures at 16 px, eight of 34 classes novel."""
    size = {"train_images": 160, "val_images": 60, "size": 16, "batch_size": 16}
    return WorldClassificationData(**{**size, "novel": "world", "domain": "night", **options})


def trainer(**options: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        **{**quiet, "accelerator": "cpu", "enable_model_summary": False, "num_sanity_val_steps": 0, **options}
    )


def fit(method: LightningModule, data: Any, **options: Any) -> Trainer:
    """Trains; the trainer holds the scores."""
    made = trainer(**{"max_epochs": 2, **options})
    made.fit(method, datamodule=data)
    return made
