"""WebData: what trains, what is kept, what is left out; interrupted runs; bad input."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exactness import assert_resume_is_exact
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from toy_pool import tiny

from vlkd.data import ClassificationData, WebData, WorldClassificationData, WorldWebData
from vlkd.data.images.device import DeviceLoader
from vlkd.data.images.module import ClassificationModuleBase
from vlkd.data.loader import ResumableLoader
from vlkd.engine.bundle import save_bundle
from vlkd.errors import UserError
from vlkd.methods.kd3 import KD3
from vlkd.methods.kd3.mix import ContrastOptions
from vlkd.methods.kd3.selection import SelectionOptions

COUNT = 22  # images in the pool that can be read


def colour(number: int) -> tuple[int, int, int]:
    return (10 * number, 255 - 10 * number, 128)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Private images of three classes, and a pool of 22 plain colours with 2 broken files among them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 1), ("val", 3)):
        for name in ("ant", "bee", "cow"):
            folder = tmp_path / "private" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    (tmp_path / "pool" / "below").mkdir(parents=True)
    for k in range(COUNT):
        Image.new("RGB", (20 + k, 24), colour(k)).save(tmp_path / "pool" / f"{k:02d}.png")
    (tmp_path / "pool" / "05b.png").write_bytes(b"broken")
    (tmp_path / "pool" / "below" / "z.jpg").write_bytes(b"broken")
    return tmp_path


def module(root: Path, **options: Any) -> WebData:
    private = ClassificationData(str(root / "private"), image_size=16, num_workers=0, val_batch_size=4)
    given = {"size": 16, "batch_size": 4, "val_batch_size": 7, "num_workers": 0, **options}
    data = WebData(**{"pool": str(root / "pool"), "private": private, **given})
    data.setup("fit")
    return data


def joined(batches: Any, key: str) -> Tensor:
    return torch.cat([batch[key] for batch in batches])


def shown(batches: Any) -> Tensor:
    """Which plain colour each picture shows."""
    return (joined(batches, "images")[:, 0].amax((1, 2)) * 25.5).round().long()


@pytest.mark.parametrize(("pipeline", "kind"), [("device", DeviceLoader), ("loader", ResumableLoader)])
def test_the_pool_without_what_is_broken(
    root: Path, pipeline: str, kind: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(root / "cache"))
    data = module(root, pipeline=pipeline)
    data.setup("validate")
    lines = [line for line in capsys.readouterr().err.splitlines() if "pool" in line]
    assert lines == ["pool: left out 2 of 24 images that cannot be decoded (--check names them)"]
    assert data.pool_size == COUNT and data.names == ("ant", "bee", "cow")
    loader = data.train_dataloader()
    batches = list(loader)
    assert (
        isinstance(loader, kind) and [len(b["labels"]) for b in batches] == [4] * 5 + [2] and len(loader) == 6
    )
    assert batches[0]["images"].shape == (4, 3, 16, 16) and batches[0]["images"].dtype == torch.float32
    assert set(joined(batches, "labels").tolist()) == {-1}
    indices = joined(batches, "indices")
    assert sorted(indices.tolist()) == list(range(COUNT)) != indices.tolist()
    assert torch.equal(shown(batches), indices)
    labels = joined(data.val_dataloader(), "labels")
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert data.val_fingerprint() == data.private.val_fingerprint()


@pytest.mark.parametrize("pipeline", ["device", "loader"])
def test_only_kept_images_train(root: Path, pipeline: str) -> None:
    data = module(root, pipeline=pipeline)
    loader = data.train_dataloader()
    assert len(loader) == 6
    for kept in ([3, 8, 9, 20, 21], [0], [1, 2]):
        data.keep(torch.tensor(kept))
        assert len(loader) == -(-len(kept) // 4)
        batches = list(loader)
        assert [len(b["labels"]) for b in batches] == ([4, 1] if len(kept) == 5 else [len(kept)])
        assert sorted(joined(batches, "indices").tolist()) == kept
        assert torch.equal(shown(batches), joined(batches, "indices"))
    assert torch.equal(joined(data.train_pass(False), "indices"), torch.arange(COUNT)), "a pass sees all"
    assert sorted(joined(data.train_dataloader(), "indices").tolist()) == [1, 2], (
        "a new loader keeps them too"
    )
    data.keep(None)
    assert sorted(joined(data.train_dataloader(), "indices").tolist()) == list(range(COUNT))


def test_kept_images_are_shuffled_by_seed_and_epoch(root: Path) -> None:
    def order(epoch: int, seed: int) -> list[int]:
        data = module(root, seed=seed)
        data.keep(torch.arange(0, COUNT, 2))
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return joined(loader, "indices").tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*place)) for place in ((0, 0), (1, 0), (0, 1))}) == 3


@pytest.mark.parametrize("pipeline", ["device", "loader"])
def test_a_resumed_loader_goes_on_with_what_was_kept(root: Path, pipeline: str) -> None:
    whole, first, second = (module(root, pipeline=pipeline).train_dataloader() for _ in range(3))
    for loader in (whole, first):
        loader.set_indices(torch.arange(3, 18))
        loader.sampler.set_epoch(2)
    expected = list(whole)
    assert [len(b["labels"]) for b in expected] == [4, 4, 4, 3]
    begun = iter(first)
    for _ in range(2):
        next(begun)
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(2)
    for found, batch in zip(second, expected[2:], strict=True):
        assert torch.equal(found["indices"], batch["indices"])
        assert torch.equal(found["images"], batch["images"])


@pytest.mark.parametrize("pipeline", ["device", "loader"])
def test_a_pass_in_the_pools_order(root: Path, pipeline: str) -> None:
    data = module(root, pipeline=pipeline)
    for how in ((False,), (True,), (True, 1)):
        batches = list(data.train_pass(*how))
        assert [len(b["labels"]) for b in batches] == [7, 7, 7, 1]
        assert torch.equal(joined(batches, "indices"), torch.arange(COUNT))
        assert torch.equal(shown(batches), torch.arange(COUNT)) and (joined(batches, "labels") == -1).all()


@pytest.mark.parametrize("pipeline", ["device", "loader"])
def test_augmentation_of_passes_and_of_training(root: Path, pipeline: str) -> None:
    ramp = np.add.outer(10 * np.arange(24), np.arange(30))[..., None].repeat(3, 2).astype(np.uint8)
    (root / "ramps").mkdir()
    for k in range(4):
        Image.fromarray(ramp).save(root / "ramps" / f"{k}.png")
    data = module(root, pool=[str(root / "ramps")], pipeline=pipeline)
    plain, first, again, later = (
        joined(data.train_pass(*how), "images") for how in ((False,), (True,), (True, 0), (True, 1))
    )
    assert torch.equal(plain[0], plain[1]) and not torch.equal(first[0], first[1])
    assert torch.equal(first, again) and not torch.equal(first, later)
    batch = next(iter(data.train_dataloader()))
    assert not torch.equal(batch["images"], first[batch["indices"]]), (
        "selection sees other crops than training"
    )
    whole = module(root, pool=[str(root / "ramps")], pipeline=pipeline, scale=(1.0, 1.0), flip=0.0)
    assert torch.allclose(joined(whole.train_pass(True), "images")[0].mean(), plain[0].mean(), atol=0.05)


def test_limit_and_fingerprints(root: Path) -> None:
    few, same, other = module(root, limit=9), module(root, limit=9, num_workers=1), module(root)
    assert few.pool_size in (7, 8, 9)
    batches = list(few.train_pass(False))
    assert len(set(shown(batches).tolist())) == few.pool_size
    prints = [
        d.train_fingerprint()
        for d in (
            few,
            other,
            module(root, scale=(0.5, 1.0)),
            module(root, pipeline="loader"),
            module(root, size=8),
        )
    ]
    assert len(set(prints)) == 5 and same.train_fingerprint() == prints[0]


def test_small_pools_are_decoded_large_ones_read(root: Path) -> None:
    assert isinstance(module(root, size=64).train_dataloader(), DeviceLoader)
    assert isinstance(module(root, size=65).train_dataloader(), ResumableLoader)


def test_check_names_what_is_broken(root: Path) -> None:
    problems = module(root).check()
    assert len(problems) == 2 and "05b.png" in problems[0] and "z.jpg" in problems[1]


def test_faults_are_one_line(root: Path) -> None:
    (root / "empty").mkdir()
    (root / "bad").mkdir()
    (root / "bad" / "a.jpg").write_bytes(b"broken")
    for options, message in (
        ({"pool": str(root / "empty")}, "empty: no images here or below"),
        ({"pool": []}, r"data\.pool: names no source"),
        ({"pool": str(root / "none")}, "none: no such pool"),
        ({"pool": str(root / "bad")}, r"none of 1 images can be decoded; the first: .*bad/a\.jpg"),
        ({"pool": str(root / "bad"), "pipeline": "loader"}, "none of 1 images"),
        ({"size": 0}, "at least 1"),
        ({"scale": (0.5, 0.2)}, r"data\.resized_crop"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            module(root, **options)
        assert "\n" not in str(caught.value)
    data = module(root)
    for kept, message in (
        ([0, COUNT], f"image {COUNT} of a pool of {COUNT}"),
        ([-1, 3], "image -1"),
        ([], "no image"),
    ):
        with pytest.raises(UserError, match=message):
            data.keep(torch.tensor(kept, dtype=torch.int64))
    assert len(data.train_dataloader()) == 6, "what is refused changes nothing"


def test_a_pool_of_the_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = WorldClassificationData(train_images=10, val_images=8, size=16, novel=["bus"])
    data = WorldWebData(private, images=30, size=16, batch_size=8)
    data.setup("fit")
    assert data.novel == {1}
    assert data.pool_size == 30 and data.names == private.names and len(data.names) == 34
    assert private.train_dataset is None, "private training images are never opened"
    batches = list(data.train_dataloader())
    assert [len(b["labels"]) for b in batches] == [8, 8, 8, 6] and batches[0]["images"].shape == (
        8,
        3,
        16,
        16,
    )
    assert len(joined(data.val_dataloader(), "labels")) == 8
    other = WorldWebData(private, images=30, size=16, world_seed=2)
    other.setup("fit")
    assert other.train_fingerprint() != data.train_fingerprint()
    assert isinstance(WorldWebData().private, WorldClassificationData)
    with pytest.raises(UserError, match=r"data\.world_seed=0"):
        WorldWebData(private, world_seed=0)
    with pytest.raises(UserError, match="at least 1"):
        WorldWebData(private, images=0)


def test_jsonargparse_sees_every_argument(root: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ClassificationModuleBase, "data")
    arguments = [
        "--data=vlkd.data.WebData",
        f"--data.pool={root / 'pool'}",
        "--data.private=vlkd.data.ClassificationData",
        f"--data.private.root={root / 'private'}",
        "--data.scale=[0.3, 1.0]",
    ]
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert data.augment.resized_crop == (0.3, 1.0) and data.private.kind == "folder" and len(data.pool) == 1
    world = parser.instantiate(parser.parse_args(["--data=vlkd.data.WorldWebData", "--data.limit=5"])).data
    assert world.limit == 5
    with pytest.raises(Exception, match="flipp"):
        parser.parse_args([*arguments, "--data.flipp=0.1"])


class Watch(Callback):
    """Which images each epoch trained on, and which were kept for it."""

    def __init__(self) -> None:
        self.used: dict[int, list[int]] = {}
        self.kept: dict[int, list[int]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        kept = trainer.datamodule._kept  # type: ignore[attr-defined]
        self.used.setdefault(trainer.current_epoch, []).extend(batch["indices"].tolist())
        self.kept[trainer.current_epoch] = kept.tolist()


def teacher(folder: Path) -> str:
    """A network that knows the private class names, with weights that nothing has trained."""
    torch.manual_seed(3)
    network = tiny(3, first=8, second=16)
    with torch.no_grad():
        network.network.linear.weight *= 30  # certain of some images, of others not
        network.network.linear.bias.zero_()
    card = {
        "kind": "classifier",
        "name": "t",
        "architecture": network.architecture,
        "class_names": ["ant", "bee", "cow"],
    }
    tensors = {f"student.{name}": tensor for name, tensor in network.state_dict().items()}
    return str(save_bundle(folder / "t.safetensors", card, tensors))


@pytest.mark.parametrize("pipeline", ["device", "loader"])
def test_kd3_trains_on_what_it_keeps(root: Path, pipeline: str) -> None:
    torch.manual_seed(0)
    options = SelectionOptions(p_cutoff=0.5, floor=0.8)
    method = KD3(student=tiny(3), teacher=teacher(root), contrast=ContrastOptions(width=8), selection=options)
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=root, callbacks=[watch], num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(method, datamodule=module(root, pipeline=pipeline))
    assert {e: sorted(i) for e, i in watch.used.items()} == watch.kept and len(watch.kept) == 4
    assert any(len(kept) < COUNT for kept in watch.kept.values())
    assert "score/accuracy" in trainer.callback_metrics


CONFIG = """
model:
  class_path: vlkd.methods.kd3.KD3
  init_args:
    student: toy_pool:TinyNet
    teacher: TEACHER
    image_size: 16
    contrast: {width: 8}
    selection: {p_cutoff: 0.36}
    lr: 0.1
data:
  class_path: vlkd.data.WebData
  init_args:
    pool: POOL
    size: 16
    batch_size: 4
    num_workers: 0
    pipeline: PIPELINE
    private:
      class_path: vlkd.data.ClassificationData
      init_args: {root: PRIVATE, image_size: 16, num_workers: 0}
trainer: {max_epochs: 4, accelerator: cpu, enable_model_summary: false}
"""


@pytest.mark.parametrize(("pipeline", "step"), [("device", 3), ("device", 7), ("loader", 7), ("loader", 9)])
def test_an_interrupted_run_is_resumed_exactly(root: Path, tmp_path: Path, pipeline: str, step: int) -> None:
    words = {
        "POOL": root / "pool",
        "PRIVATE": root / "private",
        "PIPELINE": pipeline,
        "TEACHER": teacher(root),
    }
    text = textwrap.dedent(CONFIG)
    for word, value in words.items():
        text = text.replace(word, str(value))
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert_resume_is_exact(config, tmp_path, step)


@pytest.mark.realdata
def test_the_shared_packs_as_a_pool(shared_data: Path) -> None:
    private = ClassificationData(str(shared_data / "cifar10.npz"), "cifar10", val_limit=50)
    packs = [str(shared_data / name) for name in ("imagenet1k_sample.npz", "caltech101_subset.npz")]
    data = WebData(packs, private, num_workers=0, limit=300)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert data.pool_size == 300 and len(batches) == 3 and batches[0]["images"].shape == (128, 3, 32, 32)
    assert 0.3 < float(joined(batches, "images").mean()) < 0.6
    assert len(joined(data.val_dataloader(), "labels")) == 50
