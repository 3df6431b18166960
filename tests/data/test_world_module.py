"""The procedural world as data modules: captioned pictures for CLIP, labelled scenes for segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlkd.data import WorldCaptionData, WorldSegmentationData, world_module
from vlkd.data.world import NAMES, NOVEL, World, world_synonyms
from vlkd.errors import UserError


def captions(**options: Any) -> WorldCaptionData:
    return WorldCaptionData(**{"images": 64, "size": 32, "val_scenes": 2, "batch_size": 16, **options})


def batches(data: WorldCaptionData) -> list[dict[str, Any]]:
    data.setup("fit")
    return list(data.train_dataloader())


def test_captioned_pictures_are_the_same_for_a_seed() -> None:
    first, second = batches(captions()), batches(captions())
    assert len(first) == 4
    for a, b in zip(first, second, strict=True):
        assert a["images"].shape == (16, 3, 32, 32) and a["images"].dtype == torch.float32
        assert a["images"].min() >= 0 and 0.5 < a["images"].max() <= 1
        assert torch.equal(a["images"], b["images"]) and a["captions"] == b["captions"]
    other = batches(captions(seed=1))
    assert first[0]["captions"] != other[0]["captions"]
    known = {word for name in NAMES for word in (name, *world_synonyms(name))}
    for batch in first:
        assert all(any(word in text for word in known) for text in batch["captions"])


def test_epochs_differ_in_order_shift_and_wording() -> None:
    data = captions()
    data.setup("fit")
    assert data.train_set is not None
    loader = data.train_dataloader()
    first = [text for batch in loader for text in batch["captions"]]
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    second = [text for batch in loader for text in batch["captions"]]
    assert first != second and sorted(first) != sorted(second)
    seen = [data.train_set[epoch, 5] for epoch in range(12)]
    assert len({image.numpy().tobytes() for image, _ in seen}) > 3
    assert {text for _, text in seen} == set(data.train_set.captions[5])


def test_every_kind_of_picture_is_rendered_with_its_captions() -> None:
    data = captions(images=10)
    data.setup("fit")
    assert data.train_set is not None
    world = World(0)
    expected = [
        *(world.scene(i, (32, 32)) for i in range(4)),
        *(world.object_photo(i, (32, 32), plain=i < 6) for i in range(4, 8)),
        *(world.swatch(i, (32, 32)) for i in (8, 9)),
    ]
    for i, scene in enumerate(expected):
        assert np.array_equal(data.train_set.images[i].permute(1, 2, 0), scene.image)
        assert data.train_set.captions[i] == scene.captions(4)


def test_pictures_are_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    first = captions()
    first.setup("fit")
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1 and not list(tmp_path.rglob("*.part"))

    class Forbidden:
        def __init__(self) -> None:
            raise AssertionError("rendered again")

    monkeypatch.setattr(world_module, "ProcessPoolExecutor", Forbidden)
    again = captions(seed=7, batch_size=4)
    again.setup("fit")
    assert first.train_set is not None and again.train_set is not None
    assert torch.equal(again.train_set.images, first.train_set.images)
    assert again.train_set.captions == first.train_set.captions
    for other in ({"images": 65}, {"size": 33}, {"world_seed": 1}):
        with pytest.raises(AssertionError, match="rendered again"):
            captions(**other).setup("fit")


def test_regions_of_unseen_scenes_with_their_labels() -> None:
    data = captions(val_scenes=3)
    data.setup("validate")
    assert data.train_set is None
    images, labels = data.regions
    scenes = [World(0).scene(1_000_000 + i, (128, 128)) for i in range(3)]
    expected = [
        category
        for scene in scenes
        for segment, category in scene.categories.items()
        if (scene.panoptic == segment).sum() >= 40
    ]
    assert labels.tolist() == expected and images.shape == (len(expected), 3, 32, 32)
    assert len(set(labels.tolist())) > 3
    batch = next(iter(data.val_dataloader()))
    assert torch.equal(batch["images"], images.float() / 255) and torch.equal(batch["labels"], labels)


def test_pairs_are_unseen_scenes_with_a_caption_each() -> None:
    data = captions(val_pairs=3)
    data.setup("validate")
    (batch,) = data.pair_batches()
    scenes = [World(0).scene(1_000_000 + i, (32, 32)) for i in range(3)]
    assert batch["captions"] == [[scene.caption] for scene in scenes]
    for image, scene in zip(batch["images"], scenes, strict=True):
        assert np.array_equal((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), scene.image)
    without = captions()
    without.setup("validate")
    assert list(without.pair_batches()) == []
    with pytest.raises(UserError, match=r"data.val_pairs=-1: expected 0"):
        captions(val_pairs=-1)


def test_fewer_pictures_than_a_batch_still_train() -> None:
    assert [len(batch["captions"]) for batch in batches(captions(images=6))] == [6]


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (WorldCaptionData, {"images": 0}),
        (WorldCaptionData, {"batch_size": 0}),
        (WorldSegmentationData, {"train_scenes": 0}),
        (WorldSegmentationData, {"size": (64, 0)}),
        (WorldSegmentationData, {"batch_size": 0}),
    ],
)
def test_counts_below_one_are_refused(module: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        module(**options)


# --- segmentation ------------------------------------------------------------------------------------------


def segmentation(**options: Any) -> WorldSegmentationData:
    data = WorldSegmentationData(
        **{"train_scenes": 12, "val_scenes": 30, "size": (48, 64), "batch_size": 4, **options}
    )
    data.setup("fit")
    return data


def test_training_and_validation_share_no_scene() -> None:
    data = segmentation(train_scenes=3, val_scenes=2)
    assert data.train_dataset is not None and data.val_dataset is not None
    train, val = ([sample.id for sample in d] for d in (data.train_dataset, data.val_dataset))
    assert len(set(train)) == 3 and len(set(val)) == 2 and set(train).isdisjoint(val)
    with pytest.raises(UserError, match="at most 1000000"):
        WorldSegmentationData(train_scenes=1_000_001)
    assert np.array_equal(data.val_dataset[1].image, World(0).scene(1_000_001, (48, 64)).image)


def test_names_and_the_novel_ones() -> None:
    data = segmentation()
    assert data.names == NAMES and {data.names[k] for k in data.novel} == set(NOVEL)
    assert sum(data.isthing) == 34 and data.isthing[NAMES.index("car")] and not data.isthing[-1]
    assert data.train_dataset is not None and data.val_dataset is not None
    seen = {k for sample in data.train_dataset for k in np.unique(sample.semantic()).tolist()} - {255}
    assert seen.isdisjoint(data.novel) and len(seen) > 5
    scored = {k for sample in data.val_dataset for k in np.unique(sample.semantic()).tolist()}
    assert scored & data.novel
    own = segmentation(novel=["car", "grass"])
    assert {own.names[k] for k in own.novel} == {"car", "grass"}
    assert segmentation(novel=[]).novel == frozenset()
    with pytest.raises(UserError, match="carr"):
        segmentation(novel=["carr"])


def test_the_held_out_synonym_is_never_for_training() -> None:
    for name in NAMES:
        held_out = WorldSegmentationData.held_out_synonym(name)
        training = WorldSegmentationData.training_synonyms(name)
        assert held_out not in training and name not in training
        assert {held_out, *training} == set(world_synonyms(name))


def test_batches_are_the_same_for_a_seed() -> None:
    first, second, other = (segmentation(seed=s).train_dataloader() for s in (0, 0, 1))
    a, b, c = (list(loader) for loader in (first, second, other))
    assert len(a) == 3
    assert all(
        torch.equal(x["images"], y["images"]) and x["ids"] == y["ids"] for x, y in zip(a, b, strict=True)
    )
    assert [x["ids"] for x in a] != [x["ids"] for x in c]
    assert a[0]["images"].shape == (4, 3, 48, 64) and all(text for text in a[0]["captions"])
