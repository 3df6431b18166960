"""CLIPKD: the losses, what is trained, the scores, the bundle."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from commands import train_in_processes
from exactness import losses
from lightning.pytorch import Trainer

import vlkd
from vlkd.data import WorldCaptionData
from vlkd.engine.bundle import save_bundle
from vlkd.engine.cli import main
from vlkd.errors import UserError
from vlkd.losses import affinity_mimicry, clip_loss, interactive_contrastive
from vlkd.methods.clipkd import CLIPKD, retrieval_scores, zero_shot_scores
from vlkd.metrics import retrieval_recall
from vlkd.models.clip import CLIPTower, build_clip, from_architecture
from vlkd.text import ClassVectors

ALL = {"contrastive": 1.0, "feature": 2.0, "interactive": 0.5, "affinity": 1.0}


def data(**options: Any) -> WorldCaptionData:
    small = {"images": 32, "size": 32, "val_scenes": 2, "batch_size": 16, "val_pairs": 6}
    return WorldCaptionData(**{**small, **options})


def make(**options: Any) -> CLIPKD:
    torch.manual_seed(0)
    plain = {"teacher": "vlkd-clip-m", "warmup_steps": 0, "schedule": "constant", "weights": ALL}
    return CLIPKD(**{**plain, **options})


def fit(method: CLIPKD, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)  # type: ignore[arg-type]
    trainer.fit(method, datamodule=data())
    return trainer


def save(tower: CLIPTower, path: Path, **card: Any) -> str:
    card = {"kind": "clip", "name": "t", "architecture": tower.architecture, **card}
    save_bundle(path, card, {f"model.{k}": v for k, v in tower.model.state_dict().items()})
    return str(path)


def alone(method: CLIPKD) -> CLIPKD:
    """In eval mode, so that no statistic of a batch matters, on one process."""
    method.eval()
    method._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    return method


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student of another width, patch tower, image size and tokenizer."""
    architecture = copy.deepcopy(build_clip("vlkd-clip-vit").architecture)
    architecture["model_cfg"]["embed_dim"] = 48
    architecture["model_cfg"]["vision_cfg"] |= {"image_size": 32, "layers": 2, "width": 64}
    architecture["model_cfg"]["text_cfg"] |= {"vocab_size": 2000, "context_length": 20, "layers": 1}
    architecture["preprocess"]["size"] = 32
    torch.manual_seed(3)
    return save(from_architecture(architecture), tmp_path_factory.mktemp("narrow") / "n.safetensors")


def batch() -> dict[str, Any]:
    images = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    return {"images": images, "captions": ["a car", "a tree", "a car", "the sea"]}


def test_losses_are_those_of_the_formulas() -> None:
    method = alone(make())
    losses, teacher = method.compute_losses(batch()), method.held("teacher")
    image, text = method.tower.encode_image(batch()["images"]), method.tower.encode_text(batch()["captions"])
    t_image, t_text = teacher.encode_image(batch()["images"]), teacher.encode_text(batch()["captions"])
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    scale = method.tower.logit_scale
    expected = {
        "contrastive": clip_loss(image, text, scale, same),
        "feature": ((image - t_image) ** 2).sum() / 4 + ((text - t_text) ** 2).sum() / 4,
        "interactive": interactive_contrastive(image, text, t_image, t_text, scale, same),
        "affinity": affinity_mimicry(image, text, t_image, t_text, scale, teacher.logit_scale),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, atol=1e-5, rtol=1e-5)


def test_captions_are_encoded_once_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen = alone(make()), []
    for tower in (method.tower, method.held("teacher")):
        monkeypatch.setattr(
            tower, "encode_text", lambda texts, encode=tower.encode_text: seen.append(texts) or encode(texts)
        )
    method.compute_losses(batch())
    assert seen == [["a car", "a tree", "the sea"]] * 2


@pytest.mark.parametrize("weights", [ALL, *({name: 1.0} for name in ALL)], ids=lambda w: "+".join(w))
def test_everything_trained_gets_a_gradient_and_nothing_else(weights: dict[str, float], narrow: str) -> None:
    method = make(weights=weights, student=narrow)
    method._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    losses = method.compute_losses(batch())
    assert losses.keys() == weights.keys()
    method.weighted_sum(losses).backward()
    trainable = {n for n, p in method.named_parameters() if p.requires_grad}
    assert {n for n, p in method.named_parameters() if p.grad is not None} == trainable
    assert ("model.logit_scale" in trainable) == (set(weights) != {"feature"})
    projects = bool({"feature", "interactive"} & set(weights))
    assert ("image_projector.weight" in trainable) == ("text_projector.bias" in trainable) == projects
    assert not any(p.requires_grad or p.grad is not None for p in method.held("teacher").parameters())
    assert not any("teacher" in name or name.startswith("tower") for name in method.state_dict())


def test_projectors_bring_vectors_to_the_teachers_width(narrow: str) -> None:
    method = alone(make(student=narrow))
    losses, teacher = method.compute_losses(batch()), method.held("teacher")
    image = method.image_projector(method.tower.encode_image(batch()["images"]))
    text = method.text_projector(method.tower.encode_text(batch()["captions"]))
    assert image.shape == (4, 128) and method.tower.spec.width == 48
    t_image, t_text = teacher.encode_image(batch()["images"]), teacher.encode_text(batch()["captions"])
    expected = sum(
        ((F.normalize(s, dim=1) - t) ** 2).sum() / 4 for s, t in ((image, t_image), (text, t_text))
    )
    torch.testing.assert_close(losses["feature"], expected)
    assert not hasattr(make(weights={"contrastive": 1.0, "affinity": 1.0}, student=narrow), "image_projector")


def test_feature_alone_takes_the_teachers_scale(tmp_path: Path) -> None:
    teacher = build_clip("vlkd-clip-m")
    with torch.no_grad():
        teacher.model.logit_scale.fill_(4.0)
    method = make(weights={"feature": 1.0}, teacher=save(teacher, tmp_path / "t.safetensors"))
    assert method.tower.logit_scale == pytest.approx(teacher.logit_scale)


def test_the_student_comes_nearer_to_its_teacher() -> None:
    method = make(weights={"feature": 1.0}, lr=2e-3)
    before = {k: v.clone() for k, v in method.held("teacher").state_dict().items()}
    module = data()
    module.setup("fit")
    probe = next(iter(module.train_dataloader()))

    def distance() -> float:
        method._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
        with torch.no_grad():
            return float(method.compute_losses(probe)["feature"])

    first = distance()
    fit(method, max_epochs=6, limit_val_batches=0)
    assert distance() < 0.5 * first
    assert all(torch.equal(before[k], v) for k, v in method.held("teacher").state_dict().items())
    assert not method.held("teacher").training


def test_scores_and_protocol() -> None:
    method = make(template_set=["a photo of a {}", "the {}"])
    trainer = fit(method, max_epochs=1)
    method.eval()
    module = data()
    module.setup("validate")
    images, labels = module.regions
    vectors = ClassVectors.build(module.names, method.tower, ["a photo of a {}", "the {}"]).vectors
    pairs = next(iter(module.pair_batches()))
    with torch.no_grad():
        right = (method.tower.encode_image(images.float() / 255) @ vectors.T).argmax(1) == labels
        image = method.tower.encode_image(pairs["images"])
        text = method.tower.encode_text([own[0] for own in pairs["captions"]])
    found = {k.removeprefix("score/"): float(v) for k, v in trainer.callback_metrics.items() if "score" in k}
    recall = retrieval_recall(image, text, torch.arange(6))
    assert found == pytest.approx({"accuracy": float(right.float().mean()), **recall}, abs=1e-6)
    assert method.protocol["retrieval gallery"] == "6 images, 6 captions"
    assert method.protocol["templates"] == ["a photo of a {}", "the {}"]
    assert method.protocol["teacher"] == "vlkd-clip-m" and "last step" in method.protocol["checkpoint"]


def test_public_scores_are_those_of_any_tower() -> None:
    tower, module = build_clip("vlkd-clip-s"), data()
    module.setup("validate")
    found = zero_shot_scores(tower, module.val_dataloader(), module.names, "photo")
    assert found["accuracy"] == pytest.approx(
        zero_shot_scores(tower, module.val_dataloader(), module.names, "a photo of a {}")["accuracy"]
    )
    several = [{"images": torch.rand(3, 3, 32, 32), "captions": [["a"], ["b", "c"], ["d"]]}] * 2
    scores = retrieval_scores(tower, several, ks=(8,))
    assert (scores["images"], scores["captions"]) == (6, 8) and 0 <= scores["image_to_text_R@8"] <= 1
    assert retrieval_scores(tower, []) == {}


def test_gate_knows_the_teacher_by_its_scores(tmp_path: Path) -> None:
    teacher = build_clip("vlkd-clip-m")
    path = save(teacher, tmp_path / "t.safetensors", scores={"accuracy": 0.5}, data="somewhere")
    method, module = make(teacher=path), data()
    module.setup("validate")
    method._trainer = SimpleNamespace(world_size=1, datamodule=module)  # type: ignore[assignment]
    assert method.teacher_record() == {"name": "t", "scores": {"accuracy": 0.5}, "data": "somewhere"}
    scores = method.score_teacher(module.val_dataloader())
    expected = zero_shot_scores(teacher, module.val_dataloader(), module.names)
    assert scores["accuracy"] == expected["accuracy"] and "text_to_image_R@5" in scores
    assert make().teacher_record() == {"name": "vlkd-clip-m"}


def test_bundle_loads_as_a_tower_without_teacher_and_projectors(tmp_path: Path, narrow: str) -> None:
    method = make(student=narrow)
    fit(method, max_steps=1, limit_val_batches=0)
    method.eval()
    card, tensors = method.bundle()
    assert all(name.startswith("model.") for name in tensors)
    tower = vlkd.load(str(save_bundle(tmp_path / "s.safetensors", {**card, "name": "s"}, tensors)))
    assert isinstance(tower, CLIPTower) and tower.spec == method.tower.spec
    images = batch()["images"]
    assert torch.equal(tower.encode_image(images), method.tower.encode_image(images))
    assert torch.equal(tower.encode_text(["a car"]), method.tower.encode_text(["a car"]))


def test_locked_text_half_and_inheritance(tmp_path: Path) -> None:
    torch.manual_seed(5)
    teacher = build_clip("vlkd-clip-m")
    path = save(teacher, tmp_path / "t.safetensors")
    method = alone(make(teacher=path, text_from=path))
    losses = method.compute_losses(batch())
    text = method.tower.encode_text(["a car", "a tree"])
    torch.testing.assert_close(text, method.held("teacher").encode_text(["a car", "a tree"]))
    method.weighted_sum(losses).backward()
    trained = {n for n, p in method.model.named_parameters() if p.grad is not None}
    assert trained == {
        n for n, _ in method.model.named_parameters() if n.startswith("visual.") or n == "logit_scale"
    }
    twin = make(teacher=path, student="vlkd-clip-m", inherit=["visual", "text"])
    own, given = twin.model.state_dict(), twin.held("teacher").model.state_dict()
    assert all(torch.equal(own[k], given[k]) for k in given)
    assert alone(twin).compute_losses(batch())["affinity"].item() == pytest.approx(0, abs=1e-6)
    rows = {row["part"]: row for row in twin.describe(batch())}
    assert rows["inherited visual"]["kept"] == 0 and rows["inherited text"]["copied"] > 100_000
    assert rows["teacher image"]["input"] == "48x48" and rows["student text"]["width"] == 128


def test_processes_see_what_one_would_see(monkeypatch: pytest.MonkeyPatch) -> None:
    method = alone(make())
    whole = method.compute_losses(batch())
    half, other = ({k: v[part] for k, v in batch().items()} for part in (slice(0, 2), slice(2, 4)))
    teacher = method.held("teacher")
    answers = iter(
        [
            method.tower.encode_image(other["images"]),
            method.tower.encode_text(other["captions"]),
            method.caption_keys(other["captions"]),
            teacher.encode_image(other["images"]),
            teacher.encode_text(other["captions"]),
        ]
    )
    asked: list[bool] = []

    def gather(mine: torch.Tensor, sync_grads: bool = False) -> torch.Tensor:
        asked.append(sync_grads)
        return torch.stack([mine, next(answers)])

    method._trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    monkeypatch.setattr(method, "all_gather", gather)
    for name, value in method.compute_losses(half).items():
        torch.testing.assert_close(value, whole[name], atol=1e-5, rtol=1e-5)
    assert asked == [True, True, False, False, False]


PROCESSES = """
model:
  class_path: vlkd.methods.clipkd.CLIPKD
  init_args: {teacher: vlkd-clip-m, student: vlkd-clip-vit, warmup_steps: 0}
data:
  class_path: vlkd.data.WorldCaptionData
  init_args: {images: 32, size: 48, val_scenes: 2, val_pairs: 4}
trainer: {max_epochs: 2, accelerator: cpu, enable_model_summary: false}
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    # The student is a vision transformer: BatchNorm would see half a batch in each of the processes.
    config = tmp_path / "config.yaml"
    config.write_text(PROCESSES)
    one, two = tmp_path / "one", tmp_path / "two"
    alone = ["--data.batch_size=8", "--trainer.log_every_n_steps=1"]
    assert main(["train", str(config), "--run", str(one), *alone]) == 0
    processes = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    train_in_processes(config, two, "--data.batch_size=4", *processes)
    logged = [losses(run) for run in (one, two)]
    assert len(logged[0]) == len(logged[1]) == 8
    for step, values in logged[0].items():
        found = {name: float(value) for name, value in logged[1][step].items()}
        assert found == pytest.approx({k: float(v) for k, v in values.items()}, rel=1e-5, abs=1e-6), step
    # Not the weights: Adam makes steps of rounding noise where a gradient is zero, as for biases of keys.
    towers = [build_clip(str(next(run.glob("student-*.safetensors")))) for run in (one, two)]
    images = [tower.encode_image(batch()["images"]) for tower in towers]
    texts = [tower.encode_text(batch()["captions"]) for tower in towers]
    torch.testing.assert_close(images[1], images[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(texts[1], texts[0], atol=1e-4, rtol=0)
    records = [json.loads((run / "record.json").read_text()) for run in (one, two)]
    assert records[1]["scores"] == records[0]["scores"]
    assert records[0]["protocol"] == records[1]["protocol"]


def test_half_precision_trains_with_full_losses() -> None:
    method, kinds = make(), set()
    method.on_before_backward = lambda loss: kinds.add(loss.dtype)  # type: ignore[method-assign]
    trainer = fit(method, max_steps=2, precision="bf16-mixed")
    assert kinds == {torch.float32}
    assert all(torch.isfinite(v).all() for v in trainer.callback_metrics.values())


def test_wrong_options_are_one_line() -> None:
    with pytest.raises(UserError, match=r"model.weights.contrast: no such loss; CLIPKD has contrastive"):
        make(weights={"contrast": 1.0})
    with pytest.raises(UserError, match="inherit: 'image' is unknown"):
        make(inherit=["image"])
    with pytest.raises(UserError, match='no template set "photos"'):
        make(template_set="photos")
