from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from toy_predictions import FORMS, SIZE, give_truth, world, write_truth

from vlkd.data.predictions import Predictions, PredictionWriter
from vlkd.data.video import open_dataset
from vlkd.data.video.masks import encode_mask
from vlkd.errors import UserError
from vlkd.metrics import confusion_matrix, miou, track_ap, video_consistency, vpq


def as_ground_truth(dataset):
    """The labels as a YouTube-VIS annotation file."""
    videos, annotations = [], []
    for record in dataset:
        height, width = record.size
        facts = {"id": record.video_id, "length": len(record), "height": height, "width": width}
        videos.append(facts)
        for track in record.tracks:
            masks = [track.mask(t) for t in range(len(record))]
            annotations.append(
                {
                    "video_id": record.video_id,
                    "category_id": record.vocabulary.ids[track.category],
                    "segmentations": [None if m is None else encode_mask(m) for m in masks],
                }
            )
    categories = [{"id": id} for id in dataset.vocabulary.ids]
    return {"videos": videos, "annotations": annotations, "categories": categories}


@pytest.mark.parametrize("kind", ["vspw", "camvid", "vipseg", "vipseg_720p"])
def test_perfect_label_maps_score_one(tmp_path, kind):
    dataset = world(kind, tmp_path)
    predictions = write_truth(dataset, tmp_path / "out")
    assert predictions.forms == FORMS[dataset[0].form]
    assert predictions.complete == [record.id for record in dataset]
    count, matrix = len(dataset.names), 0
    truths, guesses = [], []
    for record in dataset:
        guess = predictions.semantic(record)
        truth = np.stack([record.semantic(t) for t in range(len(record))])
        assert guess.dtype == np.uint8
        matrix = matrix + confusion_matrix(truth, guess, count)
        truths.append(truth)
        guesses.append(guess)
        assert predictions.ms(record) == [10.0, 11.0, 12.0, 13.0, 14.0]
    assert miou(matrix) == 1.0
    assert video_consistency(truths, guesses, 3) == 1.0


@pytest.mark.parametrize("kind", ["vipseg", "vipseg_720p"])
def test_perfect_segments_score_100(tmp_path, kind):
    dataset = world(kind, tmp_path)
    predictions = write_truth(dataset, tmp_path / "out")
    videos = []
    for record in dataset:
        truth = [record.panoptic(t) for t in range(len(record))]
        categories = {id: c for _, known in truth for id, c in known.items()}
        ids, found = predictions.panoptic(record)
        assert ids.dtype == np.int32 and ids.max() > 255  # more than one byte is in use
        videos.append((np.stack([ids for ids, _ in truth]), ids, categories, found))
    scores = vpq(videos, [1, 3], dataset.isthing)
    assert scores["all"] == scores["thing"] == scores["stuff"] == 100.0


@pytest.mark.parametrize("kind", ["youtube_vis_2019", "youtube_vis_2021", "ovis", "lvvis", "burst"])
def test_perfect_tracks_score_one(tmp_path, kind):
    dataset = world(kind, tmp_path)
    predictions = write_truth(dataset, tmp_path / "out")
    assert predictions.forms == ("tracks",)
    results = [row for record in dataset for row in predictions.results(record)]
    assert track_ap(as_ground_truth(dataset), results)["AP"] == pytest.approx(1.0)
    if kind == "burst":
        assert (tmp_path / "out/tracks/world/1000000.json").is_file()


def test_files_are_as_documented(tmp_path):
    dataset = world("vipseg_720p", tmp_path, frames=2, videos=1)
    write_truth(dataset, tmp_path / "out")
    header = json.loads((tmp_path / "out/predictions.json").read_text())
    assert header["format"] == 1 and header["names"] == list(dataset.names)
    assert header["settings"] == {"size": 64} and header["forms"] == ["semantic", "panoptic", "tracks"]
    record, where = dataset[0], tmp_path / "out"
    with Image.open(where / "semantic/1000000/00000001.png") as image:
        assert image.mode == "P" and np.array_equal(np.array(image), record.semantic(1))
        colours = np.array(image.getpalette()).reshape(-1, 3)
        assert len(colours) == 256 == len(np.unique(colours, axis=0)) and not colours[0].any()
    with Image.open(where / "panoptic/1000000/00000001.png") as image:
        assert image.mode == "RGB"
        ids = np.array(image).astype(int) @ [1, 256, 65536]
    assert np.array_equal(ids, record.panoptic(1)[0])
    entry = json.loads((where / "panoptic/1000000.json").read_text())
    assert entry["video_id"] == "1000000" and [a["file_name"] for a in entry["annotations"]] == [
        "00000000.png",
        "00000001.png",
    ]
    listed = {s["id"]: (s["category_id"], s["area"]) for s in entry["annotations"][1]["segments_info"]}
    assert listed == {
        id: (c, int((ids == id).sum())) for id, c in record.panoptic(1)[1].items() if (ids == id).any()
    }
    assert json.loads((where / "videos/1000000.json").read_text()) == {"frames": 2, "ms": [10.0, 11.0]}


def test_more_than_255_classes_are_16_bit(tmp_path):
    root = tmp_path / "data"
    for part in ("images", "labels"):
        (root / part / "val" / "a").mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(root / "images/val/a/0.png")
    Image.fromarray(np.zeros((4, 6), np.uint16)).save(root / "labels/val/a/0.png")
    (root / "names.txt").write_text("".join(f"thing {k}\n" for k in range(300)))
    dataset = open_dataset("camvid", root, "val")
    labels = np.arange(24).reshape(4, 6) + 276
    labels[0, 0] = 65535
    writer = PredictionWriter(tmp_path / "out", {}, dataset, ["semantic"])
    with writer.video(dataset[0]) as sink:
        sink.frame(0, labels)
    found = Predictions(tmp_path / "out", dataset).semantic(dataset[0])
    assert found.dtype == np.uint16 and np.array_equal(found[0], labels)


def test_interrupted_videos_do_not_count(tmp_path):
    dataset = world("vipseg_720p", tmp_path)
    arguments = tmp_path / "out", {"settings": {"size": 64}}, dataset, FORMS["panoptic"]
    first, second = dataset
    writer = PredictionWriter(*arguments)
    with writer.video(first) as sink:
        give_truth(sink, first, FORMS["panoptic"])
    with pytest.raises(KeyboardInterrupt), writer.video(second) as sink:
        sink.frame(0, second.semantic(0), *second.panoptic(0))
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="frame 1 was not given"), writer.video(second) as sink:
        sink.frame(0, second.semantic(0), *second.panoptic(0))
    assert Predictions(tmp_path / "out", dataset).complete == [first.id]
    stale = tmp_path / "out/semantic" / second.id / "old.png"
    stale.write_bytes(b"")
    again = PredictionWriter(*arguments)
    assert again.is_done(first) and not again.is_done(second)
    with again.video(second) as sink:
        give_truth(sink, second, FORMS["panoptic"])
    assert again.is_done(second) and not stale.exists()


def test_other_settings_are_refused(tmp_path):
    dataset = world("vspw", tmp_path, frames=2, videos=1)
    out = tmp_path / "out"
    write_truth(dataset, out)
    with pytest.raises(UserError, match=r"settings: size was 64 and is 96; .*--overwrite"):
        PredictionWriter(out, {"settings": {"size": 96}}, dataset, ["semantic"])
    PredictionWriter(out, {"settings": {"size": 64}, "note": "may change"}, dataset, ["semantic"])
    writer = PredictionWriter(out, {"settings": {"size": 96}}, dataset, ["semantic"], overwrite=True)
    assert not writer.is_done(dataset[0]) and not (out / "semantic" / dataset[0].id).exists()
    other = tmp_path / "other"
    (other / "videos").mkdir(parents=True)
    (other / "videos" / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"videos is there, but no predictions.json"):
        PredictionWriter(other, {}, dataset, ["semantic"], overwrite=True)
    assert (other / "videos" / "holiday.mp4").exists()


def test_impossible_predictions_are_refused(tmp_path):
    dataset = world("vipseg_720p", tmp_path, frames=2, videos=1)
    record = dataset[0]
    labels, ids = record.semantic(0), record.panoptic(0)[0]
    kinds = record.panoptic(0)[1]
    id = next(iter(np.unique(ids[ids > 0]).tolist()))
    wrong = [
        (labels[:-1], ids, kinds, "the video has 56x40 pixels"),
        (labels * 0 + 46, ids, kinds, "labels from 46 to 46; there are 46 classes"),
        (labels, ids * 0 + (1 << 24), kinds, "expected 0 .nothing. to 16777215"),
        (labels, ids, {}, "has no category"),
        (labels, ids * 0 + 7, {7: 46}, "segment 7 is of class 46"),
        (labels, ids, {**kinds, id: (kinds[id] + 1) % 46}, f"segment {id} is .* an id keeps its class"),
    ]
    writer = PredictionWriter(tmp_path / "out", {}, dataset, ["semantic", "panoptic"])
    for *given, message in wrong:
        with pytest.raises(UserError, match=message) as error, writer.video(record) as sink:
            sink.frame(1, *record_frame(record, 1))
            sink.frame(0, *given)
        assert str(error.value).startswith(f"video {record.id}, frame 0: ")
    assert not writer.is_done(record)
    writer = PredictionWriter(tmp_path / "tracks", {}, dataset, ["tracks"])
    mask = encode_mask(np.ones(SIZE, bool))
    small = encode_mask(np.ones((4, 6), bool))
    for track, message in [
        ((99, 1.0, [mask, None]), "a track of class 99"),
        ((0, 1.0, [mask]), "a track of 1 segmentations; it has 2 frames"),
        ((0, 1.0, [mask, small]), r"a mask of size \[4, 6\]; its frames have \[40, 56\]"),
    ]:
        with pytest.raises(UserError, match=message), writer.video(record) as sink:
            sink.tracks([track])
    with writer.video(record) as sink:
        sink.tracks([(0, 1.0, [None, None])])
    assert Predictions(tmp_path / "tracks", dataset).results(record) == []


def record_frame(record, t):
    return record.semantic(t), *record.panoptic(t)


def test_folders_of_other_tools(tmp_path):
    """No header, no videos folder, one JSON for all."""
    dataset = world("vipseg_720p", tmp_path)
    out = tmp_path / "out"
    own = write_truth(dataset, out)
    expected = [(own.panoptic(record), own.results(record)) for record in dataset]
    entries = [json.loads((out / f"panoptic/{record.id}.json").read_text()) for record in dataset]
    rows = [row for _, results in expected for row in results]
    for record in dataset:
        for part in ("panoptic", "tracks", "videos"):
            (out / part / f"{record.id}.json").unlink()
    (out / "videos").rmdir()
    (out / "predictions.json").unlink()
    (out / "panoptic/pred.json").write_text(json.dumps({"annotations": entries}))
    (out / "tracks/results.json").write_text(json.dumps(rows))
    found = Predictions(out, dataset)
    assert found.header == {} and found.complete == [record.id for record in dataset]
    for record, (panoptic, results) in zip(dataset, expected, strict=True):
        assert found.results(record) == results and found.ms(record) == []
        assert np.array_equal(found.panoptic(record)[0], panoptic[0])
        assert found.panoptic(record)[1] == panoptic[1]


def test_wrong_folders(tmp_path):
    dataset = world("vspw", tmp_path, frames=2, videos=1)
    with pytest.raises(UserError, match="no such folder; expected video predictions"):
        Predictions(tmp_path / "nothing", dataset)
    with pytest.raises(UserError, match="no predictions; expected a folder semantic, panoptic, tracks"):
        Predictions(tmp_path / "data", dataset)
    write_truth(dataset, tmp_path / "out")
    other = world("lvvis", tmp_path / "other", frames=2, videos=1)
    with pytest.raises(UserError, match=r"predictions.json: predictions in 46 classes"):
        Predictions(tmp_path / "out", other)
