"""Stage 1: the losses, what is trained, the average, the bundle of prompts and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from toy_clip import fit, night, save_clip, tiny_clip, trainer

import vlkd
from vlkd.engine.bundle import read_card, save_bundle
from vlkd.errors import UserError
from vlkd.methods.promptkd import PromptTeacher
from vlkd.methods.promptkd.teacher import Averaging, mean_text_vectors
from vlkd.models.clip import build_clip
from vlkd.models.prompted import PromptSize
from vlkd.text import ClassVectors


@pytest.fixture
def clip(tmp_path: Path) -> str:
    return save_clip(tmp_path / "clip.safetensors")


def make(clip: str, **options: Any) -> PromptTeacher:
    torch.manual_seed(0)
    given = {"visual": PromptSize(2, 3), "text": PromptSize(3, 2), "words": None, "template_set": "bare"}
    return PromptTeacher(clip, **{**given, "averaging": None, "lr": 0.05, **options})


def few(**options: Any) -> Any:
    return night(**{"classes": "base", "shots": 2, **options})


def store(method: PromptTeacher, path: Path) -> Path:
    card, tensors = method.bundle()
    save_bundle(path, {"name": "t", "method": "promptkd", **card}, tensors)
    return path


def test_losses_are_their_formulas(clip: str) -> None:
    method, tower = make(clip), build_clip(clip)
    fit(method, few(), max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    images, names = torch.rand(6, 3, 16, 16), method.base_names
    assert len(names) == 26 and "bus" not in names
    labels = torch.tensor([method.names.index(name) for name in names[:6]])
    with torch.no_grad():
        losses = method.compute_losses({"images": images, "labels": labels})
        image, text = method.model.encode_image(images), method.model.encode_text(names)
        own_image, own_text = tower.encode_image(images), tower.encode_text(names)
    scale = tower.logit_scale
    logits, own = scale * image @ text.T, scale * own_image @ own_text.T
    expected = {
        "ce": F.cross_entropy(logits, torch.arange(6)),
        "text": (text - own_text).abs().mean(),
        "image": (image - own_image).abs().mean(),
        "logits": F.kl_div(logits.log_softmax(1), own.log_softmax(1), reduction="sum", log_target=True)
        / own.numel(),
    }
    assert losses.keys() == expected.keys() == method.weights.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)
    assert method.weights == {"ce": 1.0, "logits": 1.0, "text": 25.0, "image": 10.0}


def test_text_vectors_are_the_mean_before_they_are_made_unit(clip: str) -> None:
    tower, prompts = build_clip(clip), ("a {}", "the {} here", "{}")
    found = mean_text_vectors(["car", "palm_tree"], tower, prompts)
    with torch.no_grad():
        rows = [
            tower.embed_text([p.replace("{}", name) for p in prompts]).mean(0)
            for name in ("car", "palm tree")
        ]
    torch.testing.assert_close(found, F.normalize(torch.stack(rows), dim=1), rtol=1e-5, atol=1e-6)
    tower.embed_text = lambda texts: pytest.fail("stored vectors are encoded again")  # type: ignore[method-assign]
    assert torch.equal(mean_text_vectors(["car", "palm_tree"], tower, prompts), found)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, {"prompts.visual.values", "prompts.text.values"}),
        ({"visual": None}, {"prompts.text.values"}),
        ({"text": None}, {"prompts.visual.values"}),
    ],
)
def test_prompts_alone_are_trained_and_stored(clip: str, options: dict[str, Any], trained: set[str]) -> None:
    method = make(clip, **options)
    frozen = {k: v.clone() for k, v in method.held("clip").state_dict().items()}
    before = {k: v.clone() for k, v in method.state_dict().items()}
    grads: set[str] = set()
    method.on_after_backward = lambda: grads.update(  # type: ignore[method-assign]
        n for n, p in method.named_parameters() if p.grad is not None
    )
    found = fit(method, few()).callback_metrics
    assert set(before) == grads == trained
    assert all(not torch.equal(before[name], method.state_dict()[name]) for name in trained)
    assert all(torch.equal(v, frozen[k]) for k, v in method.held("clip").state_dict().items())
    assert {"score/accuracy_base", "score/accuracy_novel", "score/harmonic_mean"} <= found.keys()


def test_it_learns() -> None:
    torch.manual_seed(0)
    method = PromptTeacher(
        "clip-world-m", visual=None, text=PromptSize(4, 3), averaging=None, template_set="bare"
    )
    before = trainer().validate(method, few(size=32), verbose=False)[0]
    after = fit(method, few(size=32, shots=4), max_epochs=4, limit_val_batches=1.0).callback_metrics
    assert after["score/accuracy_base"] > before["score/accuracy_base"] + 0.1


def test_final_prompts_are_the_average(clip: str) -> None:
    method = make(clip, averaging=Averaging(2.0, 1.0), warmup_epochs=0)
    epochs: list[torch.Tensor] = []
    take = method.on_train_epoch_end
    name = "visual.values"

    def note() -> None:
        epochs.append(method.learned()[name].detach().clone())
        take()

    method.on_train_epoch_end = note  # type: ignore[method-assign]
    fit(method, few(), max_epochs=3, limit_val_batches=1)
    weights = [Averaging(2.0, 1.0).weight(e, 3) for e in (1, 2, 3)]
    expected = sum(w * x for w, x in zip(weights, epochs, strict=True))
    torch.testing.assert_close(method.learned()[name].detach(), expected, rtol=1e-5, atol=1e-6)
    assert method.scored_at == -1  # the engine scores these prompts, not the last epoch's
    assert "average" in method.protocol["checkpoint"]


def test_bundle_holds_the_prompts_alone_and_gives_the_same_vectors(clip: str, tmp_path: Path) -> None:
    method = make(clip)
    fit(method, few(), max_epochs=1, limit_val_batches=0)
    path = store(method, tmp_path / "prompts.safetensors")
    assert set(load_file(path)) == {"prompts.visual.values", "prompts.text.values"}
    assert path.stat().st_size < 8000
    loaded = vlkd.load(str(path))
    assert loaded.identity == method.model.identity
    images = torch.rand(2, 3, 20, 24)
    torch.testing.assert_close(loaded.encode_image(images), method.model.encode_image(images).detach())
    torch.testing.assert_close(loaded.encode_text(["car"]), method.model.encode_text(["car"]).detach())


def test_bundle_of_prompts_refuses_other_weights_and_sizes(clip: str, tmp_path: Path) -> None:
    method = make(clip)
    fit(method, few(), max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    path = store(method, tmp_path / "prompts.safetensors")
    card = read_card(path)
    tensors = load_file(path)
    save_bundle(
        path, {**card, "architecture": card["architecture"] | {"visual": {"length": 2, "depth": 2}}}, tensors
    )
    with pytest.raises(UserError, match=r"prompts.safetensors: prompts \(depth, length, width\)"):
        vlkd.load(str(path))
    save_bundle(path, card, tensors)
    save_clip(Path(clip), tiny_clip(seed=1))
    with pytest.raises(UserError, match="its prompts were learned with the CLIP model tiny@") as error:
        vlkd.load(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        (
            {},
            {"classes": "all"},
            "which is no base class; stage 1 needs labels of base classes: set data.classes=base",
        ),
        ({"weights": {"ce": 1.0, "imge": 2.0}}, {}, "model.weights.imge: no such loss"),
        (
            {"visual": None, "weights": {"image": 1.0}},
            {},
            "model.weights.image: no such loss with these prompts",
        ),
        ({"visual": None, "text": None}, {}, "both null"),
        ({"choose": "held_out"}, {}, "set data.holdout"),
        ({"choose": "held_out", "averaging": Averaging()}, {}, "both decide"),
        ({"choose": "best"}, {}, "expected last or held_out"),
        ({"visual": PromptSize(2, 9)}, {}, "depth 9"),
        ({"weights": {}}, {}, "expected at least one loss"),
    ],
)
def test_wrong_options_are_one_line(
    clip: str, options: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        fit(make(clip, **options), few(**data), max_epochs=1)
    assert "\n" not in str(error.value)


def test_text_prompts_alone_work_on_towers_without_vision_transformer() -> None:
    method = PromptTeacher(
        "vlkd-clip-s", visual=None, text=PromptSize(4, 3), template_set="bare", averaging=None
    )
    fit(method, few(shots=1), max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    with pytest.raises(UserError, match="no ViT"):
        PromptTeacher("vlkd-clip-s")


def test_without_words_the_class_vectors_are_fixed_and_those_of_stage_2(clip: str) -> None:
    method = make(clip, text=None, template_set="vild")
    fit(method, few(), max_epochs=1)
    vectors = ClassVectors.build(method.names, build_clip(clip), "vild").vectors
    torch.testing.assert_close(method._vectors, vectors)
    base = [k for k in range(34) if k not in method.novel]
    torch.testing.assert_close(method._anchors, vectors[base])
    with torch.no_grad():
        given = {"images": torch.rand(2, 3, 16, 16), "labels": torch.tensor([base[0], base[3]])}
        found = method.compute_losses(given)["ce"]
        logits = method.model.logit_scale * method.model.encode_image(given["images"]) @ vectors[base].T
    torch.testing.assert_close(found, F.cross_entropy(logits, torch.tensor([0, 3])), rtol=1e-4, atol=1e-5)


def test_an_average_over_other_epochs_is_refused(clip: str, tmp_path: Path) -> None:
    first, again = (make(clip, averaging=Averaging(2.0, 1.0)) for _ in range(2))
    fit(first, few(), max_epochs=2, limit_val_batches=0).save_checkpoint(tmp_path / "last.ckpt")
    stored = {"ckpt_path": tmp_path / "last.ckpt", "weights_only": True}
    with pytest.raises(UserError, match=r"trainer\.max_epochs=3: the average .* was begun over 2 epochs"):
        trainer(max_epochs=3, limit_val_batches=0).fit(again, few(), **stored)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"model\.averaging\.std=0"):
        Averaging(2.0, 0.0)


def test_classes_of_several_words_are_refused_where_words_are_learned(clip: str) -> None:
    data = few()
    setup = data.setup

    def renamed(stage: str) -> None:
        setup(stage)
        data.names = ("car|automobile", *data.names[1:])

    data.setup = renamed  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"'car\|automobile' has several words"):
        fit(make(clip), data, max_epochs=1)
    fit(make(clip, text=None), data, max_epochs=1, limit_train_batches=1, limit_val_batches=0)


def test_a_bundle_keeps_its_protocol(clip: str, tmp_path: Path) -> None:
    method = make(clip)
    fit(method, few(), max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    card, tensors = method.bundle()
    sizes = {"visual": {"length": 2, "depth": 3}, "text": {"length": 3, "depth": 2}}
    arguments = {"clip": clip, **sizes, "words": None, "template_set": "bare", "averaging": None}
    config = {
        "model": {"class_path": "vlkd.methods.promptkd.PromptTeacher", "init_args": arguments},
    }
    common = {"name": "t", "method": "promptkd", "protocol": {"a": "b"}, "config": config}
    path = tmp_path / "t.safetensors"
    save_bundle(path, {**common, **card}, tensors)
    loaded = PromptTeacher.from_bundle(path)
    assert loaded.protocol == {"a": "b"}
    assert torch.equal(loaded.prompts["visual"].values, method.prompts["visual"].values)
