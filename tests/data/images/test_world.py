"""Pictures of single objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vlkd.data import WorldClassificationData
from vlkd.data.images import world
from vlkd.data.world import OBJECTS, World
from vlkd.errors import UserError


def test_pictures_are_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    data = WorldClassificationData(train_images=20, val_images=6, size=24, batch_size=5)
    data.setup()
    assert data.names == tuple(OBJECTS) and len(data.names) == 34 == len(data.class_counts)
    scene = World(0).object_photo(7, (24, 24))
    assert data.train_dataset is not None and np.array_equal(data.train_dataset.image(7), scene.image)
    assert data.names[int(data.train_labels[7])] in {scene.names[c] for c in scene.categories.values()}
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].shape == (5, 3, 24, 24) and batch["images"].device.type == "cpu"
    val = torch.cat([b["images"] for b in data.val_dataloader()])
    shown = torch.from_numpy(World(0).object_photo(world._VAL_START, (24, 24)).image) / 255
    assert len(val) == 6 and torch.equal(val[0], shown.permute(2, 0, 1))

    monkeypatch.setattr(world, "_render", lambda *_: pytest.fail("rendered again"))
    again = WorldClassificationData(train_images=20, val_images=6, size=24)
    again.setup()
    assert again.train_fingerprint() == data.train_fingerprint()


def test_wrong_numbers() -> None:
    with pytest.raises(UserError, match=r"data\.train_images must be at most"):
        WorldClassificationData(train_images=0)
