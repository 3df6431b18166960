"""Stage 2: class vectors, losses, what is trained, stored crops, batches in parts, the choice of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toy_clip import fit, night, save_clip, tiny_clip, trainer

from vlkd.engine.bundle import save_bundle
from vlkd.errors import UserError
from vlkd.methods.promptkd import PromptKD, PromptTeacher, kd_loss
from vlkd.methods.promptkd.features import TeacherFeatures
from vlkd.models.clip import CLIPTower, build_clip
from vlkd.models.open_classifier import ProjectorSize
from vlkd.models.prompted import PromptSize
from vlkd.text import ClassVectors

PROMPTS = PromptSize(2, 2)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """Vectors of width 40 from 24 px, unlike the student's."""
    return save_clip(tmp_path / "teacher.safetensors", tiny_clip(width=40, size=24, seed=1))


@pytest.fixture
def make(tmp_path: Path, teacher: str) -> Callable[..., PromptKD]:
    student = save_clip(tmp_path / "student.safetensors")

    def build(**options: Any) -> PromptKD:
        torch.manual_seed(0)
        given = {"student": student, "teacher": teacher, "prompts": PROMPTS, "lr": 0.05, "warmup_epochs": 0}
        return PromptKD(**{**given, **options})

    return build


def save(method: Any, path: Path) -> str:
    card, tensors = method.bundle()
    common = {"name": path.stem, "method": "promptkd", "protocol": method.protocol, "scores": {}}
    save_bundle(path, {**common, **card}, tensors)
    return str(path)


def batch(count: int = 6) -> dict[str, torch.Tensor]:
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"images": images, "labels": torch.arange(count), "indices": torch.arange(count)}


# --- losses and what is trained ----------------------------------------------------------------------------


def test_the_loss_is_its_formula(make: Callable[..., PromptKD], teacher: str) -> None:
    method, tower = make(weights={"kd": 100.0}, temperature=2.0), build_clip(teacher)
    data = night()
    fit(method, data, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    with torch.no_grad():
        vectors = tower.encode_text(list(data.names))
        answers = tower.logit_scale * tower.encode_image(batch()["images"]) @ vectors.T
        method.student.eval()
        unit = F.normalize(method.student.projector(method.student.tower(batch()["images"])), dim=1)  # type: ignore[misc]
        found = method.compute_losses(batch())["kd"]
    student = method.student.logit_scale * unit @ vectors.T
    torch.testing.assert_close(found * 100, kd_loss(student, answers, 2.0, 100.0), rtol=1e-4, atol=1e-6)
    assert method.student.spec.size == (16, 16) and tower.spec.size == (24, 24)
    assert (method.student.spec.width, method.student.width) == (24, 40)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, {"tower.prompts", "projector"}),
        ({"trained": "projector"}, {"projector"}),
        ({"trained": "projector", "prompts": None}, {"projector"}),
        ({"trained": "all"}, {"tower.prompts", "tower.visual", "projector"}),
        ({"projector": ProjectorSize(1)}, {"tower.prompts", "projector"}),
        ({"projector": ProjectorSize(3, 7)}, {"tower.prompts", "projector"}),
    ],
)
def test_what_is_said_is_trained_and_nothing_else(
    make: Callable[..., PromptKD], options: dict[str, Any], trained: set[str]
) -> None:
    method = make(**options)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    held = {k: v.clone() for k, v in method.held("teacher").state_dict().items()}
    fit(method, night())
    moved = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    assert {".".join(k.split(".")[1:3]) if ".tower." in k else k.split(".")[1] for k in moved} == trained
    wanted = {k for k in before if any(k.startswith(f"student.{part}.") for part in trained)}
    assert moved == wanted
    assert all(k.startswith("student.") for k in before)
    assert all(torch.equal(v, held[k]) for k, v in method.held("teacher").state_dict().items())


def test_the_student_learns_the_teachers_answers(make: Callable[..., PromptKD]) -> None:
    method = make(trained="all", lr=0.02)
    seen: list[float] = []
    method.on_train_batch_end = lambda outputs, *_: seen.append(float(outputs["loss"]))  # type: ignore[method-assign]
    fit(method, night(), max_epochs=5, limit_val_batches=0)
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])


def test_the_batch_mean_weight_is_shown(make: Callable[..., PromptKD]) -> None:
    method = make()
    fit(method, night(), max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    assert method.describe(batch())[-1] == {"part": "kd", "classes": 34, "batch-mean weight": 29.4118}
    by_mean = make(reduction="batchmean", weights={"kd": 1000 / 34})
    fit(by_mean, night(), max_epochs=1, limit_train_batches=0, limit_val_batches=0)
    fresh = make()
    fit(fresh, night(), max_epochs=1, limit_train_batches=0, limit_val_batches=0)
    found, expected = (m.weighted_sum(m.compute_losses(batch())) for m in (by_mean.eval(), fresh.eval()))
    torch.testing.assert_close(found, expected)
    assert by_mean.describe(batch())[-1]["batch-mean weight"] == 29.4118


# --- class vectors -----------------------------------------------------------------------------------------


def test_class_vectors_are_built_once_after_the_weights(
    make: Callable[..., PromptKD], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    encode = CLIPTower.encode_text
    monkeypatch.setattr(CLIPTower, "encode_text", lambda s, t: calls.append(len(t)) or encode(s, t))
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    method = make()
    fit(method, night())
    assert calls == [34]
    assert method.vectors is not None and method.vectors.encoder == method.held("teacher").identity
    assert method._table.dtype == torch.float32
    fit(make(), night())
    assert calls == [34]  # the next run reads them


def test_prompted_teacher_makes_the_class_vectors_with_its_learned_context(
    make: Callable[..., PromptKD], teacher: str, tmp_path: Path
) -> None:
    stage1 = PromptTeacher(
        teacher,
        visual=PROMPTS,
        text=PromptSize(3, 2),
        words=None,
        template_set="bare",
        averaging=None,
        warmup_epochs=0,
    )
    fit(stage1, night(classes="base", shots=1))
    method = make(teacher=save(stage1, tmp_path / "prompts.safetensors"))
    fit(method, night(), max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    with torch.no_grad():
        expected = stage1.model.encode_text(list(method.names))
        images = batch()["images"]
        answers = method.teacher_logits(batch())
    torch.testing.assert_close(method._table, expected, rtol=1e-4, atol=1e-5)
    logits = stage1.model.logit_scale * stage1.model.encode_image(images) @ expected.T
    torch.testing.assert_close(answers, logits.detach(), rtol=1e-4, atol=1e-4)
    assert (expected - build_clip(teacher).encode_text(list(method.names))).abs().max() > 1e-3


def test_wrong_class_vectors_are_refused(make: Callable[..., PromptKD], teacher: str, tmp_path: Path) -> None:
    names = night()
    names.setup("validate")
    other = ClassVectors.build(names.names, tiny_clip(width=40, size=24, seed=2))
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="class vectors come from encoder"):
        fit(make(class_vectors=str(tmp_path / "other.safetensors")), night())
    few = ClassVectors.build(names.names[:5], build_clip(teacher))
    few.save(tmp_path / "few.safetensors")
    with pytest.raises(UserError, match='no class "'):
        fit(make(class_vectors=str(tmp_path / "few.safetensors")), night())
    shuffled = ClassVectors.build(names.names[::-1], build_clip(teacher))
    shuffled.save(tmp_path / "order.safetensors")
    method = make(class_vectors=str(tmp_path / "order.safetensors"))
    fit(method, night(), max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    assert method.vectors is not None and method.vectors.names == names.names
    torch.testing.assert_close(method._table, shuffled.vectors.flip(0))


# --- stored crops ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", ["device", "loader"])
def test_stored_crops_give_the_same_losses(
    make: Callable[..., PromptKD], pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))

    def run(stored: bool, asked: int = 0) -> list[float]:
        method, seen = make(cache_teacher=stored), []
        method.on_train_batch_end = lambda outputs, *_: seen.append(float(outputs["loss"]))  # type: ignore[method-assign]
        if stored:
            method.held("teacher").encode_image = _counted(method.held("teacher").encode_image)
        data = night(views=2, pipeline=pipeline, num_workers=0)
        fit(method, data, max_epochs=3, limit_val_batches=0)
        if stored:
            assert method.held("teacher").encode_image.images == asked
        return seen

    expected = run(False)
    assert run(True, asked=320) == pytest.approx(expected, rel=1e-4)  # two views of 160 images, in no step
    assert run(True, asked=0) == pytest.approx(expected, rel=1e-4)  # read back


def _counted(encode: Any) -> Any:
    def counted(images: torch.Tensor) -> torch.Tensor:
        counted.images += len(images)  # type: ignore[attr-defined]
        return encode(images)

    counted.images = 0  # type: ignore[attr-defined]
    return counted


def test_stored_features_are_keyed_and_continue(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    tower, data = build_clip(teacher), night(views=3)
    data.setup("fit")
    paths = TeacherFeatures.paths(tower, data)
    assert len(set(paths)) == 3
    for other, options in ((tower, {"seed": 1}), (tower, {"crop": 1}), (tower, {"domain": "sketch"})):
        changed = night(views=3, **options)
        changed.setup("fit")
        assert not set(TeacherFeatures.paths(other, changed)) & set(paths)
    assert not set(TeacherFeatures.paths(tiny_clip(40, 24, seed=2), data)) & set(paths)
    TeacherFeatures.build(tower, data, torch.device("cpu"))
    stamp = paths[0].stat().st_mtime_ns
    paths[1].unlink()
    found = TeacherFeatures.build(tower, data, torch.device("cpu"))
    assert paths[0].stat().st_mtime_ns == stamp and paths[1].is_file()
    rows = found.rows(torch.tensor([5, 0, 5]), torch.tensor([0, 2, 1]))
    expected = [found.views[v][i] for i, v in ((5, 0), (0, 2), (5, 1))]
    assert torch.equal(rows, torch.stack(expected))


# --- batches in parts --------------------------------------------------------------------------------------


def gradients(method: PromptKD) -> dict[str, torch.Tensor]:
    method.zero_grad()
    method.student.train()
    losses = method.compute_losses(batch(8))
    method.weighted_sum(losses).backward()
    return {n: p.grad.clone() for n, p in method.student.named_parameters() if p.grad is not None}


def test_a_batch_in_parts_has_the_gradients_of_the_whole(make: Callable[..., PromptKD]) -> None:
    whole, parts = make(), make(micro_batch=3)
    for method in (whole, parts):
        fit(method, night(), max_epochs=1, limit_train_batches=0, limit_val_batches=0)
    expected, found = gradients(whole), gradients(parts)
    assert expected.keys() == found.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4 * largest)
    for name, value in whole.student.named_buffers():
        torch.testing.assert_close(dict(parts.student.named_buffers())[name], value)


def test_accumulation_equals_one_batch_where_there_is_no_batch_norm(make: Callable[..., PromptKD]) -> None:
    one, many = (make(projector=ProjectorSize(1), lr=0.5) for _ in range(2))
    fit(one, night(batch_size=16), max_epochs=2, limit_val_batches=0)
    fit(many, night(batch_size=4), max_epochs=2, limit_val_batches=0, accumulate_grad_batches=4)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(many.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_bf16_mixed_trains_with_float32_losses(make: Callable[..., PromptKD]) -> None:
    method, seen = make(), []
    compute = method.compute_losses

    def noted(given: Any) -> Any:
        losses = compute(given)
        seen.extend(loss.dtype for loss in losses.values())
        return losses

    method.compute_losses = noted  # type: ignore[method-assign]
    fit(method, night(), max_epochs=1, precision="bf16-mixed", limit_val_batches=1)
    assert set(seen) == {torch.float32}
    assert all(p.dtype == torch.float32 for p in method.parameters())


# --- labels, the choice of an epoch ------------------------------------------------------------------------


def test_labels_alone_with_given_vectors_and_another_network(tmp_path: Path) -> None:
    names = night()
    names.setup("validate")
    vectors = ClassVectors(F.normalize(torch.randn(34, 12), dim=1), names.names, encoder="elsewhere")
    vectors.save(tmp_path / "vectors.safetensors")
    given = {"class_vectors": str(tmp_path / "vectors.safetensors"), "prompts": None, "trained": "all"}
    method = PromptKD("resnet8", image_size=16, weights={"ce": 1.0}, **given)  # type: ignore[arg-type]
    before = {k: v.clone() for k, v in method.state_dict().items()}
    fit(method, night(classes="base"), max_epochs=1)
    head = method.student.tower.classifier.head_path
    still = {k for k, v in method.state_dict().items() if torch.equal(v, before[k])}
    unread = {f"student.tower.classifier.network.{head}.{part}" for part in ("weight", "bias")}
    assert still - {"student.projector.0.bias"} == unread  # a bias before BatchNorm has no gradient
    given_batch = {"images": batch()["images"], "labels": torch.tensor([0, 2, 3, 4, 5, 7])}
    method.eval()
    found = method.compute_losses(given_batch)["ce"]
    base = [k for k in range(34) if k not in method.novel]
    logits = 100 * method.student.encode_image(given_batch["images"]) @ vectors.vectors[base].T
    labels = torch.tensor([base.index(k) for k in given_batch["labels"].tolist()])
    torch.testing.assert_close(found, F.cross_entropy(logits, labels))
    assert method.protocol["labels"] == "used in training"
    student = save(method, tmp_path / "aligned.safetensors")
    # That student is then a teacher, with the class vectors that it brings.
    next_one = PromptKD("resnet8", image_size=16, teacher=student, prompts=None, trained="all")
    fit(next_one, night(), max_epochs=1)
    assert next_one.vectors is not None and next_one.vectors.encoder == "elsewhere"
    torch.testing.assert_close(next_one._table, vectors.vectors)


def test_the_best_epoch_on_held_out_images_is_kept(make: Callable[..., PromptKD]) -> None:
    method = make(choose="held_out", lr=0.3)
    states: list[dict[str, torch.Tensor]] = []
    scores: list[float] = []
    score = method._held_out_score

    def noted() -> float:
        states.append({k: v.clone() for k, v in method.state_dict().items()})
        scores.append([0.1, 0.7, 0.3][len(scores)])
        assert 0 <= score() <= 1
        return scores[-1]

    method._held_out_score = noted  # type: ignore[method-assign]
    fit(method, night(holdout=0.2), max_epochs=3, limit_val_batches=1)
    assert all(torch.equal(v, states[1][k]) for k, v in method.state_dict().items())
    assert method.scored_at == -1
    assert method.protocol["checkpoint"].startswith("epoch 2 of 3, the best on labelled images kept back")


def test_protocol_tells_which_images_were_trained_on(make: Callable[..., PromptKD]) -> None:
    for options, expected in (
        ({}, "160 of base and novel classes (transductive)"),
        ({"classes": "base"}, "127 of base classes only"),
        ({"novel": None}, "160 of the training split"),
    ):
        method = make()
        fit(method, night(**options), max_epochs=1, limit_train_batches=1, limit_val_batches=1)
        assert method.protocol["images of training"] == expected
        assert method.protocol["checkpoint"] == "last step, not chosen by any score"
        assert method.protocol["labels"] == "not used"


def test_weights_given_beat_those_of_the_data_set(make: Callable[..., PromptKD]) -> None:
    for given, expected in ((None, 7.0), ({"kd": 3.0}, 3.0)):
        method, data = make(weights=given, weights_of={"night": {"kd": 7.0}}), night()
        data.dataset = "night"  # type: ignore[attr-defined]
        fit(method, data, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
        assert method.weights == {"kd": expected}
    other = make(weights_of={"day": {"kd": 7.0}})
    fit(other, data, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    assert other.weights == {"kd": 1000.0}


def test_class_vectors_of_a_teacher_without_words_are_those_of_stage_1(
    make: Callable[..., PromptKD], teacher: str, tmp_path: Path
) -> None:
    stage1 = PromptTeacher(teacher, visual=PROMPTS, text=None, template_set="vild", averaging=None)
    fit(stage1, night(classes="base", shots=1), max_epochs=1)
    method = make(teacher=save(stage1, tmp_path / "prompts.safetensors"))
    fit(method, night(), max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    torch.testing.assert_close(method._table, stage1._vectors)
    assert method.vectors is not None and len(method.vectors.templates) == 14


def test_a_frozen_tower_is_in_no_checkpoint_but_its_hash(
    make: Callable[..., PromptKD], tmp_path: Path
) -> None:
    method = make()
    made = fit(method, night(), max_epochs=1, limit_val_batches=0)
    made.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    parts = {".".join(name.split(".")[1:3]) for name in stored["state_dict"]}
    assert parts == {"tower.prompts"} | {f"projector.{k}" for k in (0, 1, 3)}
    again = make()
    again.load_state_dict(stored["state_dict"])
    for name, value in method.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with torch.no_grad():
        again.student.tower.visual.proj.add_(1)
    with pytest.raises(UserError, match="its weights are not those the run began with"):
        again.on_load_checkpoint(stored)
    whole = make(trained="all")
    fit(whole, night(), max_epochs=1, limit_val_batches=0).save_checkpoint(tmp_path / "all.ckpt")
    assert (
        torch.load(tmp_path / "all.ckpt", weights_only=True)["state_dict"].keys() == whole.state_dict().keys()
    )


def test_what_is_wrong_is_known_before_the_teacher(make: Callable[..., PromptKD]) -> None:
    sizes = {"prompts": {"length": 2, "depth": 2}, "projector": {"layers": 2, "hidden": None}}
    nulls = dict.fromkeys(
        [
            "student_pretrained",
            "student_arguments",
            "image_size",
            "class_vectors",
            "weights",
            "weights_of",
            "micro_batch",
        ]
    )
    plain = {"student": "vlkd-clip-vit-s", "trained": "prompts", "temperature": 1.0, **sizes, **nulls}
    PromptKD.check_before_teacher(plain)
    PromptKD.check_before_teacher(plain | {"projector": None})
    for change, message in (
        ({"prompts": {"length": 2, "depth": 99}}, "depth 99"),
        ({"projector": {"layers": 5, "hidden": None}}, "5 layers"),
        ({"student": "foo"}, "foo"),
        ({"weights_of": {"dtd": {"kl": 1.0}}}, "model.weights.kl"),
        ({"class_vectors": "/nowhere"}, "/nowhere: no such file"),
        ({"temperature": 0.0}, "model.temperature=0.0"),
    ):
        with pytest.raises(UserError, match=message):
            PromptKD.check_before_teacher(plain | change)


def test_test_images_as_training_images_are_told(make: Callable[..., PromptKD]) -> None:
    method, data = make(), night()
    data.setup("fit")
    data.train_dataset = data.val_dataset
    fit(method, data, max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    assert method.protocol["images of training"] == "60, the test images themselves (transductive)"
    method, data = make(), night()
    data.train_is_test = True  # type: ignore[attr-defined]
    fit(method, data, max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    assert method.protocol["images of training"] == "160, the test images themselves (transductive)"


def test_the_teacher_is_scored_as_its_card_has_it(
    make: Callable[..., PromptKD], teacher: str, tmp_path: Path
) -> None:
    stage1 = PromptTeacher(
        teacher, visual=PROMPTS, text=None, words=None, template_set="bare", averaging=None, warmup_epochs=0
    )
    scores = fit(stage1, night(classes="base", shots=1)).callback_metrics
    method = make(teacher=save(stage1, tmp_path / "prompts.safetensors"))
    data = night()
    fit(method, data, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    found = method.score_teacher(data.val_dataloader())
    expected = {k.removeprefix("score/"): float(v) for k, v in scores.items() if k.startswith("score/")}
    assert found == pytest.approx(expected)
    assert method.teacher_record()["name"] == "prompts"  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "data", "run", "message"),
    [
        ({"weights": {"kl": 1.0}}, {}, {}, "model.weights.kl: no such loss; there are kd, ce"),
        ({"teacher": None}, {}, {}, "model.teacher: missing; give a teacher, or class_vectors"),
        ({"prompts": None}, {}, {}, "model.trained=prompts: there are none"),
        ({"projector": None}, {}, {}, "width 24, the class vectors 40; give a projector"),
        ({"projector": ProjectorSize(4)}, {}, {}, "4 layers; expected 1, 2 or 3"),
        ({"micro_batch": 0}, {}, {}, "model.micro_batch=0"),
        ({"temperature": -1.0}, {}, {}, "model.temperature=-1.0"),
        ({"weights": {}}, {}, {}, "expected at least one loss"),
        ({"warmup_epochs": -1}, {}, {}, "warmup_epochs -1"),
        ({"projector": ProjectorSize(2, 0)}, {}, {}, "hidden 0; expected a width"),
        ({}, {}, {"precision": "bf16-true"}, "trainer.precision=bf16-true: weights must stay in float32"),
        ({"cache_teacher": True}, {}, {}, "model.cache_teacher: crops must come again; set data.views"),
        ({}, {}, {"accumulate_grad_batches": 2}, "model.micro_batch to a part"),
        ({"weights": {"ce": 1.0}}, {}, {}, "no base class; set data.classes=base"),
        ({"choose": "held_out"}, {}, {}, "set data.holdout=0.1"),
        ({}, {}, {"max_epochs": -1, "max_steps": 2}, "trainer.max_epochs: give it"),
        ({"teacher": "kd-world-teacher"}, {}, {}, "kd-world-teacher: holds a classifier; expected prompts"),
        ({"teacher": "clip-wrld-m"}, {}, {}, "near: clip-world-m"),
        ({"student": "resnet8"}, {}, {}, "resnet8: takes no prompts; set model.prompts: null"),
        ({"student": "resnet8", "prompts": None, "trained": "all", "micro_batch": 4}, {}, {}, "BatchNorm"),
        ({}, {"batch_size": 1}, {}, "batch of one"),
    ],
)
def test_what_cannot_be_is_one_line(
    make: Callable[..., PromptKD],
    options: dict[str, Any],
    data: dict[str, Any],
    run: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message) as error:
        fit(make(**options), night(**data), **run)
    assert "\n" not in str(error.value) and len(str(error.value)) < 320


def test_validation_without_training_scores_the_fresh_student(make: Callable[..., PromptKD]) -> None:
    found = trainer().validate(make(), night(), verbose=False)[0]
    assert 0 <= found["score/accuracy_novel"] <= 1
