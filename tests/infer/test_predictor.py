from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlkd.errors import UserError
from vlkd.infer.inputs import parse_classes
from vlkd.infer.predictor import Predictor

NAMES = ("red", "green", "blue")


def test_labels_index_the_given_names(parts, stripes):
    for classes in (list(NAMES), "blue, red, green"):
        found = parts.predictor(stripes, classes)
        assert found.labels.shape == (96, 120) and found.labels.dtype == np.int64
        order = parse_classes(classes)
        assert [order[i] for i in found.labels[50, [5, 60, 115]]] == list(NAMES)
        assert found.names == order
        assert found.areas.sum() == pytest.approx(1) and np.allclose(found.areas, 1 / 3, atol=0.03)
        assert (found.scores > 0.8).all() and (found.scores <= 1).all()
        assert found.probabilities is None


def test_probabilities_on_request(parts, stripes):
    found = parts.predictor(stripes, NAMES, probabilities=True)
    assert found.probabilities.shape == (3, 96, 120)
    assert np.array_equal(found.probabilities.argmax(0), found.labels)


def test_every_kind_of_image_gives_the_same(parts, stripes, tmp_path):
    Image.fromarray(stripes).save(tmp_path / "a.png")
    tensor = torch.from_numpy(stripes).permute(2, 0, 1).float() / 255
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(stripes), tensor]
    expected = parts.predictor(stripes, NAMES).labels
    for image in kinds:
        assert (parts.predictor(image, NAMES).labels == expected).mean() > 0.995


@pytest.mark.parametrize(
    ("height", "width", "size", "works_at"),
    [
        (96, 120, None, (64, 96)),
        (300, 200, None, (96, 64)),
        (300, 200, 128, (192, 128)),
        (7, 5, None, (96, 64)),
        (20, 4000, 64, (32, 256)),
        (64, 64, None, (64, 64)),
    ],
)
def test_works_at_its_size_and_answers_at_the_image_s(parts, height, width, size, works_at):
    predictor = Predictor(parts.student, None, parts.text, size=size)
    found = predictor(np.zeros((height, width, 3), np.uint8), NAMES)
    assert parts.student.sizes == [works_at]
    assert found.labels.shape == (height, width)


def test_names_reach_the_encoder_clean_and_come_back_as_given(parts, stripes):
    found = parts.predictor(stripes, ["red|crimson", " leaf_colour "])
    assert found.names == ("red|crimson", "leaf_colour")
    assert [t for call in parts.text.calls for t in call] == ["red", "crimson", "leaf colour"]
    assert found.labels[50, 5] == 0 and found.labels[50, 60] == 1


def test_a_list_is_encoded_once(parts, stripes):
    for _ in range(3):
        parts.predictor(stripes, NAMES)
        parts.predictor(stripes, ["red"])
    assert len(parts.text.calls) == 2
    for i in range(40):
        parts.predictor.names([f"name {i}"])
    parts.predictor.names(NAMES)
    assert len(parts.text.calls) == 43  # forgotten among 40 others, encoded again


def test_templates_are_used(parts, stripes):
    Predictor(parts.student, None, parts.text, templates="a photo of a {}").names(["red"])
    assert parts.text.calls == [["a photo of a red"]]
    Predictor(parts.student, None, parts.text, templates="vild").names(["red"])
    assert len(parts.text.calls[1]) == 14


def test_stored_vectors_serve_without_an_encoder(parts, stored, stripes):
    predictor = Predictor(parts.student, stored)
    assert predictor(stripes).names == NAMES
    found = predictor(stripes, "blue, red|green")
    assert found.labels[50, [5, 60, 115]].tolist() == [1, 1, 0]
    with pytest.raises(UserError, match=r'"gren".*nearest: "green".*no text encoder.*red, green, blue'):
        predictor(stripes, "red, gren")


def test_stored_vectors_spare_the_encoder(parts, stored, stripes):
    fetched = []
    predictor = Predictor(parts.student, stored, lambda: fetched.append(1) or parts.text)
    predictor(stripes, "blue, red")
    assert not fetched
    predictor(stripes, "blue, crimson")
    predictor(stripes, "leaf colour")
    assert fetched == [1] and len(parts.text.calls) == 2


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ([], "empty"),
        ("", "empty"),
        (" , ", "empty"),
        (["red", ""], "no class name"),
        (["red", 3], "no class name"),
        ("red, |green", "no class name"),
        (["traffic_light", "Traffic  light"], "same class"),
        (None, "none were given"),
    ],
)
def test_bad_class_lists(parts, stripes, classes, says):
    with pytest.raises(UserError, match=says):
        parts.predictor(stripes, classes)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        torch.zeros(4, 4, 3),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.full((3, 4, 4), 200.0),
        torch.full((3, 4, 4), torch.nan),
        b"bytes",
    ],
)
def test_bad_images(parts, image):
    with pytest.raises(UserError, match="image"):
        parts.predictor(image, NAMES)


def test_bad_construction(parts, stored):
    with pytest.raises(UserError, match="neither"):
        Predictor(parts.student)
    with pytest.raises(UserError, match="size 8"):
        Predictor(parts.student, stored, size=8)
    with pytest.raises(UserError, match="device"):
        Predictor(parts.student, stored, device="cuda:77")
    with pytest.raises(UserError, match="template"):
        Predictor(parts.student, stored, templates="nonsense")


def test_bfloat16(parts, stripes):
    found = Predictor(parts.student, None, parts.text, dtype=torch.bfloat16)(stripes, NAMES)
    assert found.labels[50, [5, 60, 115]].tolist() == [0, 1, 2]


def test_video(parts, stripes, tmp_path, write_video):
    write_video(tmp_path / "a.mp4", [np.roll(stripes, 4 * i, axis=1) for i in range(9)])
    results = list(parts.predictor.video(tmp_path / "a.mp4", NAMES, every=2))
    assert [round(r.time, 3) for r in results] == [0, 0.2, 0.4, 0.6, 0.8]
    for i, result in enumerate(results):
        assert result.frame.shape == (96, 120, 3) and result.names == NAMES
        assert (result.labels == np.roll(stripes, 8 * i, axis=1).argmax(-1)).mean() > 0.9


def test_video_takes_other_words_while_it_runs(parts, stripes, tmp_path, write_video):
    write_video(tmp_path / "a.mp4", [stripes] * 6)
    words = ["red, green"]
    names = []
    for result in parts.predictor.video(tmp_path / "a.mp4", lambda frame: words[0]):
        names.append(result.names)
        words[0] = "blue, red, green" if len(names) >= 3 else words[0]
    assert names == [("red", "green")] * 3 + [("blue", "red", "green")] * 3
    assert len(parts.text.calls) == 2


def test_video_refuses_before_the_first_frame(parts, tmp_path):
    with pytest.raises(UserError, match="empty"):
        next(parts.predictor.video(tmp_path / "absent.mp4", []))
    with pytest.raises(UserError, match="every=0"):
        next(parts.predictor.video(tmp_path / "absent.mp4", NAMES, every=0))
    with pytest.raises(UserError, match="no such file"):
        next(parts.predictor.video(tmp_path / "absent.mp4", NAMES))


def resident() -> float:
    """MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_video_memory_is_constant(parts, tmp_path, write_video, count):
    frames = (np.full((120, 160, 3), i % 256, np.uint8) for i in range(count))
    write_video(tmp_path / "a.mp4", frames)
    for seen, _ in enumerate(parts.predictor.video(tmp_path / "a.mp4", NAMES), start=1):
        if seen == 100:
            early = resident()
    assert seen == count
    grown = resident() - early
    assert grown < 15, f"{grown:.1f} MB more"  # 200 results kept would be 42 MB


def small_segmentor():
    from vlkd.models.segmentor import Segmentor

    return Segmentor(
        "timm:mobilenetv4_conv_small_035", channels=16, queries=5, layers=1, heads=2, text_width=3
    )


def test_bundle_round_trip(tmp_path, stored, stripes):
    from vlkd.engine.bundle import save_bundle

    torch.manual_seed(0)
    student = small_segmentor().eval()
    card = {
        "kind": "segmentor",
        "name": "tiny",
        "architecture": student.arguments,
        "class_names": list(NAMES),
        "class_vectors": {"templates": ["{}"], "encoder": stored.encoder, "logit_scale": 100.0},
    }
    tensors = {f"student.{k}": v for k, v in student.state_dict().items()} | {"class_vectors": stored.vectors}
    path = save_bundle(tmp_path / "tiny.safetensors", card, tensors)
    predictor = Predictor.from_bundle(path, size=96)
    found = predictor(stripes, "blue, red")
    expected = Predictor(student, stored, size=96)(stripes, "blue, red")
    assert np.array_equal(found.labels, expected.labels) and found.names == ("blue", "red")
    assert predictor.card["name"] == "tiny" and predictor.class_vectors.encoder == stored.encoder

    tensors.pop(next(iter(tensors)))
    with pytest.raises(UserError, match="do not fit"):
        Predictor.from_bundle(save_bundle(tmp_path / "lacks.safetensors", card, tensors))
    with pytest.raises(UserError, match="expected a segmentor"):
        Predictor.from_bundle(save_bundle(tmp_path / "clip.safetensors", card | {"kind": "clip"}, tensors))


def test_bundle_with_text_learns_new_words(tmp_path, stored, stripes, monkeypatch, parts):
    from vlkd.engine.bundle import save_bundle
    from vlkd.models import clip

    student = small_segmentor()
    card = {"kind": "segmentor", "name": "t", "architecture": student.arguments, "text": {"name": "colours"}}
    tensors = {f"student.{k}": v for k, v in student.state_dict().items()} | {"text.table": torch.ones(2)}
    path = save_bundle(tmp_path / "t.safetensors", card, tensors)
    asked = []
    monkeypatch.setattr(clip, "text_from_card", lambda card, state: asked.append((card, state)) or parts.text)
    found = Predictor.from_bundle(path, size=64)(stripes, "crimson, leaf colour")
    assert found.names == ("crimson", "leaf colour")
    assert asked[0][0] == {"name": "colours"} and list(asked[0][1]) == ["table"]
