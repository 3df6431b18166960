"""ClassificationData: kinds, pipelines, passes, limits; interrupted runs; bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exactness import assert_resume_is_exact
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor

from vlkd.data import ClassificationData
from vlkd.data.images.device import DeviceEvalLoader, DeviceImages, DeviceLoader
from vlkd.data.images.module import ClassificationModuleBase
from vlkd.data.loader import ResumableLoader
from vlkd.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name in ("ant", "bee", "cow"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (20 + k, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    return tmp_path / "set"


def module(root: Path, **options: Any) -> ClassificationData:
    data = ClassificationData(str(root), **{"batch_size": 4, "image_size": 16, "num_workers": 0, **options})
    data.setup()
    return data


def joined(batches: Any, key: str) -> Tensor:
    return torch.cat([batch[key] for batch in batches])


def test_small_files_become_one_tensor(root: Path) -> None:
    data = module(root)
    assert data.names == ("ant", "bee", "cow") and data.class_counts.tolist() == [6, 6, 6]
    loader, val = data.train_dataloader(), data.val_dataloader()
    assert isinstance(loader, DeviceLoader) and isinstance(val, DeviceEvalLoader)
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [4] * 4
    assert batches[0]["images"].shape == (4, 3, 16, 16) and batches[0]["images"].max() <= 1
    assert torch.equal(joined(batches, "labels"), data.train_labels[joined(batches, "indices")])
    assert torch.equal(joined(val, "labels"), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]))


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_pipeline(root: Path, workers: int) -> None:
    data = module(root, pipeline="loader", num_workers=workers)
    loader = data.train_dataloader()
    assert isinstance(loader, ResumableLoader)
    loader.sampler.set_epoch(2)
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [4] * 4
    assert batches[0]["images"].shape == (4, 3, 16, 16) and batches[0]["images"].dtype == torch.float32
    again = module(root, pipeline="loader").train_dataloader()
    again.sampler.set_epoch(2)
    assert all(torch.equal(a["images"], b["images"]) for a, b in zip(batches, again, strict=True))
    assert torch.equal(joined(data.val_dataloader(), "indices"), torch.arange(9))


@pytest.mark.parametrize("pipeline", ["device", "loader"])
def test_a_pass_sees_each_image_once_in_order(root: Path, pipeline: str) -> None:
    data = module(root, pipeline=pipeline, val_batch_size=5)
    plain, first, second = (list(data.train_pass(augmented)) for augmented in (False, True, True))
    for batches in (plain, first):
        assert torch.equal(joined(batches, "indices"), torch.arange(18))
        assert torch.equal(joined(batches, "labels"), data.train_labels)
    assert torch.equal(joined(first, "images"), joined(second, "images"))
    assert not torch.equal(joined(first, "images"), joined(plain, "images"))
    # An augmented pass shows what the first epoch trains on.
    for batch in data.train_dataloader():
        assert torch.equal(joined(first, "images")[batch["indices"]], batch["images"])


@pytest.mark.parametrize("pipeline", ["device", "loader"])
def test_views_repeat_and_a_pass_shows_each(root: Path, pipeline: str) -> None:
    data = module(root, pipeline=pipeline, views=2, batch_size=18)
    free = module(root, pipeline=pipeline, batch_size=18)
    passes = [joined(data.train_pass(True, view), "images") for view in range(2)]
    assert not torch.equal(*passes)
    loader, other = data.train_dataloader(), free.train_dataloader()
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        other.sampler.set_epoch(epoch)
        (batch,), (expected,) = loader, other
        assert "views" not in expected and torch.equal(batch["indices"], expected["indices"])
        assert batch["views"].dtype == torch.int64 and batch["views"].tolist() == [epoch % 2] * 18
        assert torch.equal(batch["labels"], data.train_labels[batch["indices"]])
        assert torch.equal(batch["images"], passes[epoch % 2][batch["indices"]])
        assert torch.equal(batch["images"], expected["images"]) == (epoch < 2)
        assert torch.equal(
            joined(free.train_pass(True, epoch), "images")[batch["indices"]], expected["images"]
        )
    assert torch.equal(joined(data.train_pass(False, 1), "images"), joined(free.train_pass(False), "images"))
    assert data.train_fingerprint() == free.train_fingerprint()
    assert data.train_fingerprint(augmented=False) == free.train_fingerprint(augmented=False)


def test_an_epoch_of_a_view_goes_on_where_it_stopped(root: Path) -> None:
    whole = module(root, pipeline="loader", views=2).train_dataloader()
    whole.sampler.set_epoch(3)
    expected = list(whole)
    resumed = module(root, pipeline="loader", views=2).train_dataloader()
    resumed.load_state_dict({"epoch": 3, "batches": 2})
    resumed.sampler.set_epoch(3)
    rest = list(resumed)
    assert len(rest) == 2 and joined(rest, "views").tolist() == [1] * 8
    for a, b in zip(rest, expected[2:], strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)


@pytest.mark.parametrize("pipeline", ["device", "loader"])
def test_a_part_of_each_class_is_held_out(root: Path, pipeline: str) -> None:
    whole = module(root, pipeline=pipeline)
    data = module(root, pipeline=pipeline, holdout=0.3, val_batch_size=4)
    assert data.class_counts.tolist() == [4, 4, 4] and len(data.train_labels) == 12
    assert data.train_dataset is not None and data.held_out_dataset is not None
    assert data.held_out_dataset.labels.tolist() == [0, 0, 1, 1, 2, 2]
    held, trained = set(data.held_out_dataset.files), set(data.train_dataset.files)  # type: ignore[attr-defined]
    assert not held & trained and held | trained == set(whole.train_dataset.files)  # type: ignore[union-attr]
    batches = list(data.held_out_pass())
    assert [len(batch["labels"]) for batch in batches] == [4, 2] and "views" not in batches[0]
    assert torch.equal(joined(batches, "indices"), torch.arange(6))
    places = [whole.train_dataset.files.index(file) for file in data.held_out_dataset.files]  # type: ignore
    assert torch.equal(joined(batches, "images"), joined(whole.train_pass(False), "images")[places])
    assert len(joined(data.train_pass(False), "indices")) == 12
    assert sorted(joined(data.val_dataloader(), "labels").tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]

    same, other = (module(root, pipeline=pipeline, holdout=0.3, subset_seed=seed, seed=9) for seed in (0, 1))
    assert set(same.held_out_dataset.files) == held != set(other.held_out_dataset.files)  # type: ignore
    assert data.train_fingerprint() != whole.train_fingerprint()
    with pytest.raises(UserError, match=r"data\.holdout=0: no training image is held out"):
        whole.held_out_pass()


def test_the_held_out_part_is_one_of_what_is_trained_on(root: Path) -> None:
    tail = module(root, imbalance_factor=6.0, holdout=0.5)
    assert tail.class_counts.tolist() == [3, 1, 1]
    assert tail.held_out_dataset is not None and tail.held_out_dataset.labels.tolist() == [0, 0, 0, 1]
    few = module(root, limit=10, holdout=0.2)
    assert few.held_out_dataset is not None and len(few.train_labels) + len(few.held_out_dataset) == 10
    with pytest.raises(UserError, match=r"data\.holdout=0\.2: no class has two training images"):
        module(root, limit=1, holdout=0.2)


def test_no_class_is_novel_unless_the_data_say_so(root: Path) -> None:
    assert module(root).novel == frozenset()


def test_limits_and_long_tail_touch_training_and_say_so(root: Path) -> None:
    whole = module(root)
    tail = module(root, imbalance_factor=6.0)
    assert tail.class_counts.tolist() == [6, 2, 1] and len(joined(tail.val_dataloader(), "labels")) == 9
    few = module(root, limit=7, val_limit=2)
    assert len(few.train_labels) == 7 and len(joined(few.val_dataloader(), "labels")) == 2
    assert len(set(few.train_labels.tolist())) > 1, "a limit must not mean the first classes only"
    assert torch.equal(few.train_labels, module(root, limit=7, seed=5).train_labels)
    prints = {d.train_fingerprint() for d in (whole, tail, few, module(root, flip=0.0), module(root, seed=1))}
    assert len(prints) == 5
    assert whole.train_fingerprint() == module(root).train_fingerprint()
    assert whole.val_fingerprint() == tail.val_fingerprint() != few.val_fingerprint()


def test_kinds_by_list_and_by_name(root: Path) -> None:
    (root / "train.txt").write_text("train/ant/0.png 0\ntrain/cow/1.png 1\n")
    (root / "my_val.txt").write_text("val/bee/0.png 1\n")
    data = module(root, kind="list", val_split="my_val.txt", names=["x", "y"])
    assert data.names == ("x", "y") and data.train_labels.tolist() == [0, 1]
    (root / "names.txt").write_text("one\ntwo\nthree\n")
    assert module(root, names=str(root / "names.txt")).names == ("one", "two", "three")


def test_images_in_memory_keep_their_size_and_may_be_resized() -> None:
    class Own(ClassificationModuleBase):
        def build(self, split: str) -> DeviceImages:
            pixels = torch.arange(6 * 3 * 8 * 8).view(6, 3, 8, 8).to(torch.uint8)
            return DeviceImages(pixels, torch.arange(6) % 2, ("a", "b"))

    for options, size in (({}, 8), ({"image_size": 4}, 4), ({"image_size": 4, "pipeline": "loader"}, 4)):
        data = Own(batch_size=2, num_workers=0, **options)  # type: ignore[arg-type]
        data.setup()
        for loader in (data.train_dataloader(), data.val_dataloader()):
            assert next(iter(loader))["images"].shape[2:] == (size, size)
    data = Own(batch_size=2, num_workers=0, pipeline="loader", crop=0, flip=0.0)
    data.setup()
    shown = joined(data.train_pass(augmented=True), "images")
    assert torch.equal(shown, data.build("train").images.float() / 255)


def test_faults(root: Path) -> None:
    with pytest.raises(UserError, match=r'data\.kind=cifar11: unknown \(nearest: "cifar10'):
        module(root, kind="cifar11")
    with pytest.raises(UserError, match=r"nowhere: no such folder; data\.root"):
        module(root / "nowhere")
    with pytest.raises(UserError, match=r"test: no such folder"):
        module(root, val_split="test")
    with pytest.raises(UserError, match=r"data\.imbalance_factor=0\.5"):
        module(root, imbalance_factor=0.5)
    with pytest.raises(UserError, match=r"data: batch_size"):
        module(root, batch_size=0)
    with pytest.raises(UserError, match=r"data\.pipeline=gpu"):
        module(root, pipeline="gpu")
    with pytest.raises(UserError, match=r"data: .* and views must be at least 1"):
        module(root, views=0)
    for part in (-0.1, 1.0):
        with pytest.raises(UserError, match=rf"data\.holdout={part}: expected a part of each class"):
            module(root, holdout=part)
    (root / "train/ant/2.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"ant/2\.png: image cannot be read"):
        module(root, num_workers=1).train_dataloader()
    with pytest.raises(UserError, match=r"ant/2\.png: image cannot be read"):
        list(module(root, pipeline="loader", num_workers=1).train_dataloader())


def test_check_lists_all_that_is_wrong(root: Path) -> None:
    assert module(root).check() == []
    data = module(root)
    for name in ("train/ant/2.png", "val/cow/0.png"):
        (root / name).write_bytes(b"broken")
    problems = data.check()
    assert len(problems) == 2 and "train/ant/2.png" in problems[0] and "val/cow/0.png" in problems[1]


def test_jsonargparse_sees_every_argument(root: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ClassificationModuleBase, "data")
    arguments = ["--data=vlkd.data.ClassificationData", f"--data.root={root}"]
    config = parser.parse_args([*arguments, "--data.resized_crop=[0.2, 1.0]", "--data.limit=4"])
    data = parser.instantiate(config).data
    assert data.augment.resized_crop == (0.2, 1.0) and data.limit == 4
    with pytest.raises(Exception, match="flipp"):
        parser.parse_args([*arguments, "--data.flipp=0.1"])


CONFIG = """
model:
  class_path: vlkd.methods.kd.KD
  init_args: {student: "toy_images:ToyNet", num_classes: 3, image_size: 16, weights: {ce: 1.0}, lr: 0.1}
data:
  class_path: vlkd.data.ClassificationData
  init_args: {root: ROOT, image_size: 16, batch_size: 4, num_workers: 0, pipeline: PIPELINE, views: VIEWS}
trainer: {max_epochs: 3, accelerator: cpu, enable_model_summary: false}
"""


@pytest.mark.parametrize(
    ("pipeline", "step", "views"),
    [
        ("device", 2, "null"),
        ("device", 6, "null"),
        ("loader", 6, "null"),
        ("device", 8, "null"),
        ("device", 6, "2"),
        ("loader", 9, "2"),
    ],
)
def test_an_interrupted_run_is_resumed_exactly(
    root: Path, tmp_path: Path, pipeline: str, step: int, views: str
) -> None:
    config = tmp_path / "config.yaml"
    values = {"ROOT": str(root), "PIPELINE": pipeline, "VIEWS": views}
    text = CONFIG
    for name, value in values.items():
        text = text.replace(name, value)
    config.write_text(text)
    assert_resume_is_exact(config, tmp_path, step)


@pytest.mark.realdata
def test_cifar_for_a_trainer(shared_data: Path) -> None:
    data = ClassificationData(str(shared_data), "cifar10", limit=500, val_limit=300, batch_size=50)
    data.setup()
    batches = list(data.train_dataloader())
    assert len(batches) == 10 and batches[0]["images"].shape == (50, 3, 32, 32)
    assert torch.equal(joined(batches, "labels"), data.train_labels[joined(batches, "indices")])
    assert len(joined(data.val_dataloader(), "labels")) == 300
