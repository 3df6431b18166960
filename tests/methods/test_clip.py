"""CLIP training: the objective, the locked text half, the score, the bundle."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer

import vlkd
from vlkd.data import WorldCaptionData
from vlkd.engine.bundle import save_bundle
from vlkd.errors import UserError
from vlkd.losses import clip_loss
from vlkd.methods.clip import CLIP
from vlkd.models.clip import CLIPTower, build_clip, from_architecture


def data(**options: Any) -> WorldCaptionData:
    return WorldCaptionData(**{"images": 64, "size": 32, "val_scenes": 2, "batch_size": 32, **options})


def make(**options: Any) -> CLIP:
    torch.manual_seed(0)
    return CLIP(**{"architecture": "vlkd-clip-s", "warmup_steps": 0, "schedule": "constant", **options})


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []
        self.modes: set[bool] = set()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.values.append(float(outputs["loss"]))
        self.modes.add(pl_module.model.training and all(m.training for m in pl_module.model.modules()))


def fit(method: CLIP, module: WorldCaptionData | None = None, **options: Any) -> tuple[Losses, Trainer]:
    seen = Losses()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", callbacks=[seen], enable_model_summary=False, **quiet, **options)  # type: ignore[arg-type]
    trainer.fit(method, datamodule=module or data())
    return seen, trainer


def save(tower: CLIPTower, path: Path) -> str:
    card = {"kind": "clip", "name": "t", "architecture": tower.architecture}
    save_bundle(path, card, {f"model.{k}": v for k, v in tower.model.state_dict().items()})
    return str(path)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_loss_falls_and_everything_is_trained() -> None:
    method = make(lr=2e-3)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    seen, trainer = fit(method, max_epochs=6)
    assert len(seen.values) == 12 and sum(seen.values[-2:]) < 0.8 * sum(seen.values[:2])
    assert seen.modes == {True}  # after a validation too: BatchNorm counts on every step
    after = method.state_dict()
    assert set(before) == changed(before, after)
    assert all(v == 12 for k, v in after.items() if k.endswith("num_batches_tracked"))
    assert 0 <= trainer.callback_metrics["score/accuracy"] <= 1
    assert not any(name.startswith("tower") for name in after)


def test_locked_text_half_is_copied_and_stays(tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = build_clip("vlkd-clip-m")  # another image tower, the same text half
    method = make(text_from=save(source, tmp_path / "m.safetensors"), lr=2e-3)
    before = {k: v.clone() for k, v in method.model.state_dict().items()}
    text = source.text_tensors()
    assert all(torch.equal(before[k], v) for k, v in text.items())
    grads: set[str] = set()
    method.on_after_backward = lambda: grads.update(  # type: ignore[method-assign]
        n for n, p in method.model.named_parameters() if p.grad is not None
    )
    fit(method, max_steps=3, limit_val_batches=0)
    trained = {n for n, _ in method.model.named_parameters() if n.startswith("visual.") or n == "logit_scale"}
    assert grads == trained
    moved = changed(before, method.model.state_dict())
    assert trained <= moved and moved.isdisjoint(set(text) - {"logit_scale"})
    words = ["car", "an automobile"]
    assert torch.allclose(method.tower.encode_text(words), source.encode_text(words), atol=1e-6)


def test_text_half_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    architecture = build_clip("vlkd-clip-s").architecture
    narrow = {**architecture["model_cfg"]["text_cfg"], "width": 64}
    other = from_architecture(
        {**architecture, "model_cfg": {**architecture["model_cfg"], "text_cfg": narrow}}
    )
    path = save(other, tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match=r"text_from=.*narrow.safetensors: its text half does not fit"):
        make(text_from=path)


def batch() -> dict[str, Any]:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"images": images, "captions": ["a car", "a tree", "a car", "the sea"]}


def test_same_captions_are_encoded_once_and_are_no_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make()
    method.eval()
    method._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    seen: list[list[str]] = []
    encode = method.tower.encode_text
    monkeypatch.setattr(method.tower, "encode_text", lambda texts: seen.append(texts) or encode(texts))
    loss = method.compute_losses(batch())["contrastive"]
    assert seen == [["a car", "a tree", "the sea"]]
    image, text = method.tower.encode_image(batch()["images"]), encode(batch()["captions"])
    logits = method.model.logit_scale.exp() * image @ text.T
    logits[0, 2] = logits[2, 0] = -torch.inf
    expected = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2
    assert torch.allclose(loss, expected, atol=1e-5)


def test_processes_contrast_with_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make()
    method.eval()
    method._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    whole = method.compute_losses(batch())["contrastive"]
    halves = [{k: v[:2] for k, v in batch().items()}, {k: v[2:] for k, v in batch().items()}]
    other = iter(
        [
            method.tower.encode_image(halves[1]["images"]),
            method.tower.encode_text(halves[1]["captions"]),
            method.caption_keys(halves[1]["captions"]),
        ]
    )
    asked: list[bool] = []

    def gather(mine: torch.Tensor, sync_grads: bool = False) -> torch.Tensor:
        asked.append(sync_grads)
        return torch.stack([mine, next(other)])

    method._trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    monkeypatch.setattr(method, "all_gather", gather)
    assert torch.allclose(method.compute_losses(halves[0])["contrastive"], whole, atol=1e-5)
    # Without gradients, each process would learn from its own rows only.
    assert asked == [True, True, False]


def test_repeated_images_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make()
    module = data()
    module.setup("validate")
    names: dict[str, torch.Tensor] = {}
    method._trainer = SimpleNamespace(world_size=1, datamodule=module)  # type: ignore[assignment]
    monkeypatch.setattr(method, "log_scores", names.update)
    method.eval()
    method.on_validation_epoch_start()
    images, labels = module.regions
    whole = {"images": images.float() / 255, "labels": labels}
    assert method._zero_shot is not None
    predicted = (method.tower.encode_image(whole["images"]) @ method._zero_shot.vectors.T).argmax(1)
    wrong = (predicted + 1) % len(module.names)
    whole["labels"] = torch.where(torch.arange(len(labels)) < 3, predicted, wrong)
    repeated = torch.arange(len(labels)) >= 4
    monkeypatch.setattr(method, "repeated", lambda index, size: repeated)
    method.validation_step(whole, 0)
    method.on_validation_epoch_end()
    assert float(names["accuracy"]) == 0.75


def test_temperature_stays_below_one_hundred() -> None:
    method = make()
    with torch.no_grad():
        method.model.logit_scale.fill_(5.0)
    fit(method, max_steps=1, limit_val_batches=0)
    assert method.tower.logit_scale == pytest.approx(100, rel=1e-4)


def test_bundle_loads_as_a_tower(tmp_path: Path) -> None:
    method = make()
    fit(method, max_steps=1)
    method.eval()
    card, tensors = method.bundle()
    path = save_bundle(tmp_path / "clip.safetensors", {**card, "name": "clip"}, tensors)
    tower = vlkd.load(str(path))
    assert isinstance(tower, CLIPTower)
    images = batch()["images"]
    assert torch.allclose(tower.encode_image(images), method.tower.encode_image(images), atol=1e-6)
    assert torch.allclose(tower.encode_text(["a car"]), method.tower.encode_text(["a car"]), atol=1e-6)
    method.tower.refresh_identity()
    assert tower.identity == method.tower.identity


def test_weights_name_the_loss() -> None:
    with pytest.raises(UserError, match=r"model.weights.contrastive: missing"):
        fit(make(weights={"contrast": 1.0}), max_steps=1, limit_val_batches=0)


def test_large_batches_match_the_plain_loss() -> None:
    method = make()
    method.eval()
    method._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    items = {"images": batch()["images"], "captions": ["a", "b", "c", "d"]}
    image, text = method.tower.encode_image(items["images"]), method.tower.encode_text(items["captions"])
    expected = clip_loss(image, text, method.model.logit_scale.exp())
    assert torch.allclose(method.compute_losses(items)["contrastive"], expected, atol=1e-6)
