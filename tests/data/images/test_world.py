"""Pictures of single objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlkd.data import WorldClassificationData
from vlkd.data.images import world
from vlkd.data.images.device import DeviceImages
from vlkd.data.world import OBJECTS, World, domains
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


def module(**options: Any) -> WorldClassificationData:
    data = WorldClassificationData(**{"train_images": 120, "val_images": 60, "size": 12, **options})
    data.setup()
    return data


def test_novel_classes_by_name_and_by_list() -> None:
    assert module().novel == frozenset()
    named = [tuple(OBJECTS)[k] for k in sorted(module(novel="world").novel)]
    assert named == ["bus", "sailboat", "lighthouse", "fir", "hamburger", "ladybug", "rabbit", "hat"]
    assert module(novel=["cat", "car"]).novel == {0, tuple(OBJECTS).index("cat")}
    with pytest.raises(UserError, match=r"novel class 'lihgthouse' is not .*nearest: \"lighthouse\""):
        module(novel=["lihgthouse"])
    with pytest.raises(UserError, match=r'data\.novel=coco_gkc: expected a list of names, "world" or null'):
        module(novel="coco_gkc")


def test_training_pictures_of_some_classes_and_shots() -> None:
    whole = module(novel="world")
    counts = whole.class_counts
    novel = torch.tensor([k in whole.novel for k in range(34)])
    base, rest = module(novel="world", classes="base"), module(novel="world", classes="novel")
    assert torch.equal(base.class_counts, counts.masked_fill(novel, 0)) and base.novel == whole.novel
    assert torch.equal(rest.class_counts, counts.masked_fill(~novel, 0)) and len(rest.train_labels) > 0
    few = module(novel="world", classes="base", shots=2)
    assert torch.equal(few.class_counts, base.class_counts.clamp(max=2))
    for data in (base, rest, few):
        assert data.names == tuple(OBJECTS) and data.val_fingerprint() == whole.val_fingerprint()
    chosen = {module(shots=2, shots_seed=seed).train_fingerprint() for seed in (0, 0, 1)}
    assert {module(shots=2, seed=seed).train_fingerprint(False) for seed in (0, 1)} == {
        module(shots=2, shots_seed=seed).train_fingerprint(False) for seed in (0, 1)
    }
    assert len(chosen) == 2
    with pytest.raises(UserError, match=r"data\.classes=base: data\.novel names no class"):
        module(classes="base")
    with pytest.raises(UserError, match=r"data\.classes=old: expected one of all, base, novel"):
        module(classes="old", novel="world")
    with pytest.raises(UserError, match=r"data\.shots=0"):
        module(shots=0)
    with pytest.raises(UserError, match=r"no training picture is of the novel classes"):
        module(classes="novel", novel=[whole.names[int(c)] for c in (counts == 0).nonzero()[:1]])


@pytest.mark.parametrize("domain", ["night", "sketch", "infrared"])
def test_a_domain_shows_the_same_pictures_otherwise(
    domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    plain, data = (module(train_images=20, val_images=6, domain=d) for d in ("plain", domain))
    for first, before, after in (
        (0, plain.train_dataset, data.train_dataset),
        (world._VAL_START, plain.val_dataset, data.val_dataset),
    ):
        assert isinstance(before, DeviceImages) and isinstance(after, DeviceImages)
        assert torch.equal(before.labels, after.labels)
        assert torch.equal(after.images, domains.shift(before.images, domain, 0, first))
    part = module(train_images=8, val_images=2, domain=domain).train_dataset
    assert isinstance(part, DeviceImages) and isinstance(data.train_dataset, DeviceImages)
    assert torch.equal(part.images, data.train_dataset.images[:8])

    monkeypatch.setattr(domains, "shift", lambda *_: pytest.fail("rendered again"))
    monkeypatch.setattr(world, "_render", lambda *_: pytest.fail("rendered again"))
    again = module(train_images=20, val_images=6, domain=domain)
    assert again.val_fingerprint() == data.val_fingerprint() != plain.val_fingerprint()


def test_a_domain_is_one_of_four() -> None:
    with pytest.raises(UserError, match=r'data\.domain=skech: unknown \(nearest: "sketch"\)'):
        WorldClassificationData(domain="skech")


def test_wrong_numbers() -> None:
    with pytest.raises(UserError, match=r"data\.train_images must be at most"):
        WorldClassificationData(train_images=0)
