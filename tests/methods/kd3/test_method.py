"""KD3 as a whole: one step written out by hand, gradients, selection in a run, resuming, the bundle."""

from __future__ import annotations

import copy
import csv
import textwrap
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exactness import assert_resume_is_exact
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from toy_pool import NAMES, ToyPool, pictures, save_teacher, tiny

import vlkd.methods.kd3.method as kd3_module
from vlkd.engine.bundle import save_bundle
from vlkd.errors import UserError
from vlkd.methods import method_class
from vlkd.methods.kd3 import KD3, alpha, select
from vlkd.methods.kd3.mix import ContrastOptions
from vlkd.methods.kd3.selection import SelectionOptions
from vlkd.models.classifier import load_classifier


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_teacher(tmp_path_factory.mktemp("teacher") / "t.safetensors"))


def make(teacher: str, **options: Any) -> KD3:
    torch.manual_seed(0)
    return KD3(**{"student": tiny(), "teacher": teacher, "contrast": ContrastOptions(width=8), **options})


def fit(method: KD3, folder: Path, data: ToyPool | None = None, epochs: int = 2, **options: Any) -> Trainer:
    torch.manual_seed(1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, default_root_dir=folder, enable_model_summary=False,
        num_sanity_val_steps=0, **quiet, **options,
    )  # fmt: skip
    trainer.fit(method, datamodule=data or ToyPool())
    return trainer


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "selection.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- one step ----------------------------------------------------------------------------------------------


def by_hand(parts: dict[str, nn.Module], images: Tensor, mixed: Tensor) -> tuple[Tensor, ...]:
    """The losses of KD3 in its published order, image by image where a formula is about images."""
    teacher_map, teacher_mixed = parts["teacher"].body(images), parts["teacher"].body(mixed)
    student_map = parts["student"].body(images)
    projected = parts["projector"](student_map)
    logits = parts["teacher"].linear(projected.mean((2, 3)))
    teacher_logits = parts["teacher"].linear(teacher_map.mean((2, 3)))
    feature = 0
    for i in range(len(images)):
        distance = (logits[i] - teacher_logits[i] + 1e-6).square().sum().sqrt()
        weight = 1 / (1 + torch.exp(-distance.detach()))
        feature = feature + weight * (projected[i] - teacher_map[i]).square().sum() / projected.numel()
    student_mixed = parts["student"].body(mixed)
    pairs = [
        (parts["embed_s"], student_map, student_mixed),
        (parts["embed_t"], teacher_map, teacher_mixed),
    ]
    return (feature, *[contrast_by_hand(e(a.mean((2, 3))), e(b.mean((2, 3)))) for e, a, b in pairs])


def contrast_by_hand(a: Tensor, b: Tensor, temperature: float = 0.3) -> Tensor:
    rows = torch.cat([a, b])
    rows = rows / rows.norm(dim=1, keepdim=True)
    terms = []
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if j != i]
        similarity = torch.stack([rows[i] @ rows[j] for j in others]) / temperature
        partner = others.index((i + len(a)) % len(rows))
        terms.append(torch.logsumexp(similarity, 0) - similarity[partner])
    return torch.stack(terms).mean()


def mixed_by_hand(images: Tensor, order: Tensor, lam: Tensor) -> Tensor:
    rows = []
    for i, j in enumerate(order.tolist()):
        channels = []
        for own, other in zip(images[i], images[j], strict=True):
            sigma, sigma_other = ((x.var() + 1e-6).sqrt() for x in (own, other))
            share = lam[i]
            plain = (own - own.mean()) / sigma
            channels.append(
                plain * (share * sigma + (1 - share) * sigma_other)
                + share * own.mean()
                + (1 - share) * other.mean()
            )
        rows.append(torch.stack(channels))
    return torch.stack(rows)


def test_one_step_by_hand(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(teacher)
    order, lam = torch.tensor([3, 0, 7, 6, 1, 2, 4, 5]), torch.rand(8)
    monkeypatch.setattr(kd3_module, "draw_mix", lambda *_: (order, lam))
    images = pictures(8, seed=5)[0]
    network = method.student.network
    parts = {
        "student": network.backbone.network,
        "projector": network.projector.transfer,
        "teacher": method.teacher.network,
        "embed_s": method.parts["student_embedding"],
        "embed_t": method.parts["teacher_embedding"],
    }
    copies: dict[str, nn.Module] = {}
    for name, module in parts.items():
        copies[name] = copy.deepcopy(module)
        if name.startswith("embed"):
            plain = nn.Linear(module.in_features, module.out_features)
            plain.load_state_dict(module.state_dict())
            copies[name] = plain
    assert not copies["teacher"].training

    method._trainer = SimpleNamespace(max_epochs=240)  # type: ignore[assignment]
    optimizer = method.configure_optimizers()["optimizer"]
    found = method.compute_losses({"images": images})
    method.weighted_sum(found).backward()

    mean, std = (
        torch.tensor(x).view(1, 3, 1, 1) for x in (method.student.spec.mean, method.student.spec.std)
    )
    hand = by_hand(copies, (images - mean) / std, (mixed_by_hand(images, order, lam) - mean) / std)
    (hand[0] + 0.001 * (hand[1] + hand[2])).backward()
    assert list(found) == ["feature", "contrast_student", "contrast_teacher"]
    for one, expected in zip(found.values(), hand, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=0)

    optimizer.step()
    for name, module in copies.items():
        own = dict(parts[name].named_parameters())
        for key, parameter in module.named_parameters():
            if name == "teacher" or (name == "student" and key.startswith("linear")):
                assert key not in own or own[key].grad is None
                continue
            scale = 2e-5 * float(parameter.grad.abs().max()) + 1e-12
            torch.testing.assert_close(own[key].grad, parameter.grad, rtol=1e-4, atol=scale)
            stepped = parameter - 0.05 * (parameter.grad + 5e-4 * parameter)
            torch.testing.assert_close(own[key], stepped, rtol=1e-5, atol=1e-7)
        for key, value in module.named_buffers():  # two passes in training mode moved them twice
            torch.testing.assert_close(dict(parts[name].named_buffers())[key], value, rtol=1e-5, atol=1e-6)
    assert int(parts["student"].body[1].num_batches_tracked) == 2


# --- what learns -------------------------------------------------------------------------------------------

VARIANTS: list[tuple[str, dict[str, Any], set[str], set[str]]] = [
    ("released", {}, {"feature", "contrast_student", "contrast_teacher"}, {"student", "parts"}),
    (
        "cross, no teacher contrast",
        {"contrast": ContrastOptions(width=8, parity=False, cross=True)},
        {"feature", "contrast_student", "contrast_cross"},
        {"student", "parts"},
    ),
    ("no contrast", {"contrast": ContrastOptions(weight=0)}, {"feature"}, {"student"}),
    (
        "own head",
        {"share_head": False},
        {"feature", "kd", "contrast_student", "contrast_teacher"},
        {"student", "parts"},
    ),
    ("kd", {"objective": "kd"}, {"kd"}, {"student"}),
    ("dfnd", {"objective": "dfnd", "teacher_accuracy": 0.9}, {"kd", "noise"}, {"student", "parts"}),
]


@pytest.mark.parametrize(
    ("options", "names", "groups"), [v[1:] for v in VARIANTS], ids=[v[0] for v in VARIANTS]
)
def test_what_should_learn_learns_and_nothing_else(
    options: dict[str, Any], names: set[str], groups: set[str], teacher: str, tmp_path: Path
) -> None:
    method = make(teacher, **options)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    held = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    grads: set[str] = set()
    method.on_after_backward = lambda: grads.update(  # type: ignore[method-assign]
        name for name, p in method.named_parameters() if p.grad is not None
    )
    trainer = fit(method, tmp_path)
    logged = {key.removeprefix("loss/") for key in trainer.callback_metrics if key.startswith("loss/")}
    assert logged == names | {"total"}
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    frozen = {name for name, _ in method.named_parameters()} - trained
    shared = options.get("share_head", True) and "objective" not in options
    assert frozen == ({"student.network.head.weight", "student.network.head.bias"} if shared else set())
    assert grads == trained and {name.split(".")[0] for name in trained} == groups
    after = method.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert trained <= moved and moved.isdisjoint(frozen)
    assert all(torch.equal(value, method.teacher.state_dict()[name]) for name, value in held.items())
    assert all(m.training for m in method.student.modules())
    assert 0 <= trainer.callback_metrics["score/accuracy"] <= 1


def test_student_comes_to_its_teacher(teacher: str, tmp_path: Path) -> None:
    method = make(teacher, lr=0.1, milestones=(0.8,))
    images = pictures(64, seed=9)[0]

    def agreement() -> float:
        method.student.eval()
        with torch.no_grad():
            same = method.student(images).argmax(1) == method.teacher(images).argmax(1)
        method.student.train()
        return float(same.float().mean())

    start = agreement()
    fit(method, tmp_path, ToyPool(images=96, batch_size=16), epochs=20, limit_val_batches=0)
    assert agreement() > max(0.8, start)


# --- selection ---------------------------------------------------------------------------------------------


class Watch(Callback):
    """Epoch by epoch: kept images, batches, learning rate, the networks at the time of the choice."""

    def __init__(self) -> None:
        self.kept: list[list[int]] = []
        self.batches: list[int] = []
        self.rates: list[float] = []
        self.expected: list[list[int]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.batches.append(0)
        images = ToyPool().images
        student, teacher = copy.deepcopy(pl_module.student).eval(), pl_module.teacher
        share = alpha(trainer.current_epoch + 1, trainer.max_epochs)
        with torch.no_grad():
            self.expected.append(select(teacher(images), student(images), share, 0.6).add(100).tolist())

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.batches[-1] += 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.kept.append(trainer.datamodule.kept.tolist())  # type: ignore[attr-defined]
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_each_epoch_trains_on_what_both_networks_choose(teacher: str, tmp_path: Path) -> None:
    options = SelectionOptions(p_cutoff=0.6, augmented=False)
    method, data, watch = make(teacher, selection=options, lr=0.2), ToyPool(), Watch()
    asked: list[int] = []
    method.teacher.register_forward_hook(lambda *_: asked.append(1))
    scored: list[int] = []
    method.validation_step = lambda batch, batch_idx: scored.append(batch_idx)  # type: ignore
    method.on_validation_epoch_end = lambda: None  # type: ignore[method-assign]
    fit(method, tmp_path, data, epochs=8, callbacks=[watch])
    assert watch.kept == watch.expected
    assert len({len(kept) for kept in watch.kept}) > 1  # epochs of different length
    assert watch.batches == [-(-len(kept) // 8) for kept in watch.kept]
    used = [sorted(chain(*data.used[sum(watch.batches[:e]) : sum(watch.batches[: e + 1])])) for e in range(8)]
    assert used == watch.kept
    assert len(scored) == 8 * 2  # a validation after every epoch, whatever its length
    assert watch.rates == pytest.approx([0.2] * 4 + [0.02, 0.002, 0.0002, 0.0002])
    table = rows(tmp_path)
    for epoch, kept in enumerate(watch.kept, 1):
        of_epoch = [row for row in table if row["epoch"] == str(epoch)]
        assert [row["class"] for row in of_epoch] == list(NAMES)
        assert sum(int(row["kept"]) for row in of_epoch) == len(kept)
        assert sum(int(row["predicted"]) for row in of_epoch) == 40
        assert float(of_epoch[0]["teacher_share"]) == pytest.approx(alpha(epoch, 8), abs=1e-4)
    assert (tmp_path / "selection.png").stat().st_size > 1000
    assert not list(tmp_path.glob(".*"))


def test_learning_rate_goes_by_epochs(teacher: str, tmp_path: Path) -> None:
    watch = Watch()
    method = make(teacher, selection=SelectionOptions(mode="all"), milestones=(0.5, 0.75))
    fit(method, tmp_path, epochs=4, callbacks=[watch])
    # Read after the epoch's last step, when the next epoch's rate is set.
    assert watch.rates == pytest.approx([0.05, 0.005, 0.0005, 0.0005])
    assert not (tmp_path / "selection.csv").exists()
    assert watch.kept[0] == list(range(100, 140))


def test_teacher_answers_are_kept_only_without_augmentation(teacher: str, tmp_path: Path) -> None:
    for augmented, answers in ((False, 3), (True, 0)):
        data = ToyPool()
        method = make(teacher, selection=SelectionOptions(augmented=augmented))
        fit(method, tmp_path, data, epochs=6, limit_val_batches=0)
        assert data.passes == [augmented] * 6 and len(method._answers) == answers


def test_choice_lasts_for_some_epochs(teacher: str, tmp_path: Path) -> None:
    data, watch = ToyPool(), Watch()
    fit(make(teacher, selection=SelectionOptions(every_n_epochs=2)), tmp_path, data, 4, callbacks=[watch])
    assert len(data.passes) == 2 and watch.kept[0] == watch.kept[1] and watch.kept[2] == watch.kept[3]
    assert sorted({row["epoch"] for row in rows(tmp_path)}) == ["1", "3"]


@pytest.mark.parametrize("mode", ["random", "dfnd"])
def test_baselines_choose_once(mode: Any, teacher: str, tmp_path: Path) -> None:
    data, watch = ToyPool(), Watch()
    method = make(teacher, selection=SelectionOptions(mode=mode, keep_count=12))
    fit(method, tmp_path, data, 3, callbacks=[watch])
    assert data.passes == [False] and watch.kept[0] == watch.kept[1] == watch.kept[2]
    assert len(watch.kept[0]) == 12 and watch.batches == [2, 2, 2]
    entropy = F.cross_entropy(logits := method.teacher(data.images), logits.argmax(1), reduction="none")
    lowest = entropy.argsort()[:12].sort().values.add(100).tolist()
    assert (watch.kept[0] == lowest) == (mode == "dfnd")


def test_too_few_images_fall_back_to_the_most_confident(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, watch = ToyPool(), Watch()
    flat = make(teacher)
    with torch.no_grad():  # no image reaches any threshold of the most frequent class
        flat.teacher.head.weight.mul_(1e-3)
        flat.teacher.head.bias.copy_(torch.tensor([1e-3, 0, 0, 0]))
        flat.student.head.weight.mul_(1e-3)
        flat.student.head.bias.copy_(torch.tensor([1e-3, 0, 0, 0]))
    fit(flat, tmp_path, data, 1, callbacks=[watch])
    assert len(watch.kept[0]) == 8 and watch.batches == [1]
    assert "only 0 of 40 images pass their class threshold; training on the 8 most" in capsys.readouterr().out


def test_table_of_a_resumed_run_has_no_epoch_twice(tmp_path: Path) -> None:
    from vlkd.methods.kd3.record import write_selection

    for epoch in (1, 2, 3, 2):
        write_selection(tmp_path, epoch, 0.5, ["a", "b"], [3, 4], [epoch, 0])
    assert [(row["epoch"], row["kept"]) for row in rows(tmp_path)] == [
        ("1", "1"), ("1", "0"), ("2", "2"), ("2", "0"),
    ]  # fmt: skip


CONFIG = """
model:
  class_path: vlkd.methods.kd3.KD3
  init_args:
    student: toy_pool:TinyNet
    teacher: {teacher}
    image_size: 16
    selection: {{p_cutoff: 0.6, every_n_epochs: {every}}}
    contrast: {{width: 8}}
data:
  class_path: toy_pool.ToyPool
  init_args: {{images: 40}}
trainer: {{max_epochs: 6, accelerator: cpu, enable_model_summary: false, log_every_n_steps: 1}}
"""


@pytest.mark.parametrize(
    ("step", "during", "every"),
    [
        pytest.param(7, "training", 1, id="in an epoch"),
        pytest.param(10, "training", 1, id="at an epoch's end, a shorter one follows"),
        pytest.param(14, "training", 1, id="at an epoch's end, a longer one follows"),
        pytest.param(14, "validation", 1, id="in the validation"),
        pytest.param(16, "training", 4, id="where a choice lasts"),
    ],
)
def test_resumes_exactly(
    step: int, during: str, every: int, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(method: KD3, confidences: Tensor, classes: Tensor) -> Tensor:
        count = (40, 40, 16, 9, 24, 8)[method.current_epoch]  # 5, 5, 2, 2, 3, 1 batches
        return confidences.topk(count).indices.sort().values

    monkeypatch.setattr(KD3, "_choose", choose)
    config = tmp_path / "toy.yaml"
    config.write_text(textwrap.dedent(CONFIG).format(teacher=teacher, every=every))
    assert_resume_is_exact(config, tmp_path, step, during)
    kept = [torch.load(tmp_path / run / "last.ckpt", weights_only=True)["kd3"] for run in ("whole", "pieces")]
    assert torch.equal(kept[0]["kept"], kept[1]["kept"]) and kept[0]["epoch"] == kept[1]["epoch"]
    assert (tmp_path / "whole/selection.csv").read_text() == (tmp_path / "pieces/selection.csv").read_text()


# --- the result --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["kd3", "kd"])
def test_bundle_classifies_as_the_student(objective: Any, teacher: str, tmp_path: Path) -> None:
    method = make(teacher, objective=objective)
    fit(method, tmp_path, epochs=1)
    card, tensors = method.bundle()
    path = save_bundle(tmp_path / "s.safetensors", {**card, "name": "s"}, tensors)
    loaded, read = load_classifier(str(path))
    images = pictures(6, seed=3)[0]
    assert torch.equal(loaded(images), method.student.eval()(images))
    assert read["class_names"] == list(NAMES) and method.protocol["labels"] == "not used"
    assert method_class("kd3") is KD3
    assert torch.equal(KD3.from_bundle(path).shipped().eval()(images), loaded(images))


def test_bad_input_is_one_line(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.teacher: missing"):
        KD3(student=tiny())
    with pytest.raises(UserError, match=r"model\.selection\.keep_count=41: the pool has 40 images"):
        fit(make(teacher, selection=SelectionOptions(mode="random", keep_count=41)), tmp_path)
    with pytest.raises(UserError, match=r"trainer\.max_epochs: set it"):
        fit(make(teacher), tmp_path, epochs=-1, max_steps=3)
    with pytest.raises(UserError, match="ToyPool: the pool holds no image"):
        data = ToyPool()
        data.train_pass = lambda augmented: iter(())  # type: ignore[method-assign]
        fit(make(teacher), tmp_path, data)
    with pytest.raises(UserError, match=r"Plain: selects no images; take vlkd.data.WebData"):
        data = ToyPool()
        data.__class__ = type("Plain", (ToyPool,), {"keep": property(lambda self: self.nothing)})
        fit(make(teacher), tmp_path, data)
    nameless = tmp_path / "nameless.safetensors"
    scored = tiny(first=8, second=16)
    card = {"kind": "classifier", "name": "n", "architecture": scored.architecture}
    save_bundle(nameless, card, {f"student.{k}": v for k, v in scored.state_dict().items()})
    with pytest.raises(UserError, match=r"model\.teacher_accuracy: give it"):
        make(str(nameless), objective="dfnd")
