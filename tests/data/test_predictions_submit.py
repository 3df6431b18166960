from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from toy_predictions import SIZE, world, write_truth

from vlkd.data.predictions import SUBMISSIONS, Predictions, PredictionWriter, write_submission
from vlkd.data.video import KINDS, open_dataset, write_world
from vlkd.data.video.masks import encode_mask
from vlkd.errors import UserError
from vlkd.metrics import track_ap

FRAMES = 5


def submitted(kind, root):
    """Data set and open zip of the truth."""
    dataset = world(kind, root, FRAMES)
    write_truth(dataset, root / "out")
    path = write_submission(kind.removesuffix("_720p"), root / "out", dataset, root / "sent" / "a.zip")
    assert path == root / "sent" / "a.zip" and [p.name for p in path.parent.iterdir()] == ["a.zip"]
    return dataset, zipfile.ZipFile(path)


def png(archive, name):
    return np.array(Image.open(io.BytesIO(archive.read(name))))


def test_kinds():
    assert set(SUBMISSIONS) == set(KINDS) - {"camvid"}


def test_vspw(tmp_path):
    dataset, archive = submitted("vspw", tmp_path)
    ids = [record.id for record in dataset]
    assert archive.namelist() == [f"{id}/{t:08d}.png" for id in ids for t in range(FRAMES)]
    for id in ids:
        # the evaluator's view: masks have 0 for void and count from 1, predictions count from 0
        mask = np.array(Image.open(tmp_path / "data/data" / id / "mask/00000003.png")).astype(int)
        assert mask.min() > 0 and np.array_equal(png(archive, f"{id}/00000003.png"), mask - 1)


def test_vspw_needs_a_class_everywhere(tmp_path):
    dataset = world("vspw", tmp_path, 2)
    write_truth(dataset, tmp_path / "out")
    path = tmp_path / f"out/semantic/{dataset[1].id}/00000001.png"
    labels = np.array(Image.open(path))
    labels[0, 0] = 255
    Image.fromarray(labels).save(path)
    with pytest.raises(UserError, match=f"video {dataset[1].id}: {path}: pixels without a class"):
        write_submission("vspw", tmp_path / "out", dataset, tmp_path / "sent" / "a.zip")
    assert list((tmp_path / "sent").iterdir()) == []  # nothing half written


@pytest.mark.parametrize("kind", ["vipseg", "vipseg_720p"])
def test_vipseg(tmp_path, kind):
    dataset, archive = submitted(kind, tmp_path)
    names = [f"pan_pred/{record.id}/{t:08d}.png" for record in dataset for t in range(FRAMES)]
    assert archive.namelist() == [*names, "pred.json"]
    videos = json.loads(archive.read("pred.json"))["annotations"]
    assert [video["video_id"] for video in videos] == [record.id for record in dataset]
    for record, video in zip(dataset, videos, strict=True):
        files = [frame["file_name"] for frame in video["annotations"]]
        assert files == [f"{t:08d}.png" for t in range(FRAMES)]
        for t, frame in enumerate(video["annotations"]):
            ids = png(archive, f"pan_pred/{record.id}/{frame['file_name']}").astype(int) @ [1, 256, 65536]
            truth, categories = record.panoptic(t)
            assert np.array_equal(ids, truth)
            assert {s["id"]: (s["category_id"], s["area"]) for s in frame["segments_info"]} == {
                id: (record.vocabulary.ids[categories[id]], int((truth == id).sum()))
                for id in np.unique(truth[truth > 0]).tolist()
            }


def test_vipseg_lists_just_the_ids_of_the_png(tmp_path):
    """VIPSeg's evaluator stops at an id that only the JSON has; other tools may write some."""
    dataset = world("vipseg_720p", tmp_path, 2, videos=1)
    write_truth(dataset, tmp_path / "out")
    source = tmp_path / f"out/panoptic/{dataset[0].id}.json"
    content = json.loads(source.read_text())
    content["annotations"][0]["segments_info"].append({"id": 65999, "category_id": 3})
    source.write_text(json.dumps(content))
    path = write_submission("vipseg", tmp_path / "out", dataset, tmp_path / "a.zip")
    frame = json.loads(zipfile.ZipFile(path).read("pred.json"))["annotations"][0]["annotations"][0]
    assert 65999 not in {segment["id"] for segment in frame["segments_info"]}


@pytest.mark.parametrize("kind", ["youtube_vis_2019", "youtube_vis_2021", "ovis", "lvvis"])
def test_results(tmp_path, kind):
    dataset, archive = submitted(kind, tmp_path)
    assert archive.namelist() == ["results.json"]
    rows = json.loads(archive.read("results.json"))
    assert rows == [row for r in dataset for row in Predictions(tmp_path / "out", dataset).results(r)]
    (source,) = [path for path in (tmp_path / "data").rglob("*.json") if "categories" not in path.name]
    assert track_ap(json.loads(source.read_text()), rows)["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["vspw", "vipseg_720p", "lvvis"])
def test_splits_without_labels(tmp_path, kind):
    write_world(kind, tmp_path / "data", "test", 1, 2, SIZE)
    kind = kind.removesuffix("_720p")
    dataset = open_dataset(kind, tmp_path / "data", "test")
    form = SUBMISSIONS[kind].form
    writer = PredictionWriter(tmp_path / "out", {}, dataset, [form])
    with writer.video(dataset[0]) as sink:
        labels = np.full(SIZE, 7)
        if form == "tracks":
            sink.tracks([(7, 0.5, [encode_mask(labels == 7)] * 2)])
        else:
            for t in range(2):
                sink.frame(t, labels, labels, {7: 3})
    names = zipfile.ZipFile(write_submission(kind, tmp_path / "out", dataset, tmp_path / "a.zip")).namelist()
    assert [name for name in names if name.endswith(".json")] == {
        "vspw": [],
        "vipseg": ["pred.json"],
        "lvvis": ["results.json"],
    }[kind]


def test_no_tracks_at_all(tmp_path):
    dataset = world("ovis", tmp_path, 2)
    writer = PredictionWriter(tmp_path / "out", {}, dataset, ["tracks"])
    for record in dataset:
        with writer.video(record) as sink:
            sink.tracks([])
    path = write_submission("ovis", tmp_path / "out", dataset, tmp_path / "a.zip")
    assert json.loads(zipfile.ZipFile(path).read("results.json")) == []


def test_burst(tmp_path):
    """What is sent opens as a BURST data set with the predicted tracks."""
    dataset, archive = submitted("burst", tmp_path)
    assert archive.namelist() == ["predictions.json"]
    truth = tmp_path / "data/annotations/val/all_classes.json"
    expected = json.loads(truth.read_text())
    sent = json.loads(archive.read("predictions.json"))
    assert set(sent) == set(expected) and sent["categories"] == expected["categories"]
    truth.write_text(json.dumps(sent))
    again = open_dataset("burst", tmp_path / "data", "val")
    assert [record.labelled for record in again] == [record.labelled for record in dataset] == [(0, 4)] * 2
    for one, other in zip(dataset, again, strict=True):
        assert len(one.tracks) == len(other.tracks) > 1
        for track, found in zip(one.tracks, other.tracks, strict=True):
            assert track.category == found.category and track.times == found.times
            assert all(np.array_equal(track.mask(t), found.mask(t)) for t in track.times)


def test_burst_has_no_empty_masks(tmp_path):
    dataset = world("burst", tmp_path, FRAMES, videos=1)
    empty, full = np.zeros(SIZE, bool), np.ones(SIZE, bool)
    runs = {"size": list(SIZE), "counts": [10, SIZE[0] * SIZE[1] - 10]}
    writer = PredictionWriter(tmp_path / "out", {}, dataset, ["tracks"])
    with writer.video(dataset[0]) as sink:
        sink.tracks(
            [
                (0, 0.9, [encode_mask(full), None, None, None, encode_mask(empty)]),
                (1, 0.8, [encode_mask(empty), encode_mask(full), None, None, None]),  # only between labels
                (2, 0.7, [None, None, None, None, runs]),
            ]
        )
    path = write_submission("burst", tmp_path / "out", dataset, tmp_path / "a.zip")
    (sequence,) = json.loads(zipfile.ZipFile(path).read("predictions.json"))["sequences"]
    ids = dataset.vocabulary.ids
    assert sequence["track_category_ids"] == {"1": ids[0], "3": ids[2]}
    assert [list(frame) for frame in sequence["segmentations"]] == [["1"], ["3"]]
    shown = sequence["segmentations"][1]["3"]
    assert shown["score"] == 0.7 and shown["is_gt"] is False
    assert coco.area({"size": list(SIZE), "counts": shown["rle"]}) == SIZE[0] * SIZE[1] - 10


def test_refusals(tmp_path):
    dataset = world("lvvis", tmp_path, 2)
    write_truth(dataset, tmp_path / "out")
    with pytest.raises(UserError, match=r"no submissions for 'lvis' .nearest.*; known: vspw, vipseg,"):
        write_submission("lvis", tmp_path / "out", dataset, tmp_path / "a.zip")
    with pytest.raises(UserError, match=r"give a name that ends in \.zip"):
        write_submission("lvvis", tmp_path / "out", dataset, tmp_path / "a.json")
    with pytest.raises(UserError, match="semantic: not found; expected semantic predictions"):
        write_submission("vspw", tmp_path / "out", dataset, tmp_path / "a.zip")
    for record in dataset:
        (tmp_path / f"out/tracks/{record.id}.json").write_text("[{}]")
    with pytest.raises(UserError, match=r"1000000.json: result 0 is not of .* \(and 1 more: vlkd data check"):
        write_submission("lvvis", tmp_path / "out", dataset, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_the_same_predictions_give_the_same_zip(tmp_path):
    dataset = world("ovis", tmp_path, 2)
    write_truth(dataset, tmp_path / "out")
    paths = [write_submission("ovis", tmp_path / "out", dataset, tmp_path / f"{k}.zip") for k in (1, 2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
