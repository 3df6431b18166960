"""Open classifiers in use: any words, the bundle's own, those it does not know; the command line."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_clip import fit, night, save_clip, tiny_clip

import vlkd
from vlkd.engine.bundle import load_bundle, read_card, save_bundle
from vlkd.engine.cli import main
from vlkd.errors import UserError
from vlkd.infer import OpenClassPredictor
from vlkd.methods.promptkd import PromptKD, PromptTeacher
from vlkd.models.prompted import PromptSize


def save(method: Any, path: Path) -> str:
    card, tensors = method.bundle()
    save_bundle(path, {"name": path.stem, "method": "promptkd", "scores": {}, **card}, tensors)
    return str(path)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A student of a teacher with learned words, with and without its text half."""
    folder = tmp_path_factory.mktemp("bundles")
    teacher = save_clip(folder / "teacher.safetensors", tiny_clip(40, 24, seed=1))
    torch.manual_seed(0)
    stage1 = PromptTeacher(
        teacher, visual=None, text=PromptSize(3, 2), words=None, template_set="bare", averaging=None
    )
    few = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
    fit(stage1, night(classes="base", shots=1), **few)
    prompts = save(stage1, folder / "prompts.safetensors")
    found = {}
    for kind, ships in (("text", True), ("closed", False)):
        method = PromptKD(
            save_clip(folder / "s.safetensors"), teacher=prompts, prompts=PromptSize(2, 2), ship_text=ships
        )
        fit(method, night(), **few)
        found[kind] = save(method, folder / f"{kind}.safetensors")
        found["words"] = stage1.model  # type: ignore[assignment]
    return found


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)


def test_the_bundle_has_no_teacher_and_stands_alone(bundles: dict[str, str]) -> None:
    _, tensors = load_bundle(bundles["text"])
    assert {name.split(".")[0] for name in tensors} == {"student", "class_vectors", "text", "context"}
    assert not any(name.startswith("text.visual") for name in tensors)
    _, tensors = load_bundle(bundles["closed"])
    assert {name.split(".")[0] for name in tensors} == {"student", "class_vectors"}
    assert read_card(bundles["closed"])["novel"][:2] == ["bus", "fir"]


def test_its_own_classes_are_scored_by_the_stored_vectors(bundles: dict[str, str]) -> None:
    predictor = vlkd.load(bundles["closed"])
    assert isinstance(predictor, OpenClassPredictor)
    image = torch.rand(3, 16, 16)
    found = predictor(image, top=34)
    _, tensors = load_bundle(bundles["closed"])
    logits = predictor.classifier(image[None], tensors["class_vectors"])[0]
    expected = logits.softmax(0).sort(descending=True)
    np.testing.assert_allclose(found.scores, expected.values.numpy(), rtol=1e-4)
    assert found.names == tuple(predictor.class_names[i] for i in expected.indices.tolist())
    assert found.scores.sum() == pytest.approx(1, abs=1e-4)


def test_new_words_go_through_the_teachers_text_half_and_its_learned_context(bundles: dict[str, Any]) -> None:
    predictor = vlkd.load(bundles["text"])
    words = ["submarine", "car|automobile"]
    found = predictor(picture(), classes=words, top=2)
    assert set(found.names) == set(words)
    choice = predictor.choice(words)
    with torch.no_grad():
        vectors = bundles["words"].encode_text(["submarine", "car", "automobile"])
    torch.testing.assert_close(choice.columns[0], vectors[0], rtol=1e-4, atol=1e-5)
    both = torch.nn.functional.normalize(vectors[1] + vectors[2], dim=0)
    torch.testing.assert_close(choice.columns[1], both, rtol=1e-4, atol=1e-5)
    assert predictor(picture(), classes="car, bus").names[0] in ("car", "bus")


def test_new_words_without_a_text_half_are_refused(bundles: dict[str, str]) -> None:
    predictor = vlkd.load(bundles["closed"])
    assert predictor(picture(), classes=["car", "TRUCK"]).label in ("car", "TRUCK")
    with pytest.raises(
        UserError, match=r'"submarine" is not among the 34 model classes.*no text encoder'
    ) as error:
        predictor(picture(), classes=["submarine", "car"])
    assert "\n" not in str(error.value)


def test_base_and_novel_classes_by_word(bundles: dict[str, str]) -> None:
    predictor = vlkd.load(bundles["closed"])
    base, novel = (predictor.names(word) for word in ("@base", "@novel"))
    assert len(novel) == 8 and "bus" in novel and len(base) == 26 and not set(base) & set(novel)
    assert set(predictor.names(["@novel", "car"])) == {*novel, "car"}
    with pytest.raises(UserError, match=r"'@novl' is no half .* there is @base and @novel"):
        predictor.names("@novl")
    predictor.card["novel"] = []
    with pytest.raises(UserError, match="the bundle has no novel classes"):
        predictor.names("@novel")


def test_the_command_names_the_class_of_each_image(
    bundles: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    for k in range(3):
        Image.fromarray(picture(k)).save(tmp_path / f"{k}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    code = main(
        ["infer", "--model", bundles["text"], str(tmp_path), "--out", str(out), "--classes", "submarine, car"]
    )
    assert code == 1
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and {row["label"] for row in rows} <= {"submarine", "car"}
    assert all(0.5 <= float(row["score"]) <= 1 for row in rows)
    shown = capsys.readouterr()
    assert "broken.jpg" in shown.err and "Traceback" not in shown.err
    again = ["infer", "--model", bundles["closed"], str(tmp_path / "0.png"), "--out", str(tmp_path / "o2")]
    assert main([*again, "--top", "3", "--sheet"]) == 0
    assert (tmp_path / "o2" / "sheet.jpg").is_file()
    assert main([*again, "--size", "32"]) == 2
    assert "--size: only for a segmentor" in capsys.readouterr().err
    assert main([*again, "--classes", "submarine", "--overwrite"]) == 2


def test_templates_are_refused_where_the_words_were_learned(bundles: dict[str, str]) -> None:
    with pytest.raises(UserError, match="has learned its own prompts for words"):
        OpenClassPredictor.from_bundle(bundles["text"], templates="a photo of a {}")


def test_a_student_of_an_open_classifier_keeps_its_words(bundles: dict[str, Any], tmp_path: Path) -> None:
    method = PromptKD("resnet8", image_size=16, teacher=bundles["text"], prompts=None, trained="all")
    fit(method, night(), max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    predictor = vlkd.load(save(method, tmp_path / "next.safetensors"))
    with torch.no_grad():
        expected = bundles["words"].encode_text(["submarine"])
    torch.testing.assert_close(predictor.choice(["submarine"]).columns, expected, rtol=1e-4, atol=1e-5)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match="holds a clip, expected a bundle of kind 'open_classifier'"):
        OpenClassPredictor.from_bundle(clip)
