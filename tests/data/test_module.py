from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from vlkd.data import SegmentationData, SegmentationModuleBase
from vlkd.data.loader import EpochSampler, EvalSampler
from vlkd.errors import UserError
from vlkd.metrics import SemanticMetric

COUNT = 11


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(COUNT):
            size = (20 + i, 30)
            Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(
                root / f"images/{split}/{i:02}.png"
            )
            blocks = np.kron(rng.integers(0, 4, (8, 8)), np.ones((5, 5)))[: size[0], : size[1]].astype(
                np.uint8
            )
            Image.fromarray(np.where(blocks == 3, 255, blocks).astype(np.uint8)).save(
                root / f"labels/{split}/{i:02}.png"
            )
    (root / "names.txt").write_text("car\ntree\nroad\n")
    return root


def data_module(root, **options):
    options = {"crop_size": 16, "batch_size": 2, "num_workers": 0, "colour_jitter": 0.2} | options
    return SegmentationData(str(root), **options)


def test_setup_gives_names_and_raw_samples(root):
    data = data_module(root, novel=["tree"], limit=5, val_limit=3)
    data.setup()
    assert data.names == ("car", "tree", "road") and data.isthing == (False,) * 3 and data.novel == {1}
    assert len(data.train_dataset) == 5 and len(data.val_dataset) == 3
    assert data.train_dataset[0].image.shape == (20, 30, 3)
    assert all(1 not in np.unique(sample.semantic()) for sample in data.train_dataset)
    assert any(1 in np.unique(sample.semantic()) for sample in data.val_dataset)
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].shape[:2] == (2, 3) and max(batch["images"].shape[2:]) <= 16


def test_validation_keeps_sizes_or_resizes(root):
    data = data_module(root, val_batch_size=2)
    data.setup("validate")
    assert data.train_dataset is None
    batches = list(data.val_dataloader())
    assert batches[0]["sizes"].tolist() == [[20, 30], [21, 30]]
    assert [id for batch in batches for id in batch["ids"]] == [f"{i:02}" for i in range(COUNT)]
    data = data_module(root, val_size=10)
    data.setup("validate")
    assert next(iter(data.val_dataloader()))["images"].shape == (1, 3, 10, 15)


def epoch(data, number, workers=0):
    data.num_workers = workers
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(first, second):
    return len(first) == len(second) and all(
        a["ids"] == b["ids"]
        and torch.equal(a["images"], b["images"])
        and torch.equal(a["semantic"], b["semantic"])
        for a, b in zip(first, second, strict=True)
    )


def test_batches_depend_on_seed_and_epoch_only(root):
    data = data_module(root)
    data.setup()
    torch.manual_seed(1)
    first = epoch(data, 0)
    torch.manual_seed(2)
    assert same(first, epoch(data, 0, workers=2))
    assert not same(first, epoch(data, 1))
    state = torch.get_rng_state()
    epoch(data, 1)
    assert torch.equal(state, torch.get_rng_state())
    other = data_module(root, seed=1)
    other.setup()
    assert not same(first, epoch(other, 0))


def test_loader_resumes_within_an_epoch(root):
    data = data_module(root)
    data.setup()
    whole = epoch(data, 3)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    batches = iter(loader)
    begun = [next(batches), next(batches)]
    assert loader.state_dict() == {"epoch": 3, "batches": 2}
    resumed = data.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    iter(resumed)
    resumed.sampler.set_epoch(3)
    assert len(resumed) == len(whole)
    assert same(whole, begun + list(resumed))
    assert same(whole, list(resumed))
    resumed.load_state_dict({"epoch": 3, "batches": len(whole)})
    resumed.sampler.set_epoch(4)
    assert same(epoch(data, 4), list(resumed))


class Recorder(L.LightningModule):
    """Learns something that depends on every pixel and every batch."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, index, tuple(batch["ids"]), float(batch["images"].sum())))
        return torch.nn.functional.cross_entropy(
            self.layer(batch["images"]), batch["semantic"], ignore_index=255
        )

    def validation_step(self, batch, index):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)


class InterruptAt(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise RuntimeError("power cut")


def fit(root, steps, checkpoint=None, interrupt=None, workers=0, **options):
    torch.manual_seed(0)
    module = Recorder()
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=interrupt,
        **options,
    )
    data = data_module(root, num_workers=workers)
    if interrupt:
        with pytest.raises(RuntimeError, match="power cut"):
            trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module, trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop", [2, 5, 7])
def test_interrupted_and_resumed_training_equals_an_uninterrupted_one(root, tmp_path, stop):
    """5 batches an epoch: interrupted within the first epoch, on its end, and within the second."""
    whole, _ = fit(root, 12)
    interrupt = InterruptAt(stop)
    interrupt.path = tmp_path / "last.ckpt"
    begun, _ = fit(root, 12, interrupt=interrupt)
    resumed, _ = fit(root, 12, checkpoint=interrupt.path, workers=1 if stop == 7 else 0)
    assert begun.seen + resumed.seen == whole.seen and len(whole.seen) == 12
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [3, 5, 10])
def test_a_finished_run_can_be_continued(root, tmp_path, steps):
    whole, _ = fit(root, 12)
    begun, trainer = fit(root, steps)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    resumed, _ = fit(root, 12, checkpoint=tmp_path / "end.ckpt")
    # Lightning counts an epoch that max_steps cuts short as over: only its number differs, not the batches
    assert [seen[1:] for seen in begun.seen + resumed.seen] == [seen[1:] for seen in whole.seen]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


@pytest.mark.filterwarnings("ignore")
def test_continues_with_fewer_batches_per_epoch_than_the_data_has(root, tmp_path):
    whole, _ = fit(root, 7, limit_train_batches=2)
    begun, trainer = fit(root, 4, limit_train_batches=2)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    resumed, _ = fit(root, 7, checkpoint=tmp_path / "end.ckpt", limit_train_batches=2)
    assert [seen[1:] for seen in begun.seen + resumed.seen] == [seen[1:] for seen in whole.seen]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_an_epoch(world_size):
    pairs = [list(EpochSampler(range(COUNT), 0, world_size, rank)) for rank in range(world_size)]
    assert len({len(mine) for mine in pairs}) == 1
    order = [pair for group in zip(*pairs, strict=True) for pair in group][:COUNT]
    assert order == list(EpochSampler(range(COUNT), 0))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_image_is_scored_once_on_any_number_of_processes(root, world_size):
    data = data_module(root)
    data.setup("validate")
    metric = SemanticMetric(3)
    for rank in range(world_size):
        sampler = EvalSampler(data.val_dataset, world_size, rank)
        loader = torch.utils.data.DataLoader(
            data.val_dataloader().dataset, 1, sampler=sampler, collate_fn=data.collate
        )
        for batch in loader:
            metric.update(batch["semantic"], torch.zeros_like(batch["semantic"]))
    labelled = sum((sample.semantic() != 255).sum() for sample in data.val_dataset)
    assert metric.confusion.sum() == labelled


def test_errors_are_one_line_even_from_workers(root, tmp_path):
    data = data_module(root, num_workers=1, val_split="train")
    data.setup()
    bad = tmp_path / "bad.png"
    bad.write_text("x")
    data.train_dataset.dataset._image_paths = (bad,) * COUNT
    with pytest.raises(UserError) as caught:
        list(data.train_dataloader())
    assert str(caught.value) == f"{bad}: image cannot be read (not an image); replace the file"


def test_missing_mask_is_found_before_training(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"images/train/{name}.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "labels/train/a.png")
    data = data_module(tmp_path, names=["car"], val_split="train")
    with pytest.raises(UserError, match=r"labels/train/b\.png: not found.*and 1 more"):
        data.setup()
    assert [line.split(": ")[0][-5:] for line in data.check()] == ["b.png", "c.png"]
    data = data_module(tmp_path, names=["car"])
    assert any("images/val: no such folder" in line for line in data.check())


def test_base_class_needs_only_build(root):
    class Own(SegmentationModuleBase):
        def build(self, split):
            return data_module(root).build(split)

    data = Own(batch_size=3, crop_size=(8, 12), num_workers=0)
    data.setup()
    images = next(iter(data.train_dataloader()))["images"]
    assert images.shape[0] == 3 and images.shape[2] <= 8 and images.shape[3] <= 12


def test_jsonargparse_sees_every_argument(root):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SegmentationModuleBase, "data")
    config = parser.parse_args(
        [
            "--data=vlkd.data.SegmentationData",
            f"--data.root={root}",
            "--data.crop_size=[8, 16]",
            "--data.limit=4",
        ]
    )
    data = parser.instantiate(config).data
    assert data.transform.crop_size == (8, 16) and data.limit == 4
    with pytest.raises(Exception, match="crop_sise"):
        parser.parse_args(["--data=vlkd.data.SegmentationData", f"--data.root={root}", "--data.crop_sise=8"])


def test_wrong_numbers(root):
    with pytest.raises(UserError, match="scale"):
        data_module(root, scale=(2.0, 0.5))
    with pytest.raises(UserError, match="batch_size"):
        data_module(root, batch_size=0)
