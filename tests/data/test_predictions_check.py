from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from toy_predictions import world, write_truth

from vlkd.data.predictions import Predictions, PredictionWriter, check_predictions
from vlkd.data.video import open_dataset
from vlkd.data.video.masks import encode_mask
from vlkd.errors import UserError

FRAMES = 3


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("vipseg")
    write_truth(world("vipseg_720p", root, FRAMES), root / "out")
    return root


@pytest.fixture
def good(original, tmp_path):
    shutil.copytree(original / "out", tmp_path / "out")
    return open_dataset("vipseg", original / "data", "val"), tmp_path / "out"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["vspw", "camvid", "vipseg", "youtube_vis_2021", "ovis", "lvvis", "burst"])
def test_nothing_is_wrong_with_the_truth(tmp_path, kind):
    dataset = world(kind, tmp_path, FRAMES)
    forms = write_truth(dataset, tmp_path / "out").forms
    assert check_predictions(tmp_path / "out", dataset, forms) == []
    assert check_predictions(tmp_path / "out", dataset) == []


def test_unknown_and_missing_videos(good):
    dataset, out = good
    first = dataset[0].id
    for form in ("semantic", "panoptic"):
        (out / form / first).rename(out / form / "elsewhere")
    (out / "tracks" / f"{first}.json").rename(out / "tracks" / "beyond.json")
    assert check_predictions(out, dataset) == [
        f"video beyond: {out}/tracks/beyond.json: no such video in {dataset.source}",
        f"video elsewhere: {out}/semantic/elsewhere: no such video in {dataset.source}",
        f"video {first}: {out}/semantic/{first}: no predictions there",
        f"video {first}: {out}/panoptic/{first}: no predictions there",
        f"video {first}: {out}/tracks/{first}.json: not found",
    ]
    assert check_predictions(out, dataset, ["panoptic"]) == [
        f"video elsewhere: {out}/panoptic/elsewhere: no such video in {dataset.source}",
        f"video {first}: {out}/panoptic/{first}: no predictions there",
    ]


def test_unknown_videos_in_one_json(good):
    dataset, out = good
    entries = []
    for record in dataset:
        path = out / "panoptic" / f"{record.id}.json"
        entries.append(json.loads(path.read_text()))
        path.unlink()
        (out / "tracks" / f"{record.id}.json").unlink()
    entries[0]["video_id"] = "elsewhere"
    (out / "panoptic/pred.json").write_text(json.dumps({"annotations": entries}))
    (out / "tracks/results.json").write_text('[{"video_id": 77}]')
    assert check_predictions(out, dataset) == [
        f"video elsewhere: {out}/panoptic/pred.json: no such video in {dataset.source}",
        f"video 77: {out}/tracks/results.json: no such video in {dataset.source}",
    ]
    with pytest.raises(UserError, match=rf"video {dataset[0].id}: .*pred.json: no such video in it"):
        Predictions(out, dataset).panoptic(dataset[0])


def test_unfinished_videos(good):
    dataset, out = good
    done = out / "videos" / f"{dataset[1].id}.json"
    done.unlink()
    expected = f"video {dataset[1].id}: {done}: not found, so its prediction is not finished; continue it"
    assert check_predictions(out, dataset) == [expected]


def test_frames_that_are_missing_or_too_many(good):
    dataset, out = good
    folder = out / "semantic" / dataset[1].id
    (folder / "00000001.png").rename(folder / "1.png")
    where = f"video {dataset[1].id}: {folder}"
    assert check_predictions(out, dataset, ["semantic"]) == [
        f"{where}: no prediction for 1 of {len(dataset[1])} frames, first 00000001.png",
        f"{where}: files that belong to no frame: 1, first 1.png",
    ]
    with pytest.raises(UserError, match=rf"video {dataset[1].id}: .*00000001.png: label file not found"):
        Predictions(out, dataset).semantic(dataset[1])


def test_sizes_modes_and_damage(good):
    dataset, out = good
    first, second = dataset[0].id, dataset[1].id
    small = np.zeros((20, 28), np.uint8)
    Image.fromarray(small).save(out / f"semantic/{first}/00000002.png")
    Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(out / f"semantic/{second}/00000000.png")
    Image.fromarray(np.zeros((40, 56), np.uint8)).save(out / f"panoptic/{first}/00000000.png")
    (out / f"panoptic/{second}/00000001.png").write_bytes(b"")
    assert check_predictions(out, dataset) == [
        f"video {first}: {out}/semantic/{first}/00000002.png: 28x20 pixels, but the video has 56x40",
        f"video {first}: {out}/panoptic/{first}/00000000.png: an image of mode L; "
        "expected ids as RGB colours",
        f"video {second}: {out}/semantic/{second}/00000000.png: an image of mode RGB; "
        "expected one channel of class numbers",
        f"video {second}: {out}/panoptic/{second}/00000001.png: cannot be read (0 bytes)",
    ]
    predictions = Predictions(out, dataset)
    with pytest.raises(UserError, match=rf"video {first}: .*00000002.png: 28x20 pixels"):
        predictions.semantic(dataset[0])
    with pytest.raises(UserError, match=rf"video {second}: .*00000001.png: panoptic PNG cannot be read"):
        predictions.panoptic(dataset[1])


def test_classes_that_do_not_exist(good):
    dataset, out = good
    video = dataset[0].id
    Image.fromarray(np.full((40, 56), 46, np.uint8)).save(out / f"semantic/{video}/00000000.png")
    expected = f"{out}/semantic/{video}/00000000.png: value 46; expected classes 0 to 45, and 255 for nothing"
    assert check_predictions(out, dataset, ["semantic"]) == [f"video {video}: {expected}"]


def test_panoptic_json_and_png_disagree(good):
    dataset, out = good
    first, second = (out / "panoptic" / f"{record.id}.json" for record in dataset)
    frames = json.loads(first.read_text())["annotations"]
    shared = {s["id"] for s in frames[0]["segments_info"]} & {s["id"] for s in frames[1]["segments_info"]}
    gone, changed = sorted(shared)[:2]

    def drop(content):
        for frame in content["annotations"][:2]:
            frame["segments_info"] = [s for s in frame["segments_info"] if s["id"] != gone]

    edit(first, drop)
    edit(second, lambda content: content["annotations"].pop())
    assert check_predictions(out, dataset, ["panoptic"]) == [
        *(
            f"video {dataset[0].id}: {out}/panoptic/{dataset[0].id}/0000000{t}.png: "
            f"segment id {gone} is not listed in {first}"
            for t in (0, 1)
        ),
        f"video {dataset[1].id}: {second}: frame 00000002 has no entry (1 lack one)",
    ]

    def change(content):
        for frame in content["annotations"]:
            for segment in frame["segments_info"]:
                if segment["id"] == changed and frame["file_name"] == "00000001.png":
                    segment["category_id"] = 0 if segment["category_id"] else 1

    edit(first, change)
    edit(second, lambda content: content["annotations"][0]["segments_info"][0].update(category_id=99))
    lines = check_predictions(out, dataset, ["panoptic"])
    assert len(lines) == 2 and f"frame 00000001: id {changed} is " in lines[0]
    assert lines[1].endswith("00000000.png has category_id 99, which its categories do not list")
    edit(second, lambda content: content.pop("annotations"))
    assert f"video {dataset[1].id}: {second}: no list of annotations in it" in check_predictions(
        out, dataset, ["panoptic"]
    )


def test_results_that_do_not_fit(good):
    dataset, out = good
    record = dataset[0]
    path = out / "tracks" / f"{record.id}.json"
    kept = path.read_text()
    for change, message in [
        (lambda row: row.update(category_id=99), "has category_id 99, which is in no category"),
        (lambda row: row.update(video_id="x"), f"is for video 'x', expected '{record.id}'"),
        (lambda row: row.update(score=float("nan")), "has the score nan, not a finite number"),
        (lambda row: row["segmentations"].pop(), "has 2 segmentations, but the video has 3 frames"),
        (lambda row: row.pop("score"), "is not of YouTube-VIS's form (missing or wrong entry 'score')"),
        (
            lambda row: row.update(segmentations=[{"size": [40, 56], "counts": None}] * 3),
            "has a mask whose counts are neither a string nor a list",
        ),
        (
            lambda row: row.update(segmentations=[{"size": [4, 6], "counts": "d0"}] * 3),
            "has a mask of size [4, 6], but the video has [40, 56]",
        ),
    ]:
        edit(path, lambda rows, change=change: change(rows[1]))
        assert check_predictions(out, dataset, ["tracks"]) == [
            f"video {record.id}: {path}: result 1 {message}"
        ]
        path.write_text(kept)
    path.write_text("{}")
    assert "expected a JSON file with a list" in check_predictions(out, dataset, ["tracks"])[0]


def test_a_form_or_everything_is_missing(good, tmp_path):
    dataset, out = good
    shutil.rmtree(out / "tracks")
    assert check_predictions(out, dataset, ["semantic", "tracks"]) == [
        f"{out}/tracks: not found; expected tracks predictions"
    ]
    assert check_predictions(out, dataset) == []
    assert "no such folder" in check_predictions(tmp_path / "none", dataset)[0]


def test_a_video_without_a_frame_left(tmp_path):
    whole = world("vipseg_720p", tmp_path, FRAMES)
    hidden = whole[0].categories()
    assert whole[1].categories() - hidden
    novel = [whole.names[c] for c in hidden]
    dataset = open_dataset("vipseg", tmp_path / "data", "val", "ignore", novel=novel)
    assert [len(record) for record in dataset] == [0, FRAMES]
    writer = PredictionWriter(tmp_path / "out", {}, dataset, ["semantic"])
    for record in dataset:
        with writer.video(record) as sink:
            for t in range(len(record)):
                sink.frame(t, record.semantic(t))
    assert check_predictions(tmp_path / "out", dataset) == []


def test_a_subset_reads_predictions_of_all_frames(tmp_path):
    whole = world("vipseg_720p", tmp_path, frames=24, videos=1)
    write_truth(whole, tmp_path / "out")
    frames = [whole[0].categories(t) for t in range(24)]
    passing = frozenset.union(*frames) - frozenset.intersection(*frames)
    novel = min(passing)  # in some frames, not in all
    dataset = open_dataset("vipseg", tmp_path / "data", "val", "val_novel", novel=[whole.names[novel]])
    record = dataset[0]
    assert 0 < len(record) < 24
    assert check_predictions(tmp_path / "out", dataset, ["semantic", "panoptic"]) == []
    for t, labels in enumerate(Predictions(tmp_path / "out", dataset).semantic(record)):
        there = record.semantic(t) == novel
        assert there.any() and (labels[there] == novel).all()


@pytest.mark.parametrize(
    "mask",
    [
        {"size": [40, 56], "counts": "zzzzq"},  # pycocotools does not come back from these
        {"size": [40, 56], "counts": ""},
        {"size": [40, 56], "counts": [3, 4]},
        {"size": [40, 56], "counts": [-3, 2243]},
        {"size": [40, 56], "counts": ["x"]},
        {"size": 5, "counts": "a"},
        "abc",
        5,
        [1, 2],
    ],
    ids=str,
)
def test_masks_that_are_none(tmp_path, mask):
    dataset = world("lvvis", tmp_path)
    write_truth(dataset, tmp_path / "out")
    path = tmp_path / "out" / "tracks" / f"{dataset[0].id}.json"
    edit(path, lambda rows: rows[0]["segmentations"].__setitem__(0, mask))
    (line,) = check_predictions(tmp_path / "out", dataset)
    assert line.startswith(f"video {dataset[0].id}: {path}: result 0 ")
    assert "mask" in line or "not of YouTube-VIS's form" in line


def test_runs_of_true_masks_fill_their_frames():
    from vlkd.data.predictions.rows import _lengths

    rng = np.random.default_rng(0)
    for level in np.linspace(0, 1, 21):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        mask = rng.random((height, width)) < level
        flat = np.concatenate(([False], mask.T.ravel()))  # the first run is of nothing
        edges = np.flatnonzero(np.diff(flat)), [mask.size]
        assert np.array_equal(
            _lengths(encode_mask(mask)["counts"]), np.diff(np.concatenate(edges), prepend=0)
        )
    assert _lengths(encode_mask(np.zeros((3000, 4000), bool))["counts"]).tolist() == [12_000_000]


@pytest.mark.parametrize("score", [None, "0.5", float("inf")])
def test_scores_are_numbers(tmp_path, score):
    dataset = world("lvvis", tmp_path)
    write_truth(dataset, tmp_path / "out")
    path = tmp_path / "out" / "tracks" / f"{dataset[0].id}.json"
    edit(path, lambda rows: rows[0].update(score=score))
    assert check_predictions(tmp_path / "out", dataset) == [
        f"video {dataset[0].id}: {path}: result 0 has the score {score!r}, not a finite number"
    ]


@pytest.mark.parametrize("key", ["names", "settings", "machine"])
def test_a_header_of_another_form(tmp_path, key):
    dataset = world("vspw", tmp_path)
    write_truth(dataset, tmp_path / "out")
    path = tmp_path / "out" / "predictions.json"
    edit(path, lambda header: header.update({key: 5}))
    (line,) = check_predictions(tmp_path / "out", dataset)
    assert line.startswith(f"{path}: {key}: expected ")


@pytest.mark.parametrize("ms", [None, ["a"], 3])
def test_times_that_are_none(tmp_path, ms):
    dataset = world("vspw", tmp_path)
    write_truth(dataset, tmp_path / "out")
    path = tmp_path / "out" / "videos" / f"{dataset[0].id}.json"
    edit(path, lambda done: done.update(ms=ms))
    (line,) = check_predictions(tmp_path / "out", dataset)
    assert line.startswith(f"video {dataset[0].id}: {path}: ms: expected a list of numbers")


@pytest.mark.parametrize("id", [10**20, -1])
def test_ids_that_no_colour_has(tmp_path, id):
    dataset = world("vipseg_720p", tmp_path)
    write_truth(dataset, tmp_path / "out")
    path = tmp_path / "out" / "panoptic" / f"{dataset[0].id}.json"
    edit(path, lambda found: found["annotations"][0]["segments_info"].append({"id": id, "category_id": 1}))
    (line,) = check_predictions(tmp_path / "out", dataset)
    assert line.startswith(f"video {dataset[0].id}: {path}: ") and f"id {id}; expected 1 to 16777215" in line
