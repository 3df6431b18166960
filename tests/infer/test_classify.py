import threading

import numpy as np
import pytest
import torch
from PIL import Image

import vlkd
from vlkd.engine.bundle import save_bundle
from vlkd.errors import UserError
from vlkd.infer.classify import ClassPredictor

NAMES = ("red", "green", "blue")


def test_the_likeliest_classes_come_first(classes, flat):
    found = classes(flat("green"))
    assert (found.label, found.names[0], set(found.names)) == ("green", "green", set(NAMES))
    assert found.score == pytest.approx(np.exp(10) / (np.exp(10) + 2), abs=1e-4)
    assert found.scores.sum() == pytest.approx(1) and (np.diff(found.scores) <= 0).all()
    assert found.indices.tolist() == [NAMES.index(name) for name in found.names]
    assert len(classes(flat("green"), top=2).names) == 2


def test_every_kind_and_size_of_image_gives_the_same(classes, flat, tmp_path):
    image = flat("blue", 50, 20)
    Image.fromarray(image).save(tmp_path / "a.png")
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    kinds = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), tensor, flat("blue", 8, 8)]
    expected = classes(image)
    for one in kinds:
        assert classes(one).label == "blue" and np.allclose(classes(one).scores, expected.scores, atol=1e-5)


def test_the_central_square_counts(classes, flat):
    image = flat("red", 12, 40)  # and one turned, whose middle is green
    for turned in (False, True):
        one = np.swapaxes(image, 0, 1).copy() if turned else image.copy()
        along = 0 if one.shape[0] > one.shape[1] else 1
        middle = (one.shape[along] - 12) // 2
        (one if along == 0 else np.swapaxes(one, 0, 1))[middle : middle + 12] = flat("green", 1, 1)[0, 0]
        found = classes(one)
        assert found.label == "green" and found.score == pytest.approx(classes(flat("green")).score)


def test_a_list_goes_in_batches_and_equals_single_images(classes, flat):
    images = [flat(name, 10 + i, 12) for i, name in enumerate([*NAMES, "red", "blue"])]
    images[0][:5] = 120
    alone = [classes(image) for image in images]
    classes.classifier.batches.clear()
    together = classes(images)
    assert [found.names for found in together] == [found.names for found in alone]
    assert all(np.allclose(a.scores, b.scores) for a, b in zip(together, alone, strict=True))
    assert classes.classifier.batches == [(2, 3, 8, 8), (2, 3, 8, 8), (1, 3, 8, 8)]
    assert classes([]) == []


def test_a_list_of_classes_chooses_among_them(classes, flat):
    image = flat("red")
    image[:9] = (0, 0, 200)
    assert classes(image).label == "red"
    found = classes(image, "Green , blue")
    assert found.names == ("blue", "green") and found.indices.tolist() == [2, 1]
    assert found.scores.sum() == pytest.approx(1)
    assert classes.names() == NAMES and classes.names(["blue", "red"]) == ("red", "blue")


def test_one_name_of_two_classes_means_both(classes, flat):
    predictor = ClassPredictor(classes.classifier, ["crane", "leaf", "crane"])
    assert predictor(flat("blue"), "crane").indices.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("rde, green", r'"rde" is not among the 3 classes.*\(nearest: "red"\).*they are fixed'),
        ("red|green", "not among"),
        ("red, RED", "same class"),
        ([], "empty"),
    ],
)
def test_unknown_classes_are_one_line(classes, flat, given, says):
    with pytest.raises(UserError, match=says) as error:
        classes(flat("red"), given)
    assert "\n" not in str(error.value)


def test_bad_use(classes, flat):
    with pytest.raises(UserError, match="top=0"):
        classes(flat("red"), top=0)
    with pytest.raises(UserError, match="image array"):
        classes([flat("red"), np.zeros((4, 4), np.uint8)])
    with pytest.raises(UserError, match="batch_size=0"):
        ClassPredictor(classes.classifier, NAMES, batch_size=0)
    classes.classifier.weight.data.fill_(torch.inf)
    with pytest.raises(UserError, match="not a finite number"):
        classes(flat("red"))


def test_files_in_order_with_the_bad_ones_in_place(classes, flat, tmp_path):
    paths = []
    for i, name in enumerate(["red", "cut", "green", "green", "gone", "blue", "red"]):
        paths.append(tmp_path / f"{i}.png")
        if name in NAMES:
            Image.fromarray(flat(name)).save(paths[-1])
        elif name == "cut":
            paths[-1].write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    found = list(classes.files(map(str, paths)))
    assert [path for path, _ in found] == paths
    labels = [getattr(one, "label", None) for _, one in found]
    assert labels == ["red", None, "green", "green", None, "blue", "red"]
    assert all(isinstance(found[i][1], UserError) and paths[i].name in str(found[i][1]) for i in (1, 4))


def test_files_left_half_way_end_their_threads(classes, flat, tmp_path):
    for i in range(12):
        Image.fromarray(flat("red")).save(tmp_path / f"{i}.png")
    running = classes.files(sorted(tmp_path.iterdir()))
    next(running)
    running.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vlkd-read")]


def test_video(classes, flat, tmp_path, write_video):
    frames = [flat(name, 64, 64) for name in ("red", "red", "green", "green", "blue", "blue")]
    write_video(tmp_path / "a.mp4", frames)
    found = list(classes.video(tmp_path / "a.mp4", every=2))
    assert [one.label for one in found] == ["red", "green", "blue"]
    assert [one.time for one in found] == pytest.approx([0, 0.2, 0.4], abs=1e-3)
    assert found[1].frame.shape == (64, 64, 3)
    with pytest.raises(UserError, match="every=0"):
        next(classes.video(tmp_path / "a.mp4", every=0))


@pytest.fixture
def bundle(tmp_path):
    """A CIFAR network with random weights, as a bundle; and the network."""
    from vlkd.models.classifier import build_classifier

    torch.manual_seed(0)
    classifier = build_classifier("resnet8", 4).eval()
    card = {
        "kind": "classifier",
        "name": "tiny",
        "architecture": classifier.architecture,
        "input_spec": classifier.spec.to_dict(),
        "class_names": ["cat", "dog", "t-shirt", "ice cream"],
    }
    tensors = {f"student.{name}": value for name, value in classifier.state_dict().items()}
    return save_bundle(tmp_path / "tiny.safetensors", card, tensors), classifier, card, tensors


def test_bundle(bundle, flat, tmp_path):
    path, classifier, card, tensors = bundle
    predictor = vlkd.load(str(path))
    assert isinstance(predictor, vlkd.ClassPredictor) and predictor.card["name"] == "tiny"
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    with torch.no_grad():
        logits = classifier(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0]
    found = predictor(image)
    assert found.indices.tolist() == logits.argsort(descending=True).tolist()
    assert np.allclose(found.scores, logits.softmax(0).sort(descending=True).values, atol=1e-5)
    half = ClassPredictor.from_bundle(path, dtype=torch.bfloat16)(image)
    assert np.allclose(sorted(half.scores), sorted(found.scores), atol=0.05)

    other = save_bundle(tmp_path / "few.safetensors", card | {"class_names": ["cat"]}, tensors)
    with pytest.raises(UserError, match="names 1 classes, the network has 4"):
        vlkd.load(str(other))
    unnamed = save_bundle(tmp_path / "unnamed.safetensors", card | {"class_names": []}, tensors)
    assert vlkd.load(str(unnamed)).class_names[3] == "class 3"
