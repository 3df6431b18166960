import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco

import vlkd.infer.cli as cli
from vlkd.data.world import World
from vlkd.errors import UserError
from vlkd.infer.predictor import Predictor
from vlkd.infer.smoothing import PixelSmoothing
from vlkd.infer.video_predictor import VideoPredictor
from vlkd.models.postprocess import class_probabilities
from vlkd.models.segmentor import Segmentor
from vlkd.models.spec import InputSpec

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools

NAMES = ("cat", "dog", "grass")
ISTHING = (True, True, False)
CAT, DOG, GRASS, NOTHING = torch.eye(4).mul(9).unbind()


class Painted:
    """Query i is where colour i is; `says` (3,K+1) are its logits. Query features tell the colours apart."""

    def __init__(self, memory: bool = False, shuffled: bool = False) -> None:
        self.spec = InputSpec((32, 32), (0.0,) * 3, (1.0,) * 3, "bilinear", 3)
        self.arguments = {"memory": memory}
        self.says = torch.stack([CAT, CAT, GRASS])
        self.shuffled, self.got = shuffled, []

    def __call__(self, images01, memory=None):
        self.got.append(memory)
        masks = 20 * (F.avg_pool2d(images01, 4) - 0.5)
        order = torch.arange(3).roll(len(self.got) if self.shuffled else 0)
        state = torch.full((1, 3, 3), float(len(self.got)))
        return [
            SimpleNamespace(
                mask_logits=masks[:, order],
                queries=torch.eye(3)[None, order],
                embeddings=self.says[None, order],
                memory=state,
            )
        ]

    def class_logits(self, embeddings, vectors):
        return embeddings


class Words:
    """An encoder that any width suits."""

    identity, logit_scale = "words@1", 1.0

    def encode_text(self, texts):
        return F.normalize(torch.tensor([[float(len(t)), 1.0, i] for i, t in enumerate(texts)]), dim=1)


def picture(left=4, size=(32, 32)):
    """A red square that moves right with `left`, a green one below that moves left, on blue."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 2] = 255
    image[4:12, left : left + 8] = (255, 0, 0)
    image[20:28, 20 - left : 28 - left] = (0, 255, 0)
    return image


def session_of(student, forms=("semantic", "panoptic", "tracks"), words=None, **options):
    return VideoPredictor(Predictor(student, None, words or Words()), **options).start(NAMES, ISTHING, forms)


def ids_at(found):
    """Ids of the red square, the green square, the ground of a picture(left=4)."""
    return [int(found.segments[row, column]) for row, column in ((8, 8), (24, 20), (16, 16))]


@pytest.mark.parametrize(("memory", "shuffled"), [(True, False), (False, False), (False, True)])
def test_moving_squares_keep_their_ids(memory, shuffled):
    session = session_of(Painted(memory, shuffled))
    lefts, seen = (0, 4, 8, 12, 16, 20), []
    for left in lefts:
        found, image = session(picture(left)), picture(left)
        places = ((8, left + 4), (24, 24 - left), (16, 16))
        seen.append([int(found.segments[place]) for place in places])
        assert found.categories == dict(zip(seen[-1], (0, 0, 2), strict=True)) and found.ms > 0
        assert found.segments.dtype == np.int32 and found.labels.dtype == np.int64
        assert (found.labels == np.where(image[..., 2] > 0, 2, 0)).mean() > 0.9
    assert seen == [seen[0]] * 6 and len(set(seen[0])) == 3
    tracks = session.tracks()[:2]
    assert [t.category for t in tracks] == [0, 0] and min(t.score for t in tracks) > 0.99
    for track in tracks:
        masks = [coco.decode(rle).astype(bool) for rle in track.segmentations]
        colours = [picture(left)[mask].mean(0).argmax() for left, mask in zip(lefts, masks, strict=True)]
        assert len(set(colours)) == 1 and all(50 <= mask.sum() <= 80 for mask in masks)


def test_the_memory_of_a_frame_reaches_the_next_one():
    student = Painted(memory=True)
    session = session_of(student)
    for _ in range(3):
        session(picture())
    assert student.got[0] is None and [float(m.mean()) for m in student.got[1:]] == [1, 2]
    again = session_of(student, forms=("semantic",))
    again(picture())
    assert student.got[3] is None  # another video
    student = Painted(memory=True)
    matched = session_of(student, tracking="match")
    matched(picture()), matched(picture())
    assert student.got == [None, None]


def test_a_query_that_is_used_again_is_another_track():
    student = Painted(memory=True)
    session = session_of(student)
    first = ids_at(session(picture()))
    for gap, same in ((3, True), (6, False)):
        student.says = torch.stack([NOTHING, CAT, GRASS])
        for _ in range(gap):
            gone = session(picture())
            assert ids_at(gone)[0] in (0, first[2]) and first[0] not in gone.categories
        student.says = torch.stack([CAT, CAT, GRASS])
        back = ids_at(session(picture()))
        assert (back[0] == first[0]) == same and back[1:] == first[1:]
    seen = [[t for t, mask in enumerate(track.segmentations) if mask] for track in session.tracks()]
    assert [0, 4] in seen and [11] in seen and list(range(12)) in seen


def test_another_class_is_another_id_of_the_same_track():
    student = Painted(memory=True)
    session = session_of(student)
    ids = []
    for says in (CAT, DOG, CAT):
        student.says = torch.stack([says, CAT, GRASS])
        found = session(picture())
        ids.append(ids_at(found)[0])
        assert found.categories[ids[-1]] == (1 if says is DOG else 0)
    assert ids[0] == ids[2] != ids[1]
    best = session.tracks()
    assert [(t.category, round(t.score, 1)) for t in best[:3]] == [(0, 1.0), (0, 0.7), (1, 0.3)]
    assert best[1].segmentations == best[2].segmentations and None not in best[1].segmentations


def test_stuff_that_comes_back_has_its_id():
    student = Painted(memory=True)
    session = session_of(student)
    first = ids_at(session(picture()))[2]
    student.says = torch.stack([CAT, CAT, NOTHING])
    for _ in range(9):
        assert first not in session(picture()).categories
    student.says = torch.stack([CAT, CAT, GRASS])
    assert ids_at(session(picture()))[2] == first


class WideWords(Words):
    def encode_text(self, texts):
        waves = [torch.sin((len(text) + i) * torch.arange(1.0, 13.0)) for i, text in enumerate(texts)]
        return F.normalize(torch.stack(waves), dim=1)


@pytest.fixture(scope="module")
def scenes():
    return [scene.image for scene in World(0).video(5, 4, (64, 96))]


@pytest.mark.parametrize("form", ["strips", "full"])
def test_without_smoothing_frames_are_what_the_predictor_says(scenes, form):
    video = VideoPredictor.from_bundle("gkc-world", form=form)
    session = video.start(None, [False] * 23 + [True] * 23)
    for image in scenes:
        expected = video.predictor(image).labels
        assert len(np.unique(expected)) > 2
        assert np.array_equal(session(image).labels, expected)


def test_smoothed_labels_by_the_formula(scenes):
    video = VideoPredictor.from_bundle("gkc-world", smoothing=0.6)
    session = video.start(None, [False] * 46)
    mean = None
    for image in scenes:
        new = class_probabilities(*video.predictor.outputs(image))
        assert (new.sum(0) <= 1 + 1e-5).all()
        mean = new if mean is None else 0.6 * mean + 0.4 * new
        large = F.interpolate(mean[None], image.shape[:2], mode="bilinear", align_corners=False)[0]
        assert (session(image).labels == large.argmax(0).numpy()).mean() > 0.999


def test_a_real_student_with_memory(scenes):
    torch.manual_seed(3)
    student = Segmentor(channels=16, queries=6, layers=2, heads=2, text_width=12, size=(64, 64), memory=True)
    for parameter in student.decoder.parameters():  # a new student's memory changes nothing
        parameter.data += 0.2 * torch.randn_like(parameter)
    session = session_of(student, words=WideWords())
    memory = None
    for image in scenes:
        session(image)
        with torch.inference_mode():
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
            memory = student(pixels, memory=memory)[-1].memory
            alone = student(pixels)[-1].memory
        assert torch.equal(session._memory, memory)
        assert torch.equal(alone, memory) == (image is scenes[0])


def test_smoothing_bridges_a_wrong_frame():
    for smoothing, expected in ((0.0, [0, 0, 1, 0]), (0.7, [0, 0, 0, 0])):
        student = Painted(memory=True)
        session = session_of(student, smoothing=smoothing, object_threshold=0.4)
        categories, labels = [], []
        for says in (CAT, CAT, DOG, CAT):
            student.says = torch.stack([says, NOTHING, GRASS])
            found = session(picture())
            categories.append(found.categories[ids_at(found)[0]])
            labels.append(int(found.labels[8, 8]))
        assert categories == labels == expected


def test_smoothing_starts_anew_after_a_cut_and_with_a_new_track():
    student = Painted(memory=True)
    session = session_of(student, smoothing=0.95)
    for _ in range(5):
        session(picture())
    student.says = torch.stack([DOG, DOG, DOG])
    found = session(picture())
    assert set(found.categories.values()) == {1} and (found.labels == 1).all()
    student.says = torch.stack([NOTHING, DOG, DOG])
    for _ in range(6):
        session(picture())
    student.says = torch.stack([CAT, DOG, DOG])
    assert session(picture()).categories[ids_at(session(picture()))[0]] == 0


def numbers_held(thing, seen=None):
    """How many numbers an object holds on to, run lengths aside."""
    seen = set() if seen is None else seen
    if isinstance(thing, (int, float, str, bytes)):
        return 1
    if id(thing) in seen or isinstance(thing, (Predictor, VideoPredictor)):
        return 0
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        return thing.numel()
    if isinstance(thing, np.ndarray):
        return thing.size
    if isinstance(thing, dict):
        if thing and all(isinstance(value, bytes) for value in thing.values()):
            return 0
        return len(thing) + sum(numbers_held(value, seen) for value in thing.values())
    if isinstance(thing, (list, tuple)):
        return len(thing) + sum(numbers_held(value, seen) for value in thing)
    return numbers_held(vars(thing), seen) if hasattr(thing, "__dict__") else 1


@pytest.mark.parametrize("memory", [True, False])
def test_memory_is_constant_but_for_run_lengths(memory):
    student = Painted(memory)
    session = session_of(student, smoothing=0.5)
    held = []
    for t in range(400):
        # Objects come and go, and change class: every 12 frames another track.
        here = t % 12 < 5
        student.says = torch.stack([(CAT, DOG)[t % 2] if here else NOTHING, CAT, GRASS])
        session(picture(t % 20))
        if t % 12 == 11:
            held.append(numbers_held(session))
    assert session._tracker._last > 30 and len(held) > 30
    assert len(set(held[15:])) == 1
    assert len(session._table._ended) <= 10


def test_forms_are_what_was_asked_for():
    session = session_of(Painted(), forms=("semantic",))
    found = session(picture())
    assert found.segments is None and found.categories == {} and found.labels.shape == (32, 32)
    with pytest.raises(UserError, match="without the form 'tracks'"):
        session.tracks()
    found = session_of(Painted(), forms=("panoptic",))(picture())
    assert found.segments.any() and found.labels.any()
    session = session_of(Painted(), forms=("tracks",))
    assert session(picture()).segments is None and session.tracks()


def test_an_empty_video_has_no_tracks():
    assert session_of(Painted()).tracks() == []


def test_a_frame_of_another_size_is_refused():
    session = session_of(Painted())
    session(picture())
    session(picture())
    with pytest.raises(UserError, match="frame 2 has 64x32 pixels, those before 32x32"):
        session(picture(size=(32, 64)))
    with pytest.raises(UserError, match=r"expected \(H, W, 3\) uint8"):
        session(picture()[..., 0])


def test_wrong_options():
    predictor = Predictor(Painted(), None, Words())
    with pytest.raises(UserError, match="no memory"):
        VideoPredictor(predictor, tracking="propagate")
    with pytest.raises(UserError, match="'mach' is unknown"):
        VideoPredictor(predictor, tracking="mach")
    for smoothing in (1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match="less than 1"):
            VideoPredictor(predictor, smoothing=smoothing)
    video = VideoPredictor(predictor)
    with pytest.raises(UserError, match="2 entries for 3 classes"):
        video.start(NAMES, [True, False])
    with pytest.raises(UserError, match="'masks' is unknown"):
        video.start(NAMES, ISTHING, ("masks",))
    with pytest.raises(UserError, match="same class"):
        video.start(["cat", "Cat"], [True, True])


def test_of_a_bundle_in_the_zoo(scenes):
    video = VideoPredictor.from_bundle("gkc-world", smoothing=0.5, size=64)
    assert video.tracking == "match" and video.predictor.size == 64 and video.smoothing == 0.5
    session = video.start("sky, car, grass", [False, True, False])
    assert session(scenes[0]).labels.max() <= 2
    with pytest.raises(UserError, match="no memory"):
        VideoPredictor.from_bundle("gkc-world", tracking="propagate")


def test_words_are_encoded_once_for_all_videos():
    words = Words()
    calls = []
    words.encode_text = lambda texts: calls.append(texts) or Words.encode_text(words, texts)
    video = VideoPredictor(Predictor(Painted(), None, words))
    for _ in range(3):
        session = video.start(NAMES, ISTHING)
        session(picture()), session(picture())
    assert len(calls) == 1


def test_a_video_file_is_propagated_and_smoothed(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", [picture(size=(32, 32))] * 4)
    student = Painted(memory=True)
    predictor = Predictor(student, None, Words())
    labels = []
    for t, found in enumerate(predictor.video(tmp_path / "a.mp4", NAMES, smoothing=0.7)):
        labels.append(int(found.labels[8, 8]))
        assert found.scores.min() >= 0 and found.scores.max() <= 1
        student.says = torch.stack([DOG if t == 1 else CAT, NOTHING, GRASS])
    assert labels == [0] * 4
    assert student.got[0] is None and [float(m.mean()) for m in student.got[1:]] == [1, 2, 3]
    with pytest.raises(UserError, match="less than 1"):
        next(predictor.video(tmp_path / "a.mp4", NAMES, smoothing=2))


def test_other_words_start_smoothing_anew(tmp_path, write_video):
    write_video(tmp_path / "a.mp4", [picture()] * 4)
    words = {0: "cat, dog, grass", 1: "cat, dog, grass", 2: "bird, cow, sand", 3: "bird, cow, sand"}
    student = Painted()
    labels = []
    for t, found in enumerate(
        Predictor(student, None, Words()).video(tmp_path / "a.mp4", words.get, smoothing=0.9)
    ):
        labels.append(int(found.labels[8, 8]))
        student.says = torch.stack([DOG, CAT, GRASS] if t >= 1 else [CAT, CAT, GRASS])
    assert labels == [0, 0, 1, 1]


def test_the_command_smooths_and_tells_results_apart(tmp_path, write_video, monkeypatch, capsys):
    write_video(tmp_path / "a.mp4", [picture()] * 3)
    monkeypatch.setattr(cli, "_predictor", lambda args: Predictor(Painted(), None, Words()))
    monkeypatch.chdir(tmp_path)
    base = ["a.mp4", "--model", "painted", "--classes", "cat, dog, grass", "--out", "out"]
    assert cli.main([*base, "--smoothing", "0.5"]) == 0
    header = json.loads((tmp_path / "out" / "a.json").read_text().splitlines()[0])
    assert header["settings"]["smoothing"] == 0.5
    assert cli.main([*base, "--smoothing", "0.5"]) == 0 and "1 finished before" in capsys.readouterr().out
    for other in ([], ["--smoothing", "0"], ["--smoothing", "0.6"]):
        assert cli.main([*base, *other]) == 2
        assert "made with other smoothing" in capsys.readouterr().err
    assert cli.main([*base, "--smoothing", "1"]) == 2
    assert "less than 1" in capsys.readouterr().err


def test_results_from_before_there_was_smoothing_count(tmp_path, write_video, monkeypatch, capsys):
    write_video(tmp_path / "a.mp4", [picture()] * 2)
    monkeypatch.setattr(cli, "_predictor", lambda args: Predictor(Painted(), None, Words()))
    monkeypatch.chdir(tmp_path)
    base = ["a.mp4", "--model", "painted", "--classes", "cat, dog, grass", "--out", "out"]
    assert cli.main(base) == 0
    record = tmp_path / "out" / "a.json"
    record.write_text(record.read_text().replace(', "smoothing": null', ""))
    assert '"smoothing"' not in record.read_text()
    assert cli.main(base) == 0 and "1 finished before" in capsys.readouterr().out


def test_maps_of_another_size_start_anew():
    smooth = PixelSmoothing(0.9)
    for size in ((4, 4), (4, 8)):
        assert smooth(torch.eye(3).mul(9)[:2], torch.zeros(2, *size), (16, 16)).labels.shape == (16, 16)
