"""What all methods that distil classifiers share, on two tiny networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_images import NAMES, ToyImageData, fit, toy_teacher

from vlkd.engine.bundle import load_bundle, save_bundle
from vlkd.errors import UserError
from vlkd.methods.kd import KD
from vlkd.models.classifier import classifier_from_architecture

STUDENT: dict[str, Any] = {
    "student": "toy_images:ToyNet",
    "student_arguments": {"width": 6},
    "image_size": 16,
}


def test_learns_without_a_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = KD(**STUDENT, num_classes=4, lr=0.1, schedule="constant")
    trainer = fit(method, ToyImageData(), 60, tmp_path)
    scores = trainer.validate(method, ToyImageData(), verbose=False)[0]
    assert scores["score/accuracy"] > 0.7
    assert method.protocol["labels"] == "used in training"


def test_the_teacher_is_frozen_and_outside_the_checkpoint(tmp_path: Path) -> None:
    method = KD(**STUDENT, teacher=toy_teacher(tmp_path), weights={"ce": 1.0, "kd": 1.0})
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    fit(method, ToyImageData(), 4, tmp_path)
    after = method.teacher.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(name.startswith(("student.", "terms.")) for name in method.state_dict())


ALL = {
    "ce": 1.0,
    "kd": 1.0,
    "dkd": 1.0,
    "dist": 1.0,
    "sinkhorn": 1.0,
    "rkd": 1.0,
    "pkt": 1.0,
    "sp": 1.0,
    "at": 1.0,
    "nst": 1.0,
    "fitnet": 1.0,
    "vid": 1.0,
    "ofd": 1.0,
    "review_kd": 1.0,
    "crd": 1.0,
}


@pytest.mark.parametrize("name", [name for name in ALL if name != "ce"])
def test_every_loss_trains_the_student_and_its_own_parts(name: str, tmp_path: Path) -> None:
    options = {"crd": {"negatives": 16, "width": 8}}
    taps = {"student_taps": ["stem.1", "body.1"], "teacher_taps": ["stem.1", "body.1"]}
    torch.manual_seed(0)
    method = KD(
        **STUDENT,
        **taps,
        teacher=toy_teacher(tmp_path),
        weights={name: 1.0},
        options={name: options[name]} if name in options else {},
        lr=0.01,
    )
    data = ToyImageData()
    fit(method, data, 2, tmp_path)
    method.zero_grad()
    loss = method.compute_losses(next(iter(data.train_dataloader())))[name]
    assert loss.ndim == 0 and torch.isfinite(loss)
    loss.backward()
    missing = {key for key, value in method.named_parameters() if value.grad is None}
    head = {"student.network.fc.weight", "student.network.fc.bias"}
    assert missing <= head, missing
    logits = name in ("kd", "dkd", "dist", "sinkhorn")
    assert missing == (set() if logits else head)


def test_losses_and_options_are_checked(tmp_path: Path) -> None:
    teacher = toy_teacher(tmp_path)
    with pytest.raises(UserError, match=r"model\.weights\.dkdd: no such loss; did you mean dkd"):
        KD(**STUDENT, teacher=teacher, weights={"dkdd": 1.0})
    with pytest.raises(
        UserError, match=r"model\.options\.kd\.temprature: no such option; kd takes .*temperature"
    ):
        KD(**STUDENT, teacher=teacher, weights={"kd": 1.0}, options={"kd": {"temprature": 2.0}})
    with pytest.raises(UserError, match=r"at: no such loss in"):
        KD(**STUDENT, teacher=teacher, weights={"kd": 1.0}, options={"at": {}})
    with pytest.raises(UserError, match=r"options\.ce: the cross entropy takes no options"):
        KD(**STUDENT, num_classes=4, weights={"ce": 1.0}, options={"ce": {"label_smoothing": 0.1}})
    with pytest.raises(UserError, match=r"warmup\.kd=0: expected a number of epochs above 0"):
        KD(**STUDENT, teacher=teacher, weights={"kd": 1.0}, warmup={"kd": 0})
    with pytest.raises(UserError, match=r"fitnet\.tap=5: there are 1 taps"):
        KD(**STUDENT, teacher=teacher, weights={"fitnet": 1.0}, options={"fitnet": {"tap": 5}})
    with pytest.raises(UserError, match="ofd compares maps before their ReLU"):
        KD(**STUDENT, teacher=teacher, weights={"ofd": 1.0})
    with pytest.raises(UserError, match=r"kd\.student_logits: no such option"):
        KD(**STUDENT, teacher=teacher, weights={"kd": 1.0}, options={"kd": {"student_logits": 1}})
    with pytest.raises(UserError, match="teacher: missing"):
        KD(**STUDENT, num_classes=4, weights={"kd": 1.0})


def test_taps_are_checked(tmp_path: Path) -> None:
    teacher = toy_teacher(tmp_path)
    wrong = {"student_taps": ["stemm.0"], "teacher_taps": ["stem.0"]}
    with pytest.raises(UserError, match=r"stemm\.0.*stem\.0"):
        KD(**STUDENT, **wrong, teacher=teacher, weights={"at": 1.0})
    with pytest.raises(UserError, match="each path may stand there once"):
        KD(**STUDENT, student_taps=["stem", "stem"], num_classes=4)
    with pytest.raises(UserError, match="compared pairwise"):
        KD(**STUDENT, student_taps=["stem"], teacher=teacher, weights={"at": 1.0})
    flat = {"student_taps": ["fc"], "teacher_taps": ["fc"]}
    with pytest.raises(UserError, match=r"student_taps fc: gives \(2, 4\), but this loss compares maps"):
        KD(**STUDENT, **flat, teacher=teacher, weights={"at": 1.0})


def test_teacher_and_data_must_have_the_same_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 3 classes, the student 4"):
        KD(**STUDENT, teacher=toy_teacher(tmp_path, classes=3), num_classes=4, weights={"kd": 1.0})
    method = KD(**STUDENT, teacher=toy_teacher(tmp_path, classes=3), weights={"kd": 1.0})
    with pytest.raises(UserError, match="the data have 4 classes, the student 3"):
        fit(method, ToyImageData(), 1, tmp_path)
    order = [NAMES[1], NAMES[0], *NAMES[2:]]
    method = KD(**STUDENT, teacher=toy_teacher(tmp_path, class_names=order), weights={"kd": 1.0})
    with pytest.raises(UserError, match="its class 0 is 'green', that of the data is 'red'"):
        fit(method, ToyImageData(), 1, tmp_path)


def test_losses_that_read_labels_need_them(tmp_path: Path) -> None:
    teacher = toy_teacher(tmp_path)
    for name, reads in {"ce": True, "dkd": True, "crd": True, "kd": False, "at": False}.items():
        method = KD(**STUDENT, teacher=teacher, weights={name: 1.0})
        assert bool(method.uses_labels) == reads
        assert method.protocol["labels"] == ("used in training" if reads else "not used")

    class Unlabelled(ToyImageData):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            self.train_labels = self.train_set.labels = torch.full((48,), -1)

    with pytest.raises(
        UserError, match="Unlabelled: training labels from -1 to -1, expected 0 to 3; read by dkd"
    ):
        fit(KD(**STUDENT, teacher=teacher, weights={"dkd": 1.0}), Unlabelled(), 1, tmp_path)
    fit(KD(**STUDENT, teacher=teacher, weights={"kd": 1.0}), Unlabelled(), 1, tmp_path)


def test_a_checkpoint_with_a_memory_can_be_scored(tmp_path: Path) -> None:
    def build() -> KD:
        options = {"crd": {"negatives": 8, "width": 4}}
        return KD(**STUDENT, teacher=toy_teacher(tmp_path), weights={"ce": 1.0, "crd": 1.0}, options=options)

    trained = build()
    fit(trained, ToyImageData(), 2, tmp_path)
    scored = build()
    scored.load_state_dict(trained.state_dict())
    assert torch.equal(scored.student.head.weight, trained.student.head.weight)


def test_a_teacher_by_name_needs_a_class_count(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.num_classes: give it"):
        KD(**STUDENT, teacher="resnet8", teacher_arguments={}, weights={"kd": 1.0})
    method = KD(**STUDENT, num_classes=4, teacher="resnet8", teacher_arguments={}, weights={"kd": 1.0})
    assert method.teacher.num_classes == 4
    with pytest.raises(UserError, match="holds no bundle"):
        KD(**STUDENT, teacher=str(tmp_path), weights={"kd": 1.0})


def test_warm_up_raises_one_factor(tmp_path: Path) -> None:
    method = KD(**STUDENT, teacher=toy_teacher(tmp_path), weights={"ce": 1.0, "kd": 2.0}, warmup={"kd": 4.0})
    losses = {"ce": torch.tensor(1.0), "kd": torch.tensor(1.0)}
    totals = []
    for epoch in (0, 1, 4, 9):
        type(method).current_epoch = property(lambda self, epoch=epoch: epoch)  # type: ignore
        totals.append(float(method.weighted_sum(losses)))
    del type(method).current_epoch
    assert totals == [1.0, 1.5, 3.0, 3.0]


def test_bundle_is_the_student_alone(tmp_path: Path) -> None:
    method = KD(**STUDENT, teacher=toy_teacher(tmp_path), weights={"ce": 1.0, "kd": 1.0})
    fit(method, ToyImageData(), 2, tmp_path)
    card, tensors = method.bundle()
    card |= {"name": "toy", "protocol": {"labels": "not used"}}
    save_bundle(tmp_path / "student.safetensors", card, tensors)
    card, tensors = load_bundle(tmp_path / "student.safetensors")
    assert card["class_names"] == list(NAMES) and card["kind"] == "classifier"
    rebuilt = classifier_from_architecture(card["architecture"])
    rebuilt.load_state_dict({name.removeprefix("student."): value for name, value in tensors.items()})
    images = torch.rand(3, 3, 16, 16)
    method.eval()
    assert torch.equal(rebuilt.eval()(images), method.student(images))
    scored = KD.from_bundle(tmp_path / "student.safetensors").eval()
    assert torch.equal(scored.student(images), method.student(images))  # type: ignore
    assert scored.protocol == {"labels": "not used"}


def test_teacher_is_scored_for_the_gate(tmp_path: Path) -> None:
    method = KD(**STUDENT, teacher=toy_teacher(tmp_path, scores={"accuracy": 0.9}), weights={"kd": 1.0})
    data = ToyImageData()
    data.setup()
    record = method.teacher_record()
    assert record is not None and record["scores"] == {"accuracy": 0.9} and record["name"] == "toy-teacher"
    right = (method.teacher(data.val_set.images).argmax(1) == data.val_set.labels).float().mean()
    assert method.score_teacher(data.val_dataloader())["accuracy"] == pytest.approx(float(right))


def test_dry_run_rows_name_widths_and_grids(tmp_path: Path) -> None:
    method = KD(**STUDENT, teacher=toy_teacher(tmp_path), weights={"kd": 1.0})
    rows = method.describe({"images": torch.rand(2, 3, 16, 16)})
    assert [row["part"] for row in rows] == ["student", "teacher"]
    assert (rows[0]["pooled"], rows[1]["pooled"]) == (12, 24)
    assert rows[0]["map"] == "12x4x4"
