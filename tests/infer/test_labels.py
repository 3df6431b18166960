"""`vlkd infer` with a classifier: the table, the sheet, the options, what is done again."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import vlkd.infer.cli as cli
from vlkd.errors import UserError
from vlkd.infer.draw import sheet


@pytest.fixture
def run(classes, monkeypatch, tmp_path, capsys):
    """Function that runs the command with the colour classifier and returns (code, stdout, stderr)."""
    monkeypatch.setattr(cli, "_predictor", lambda args: classes)
    monkeypatch.chdir(tmp_path)

    def call(*argv, expect=0):
        code = cli.main(["colours", *map(str, argv), "--out", "out"])
        output = capsys.readouterr()
        assert code == expect, output
        return output.out, output.err

    return call


@pytest.fixture
def photos(tmp_path, flat):
    (tmp_path / "in").mkdir()
    for name in ("red", "green", "blue"):
        Image.fromarray(flat(name)).save(tmp_path / "in" / f"{name}.png")
    return tmp_path / "in"


def table(tmp_path):
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((tmp_path / "out" / "predictions.json").read_text(encoding="utf-8"))


def test_a_folder_becomes_a_table(run, photos, tmp_path):
    out, err = run("in")
    rows, record = table(tmp_path)
    assert [(row["path"], row["label"]) for row in rows] == [
        ("in/blue.png", "blue"),
        ("in/green.png", "green"),
        ("in/red.png", "red"),
    ]
    assert list(rows[0]) == [
        "path",
        "frame",
        "time",
        "label",
        "score",
        "label_2",
        "score_2",
        "label_3",
        "score_3",
    ]
    for row, entry in zip(rows, record["predictions"], strict=True):
        assert entry["path"] == row["path"] and entry["file"] == str(photos / f"{row['label']}.png")
        assert entry["label"] == row["label"] == entry["top"][0]["name"] and len(entry["top"]) == 3
        assert float(row["score"]) == entry["score"] > 0.99
    settings = {"model": "colours", "classes": ["red", "green", "blue"], "every": 1, "top": 5}
    assert record["settings"] == settings and record["failed"] == []
    assert "in/red.png: red 1.000" in out and "3 done in" in out and err == ""
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "predictions.csv",
        "predictions.json",
    ]


def test_classes_and_top(run, photos, tmp_path):
    run("in", "--classes", "green, red", "--top", 1)
    rows, record = table(tmp_path)
    assert [row["label"] for row in rows[1:]] == ["green", "red"] and rows[0]["label"] != "blue"
    assert list(rows[0]) == ["path", "frame", "time", "label", "score"]
    assert record["settings"]["classes"] == ["red", "green"]
    _, err = run("in", "--classes", "gren", "--overwrite", expect=2)
    assert 'nearest: "green"' in err and err.count("\n") == 1
    _, err = run("in", "--top", 0, "--overwrite", expect=2)
    assert err == "error: --top 0: expected 1 or more\n"


def test_finished_work_is_kept_and_other_settings_are_refused(run, photos, tmp_path, classes, flat):
    run("in")
    classes.classifier.batches.clear()
    Image.fromarray(flat("red")).save(photos / "zoo.png")
    out, _ = run("in")
    assert classes.classifier.batches == [(1, 3, 8, 8)] and "1 done" in out and "3 finished before" in out
    assert len(table(tmp_path)[0]) == 4
    _, err = run("in", "--classes", "red", expect=2)
    assert "made with other classes" in err and len(table(tmp_path)[0]) == 4
    run("in/red.png", "--classes", "red", "--overwrite")
    assert len(table(tmp_path)[0]) == 1
    (tmp_path / "out" / "predictions.json").write_text('{"mine": 1}')
    _, err = run("in", expect=2)
    assert "not written by vlkd" in err and err.count("\n") == 1


def test_bad_files_do_not_stop_the_others_and_are_tried_again(run, photos, tmp_path, flat):
    (photos / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    (photos / "words.mp4").write_text("words")
    out, err = run("in", "absent.png", expect=1)
    assert len(err.splitlines()) == 3
    for name in ("cut.jpg", "words.mp4", "absent.png"):
        assert sum(name in line for line in err.splitlines()) == 1
    assert "3 done" in out and "3 failed" in out
    rows, record = table(tmp_path)
    assert len(rows) == 3 and len(record["failed"]) == 2 and "cut.jpg" in record["failed"][0]["error"]
    Image.fromarray(flat("red")).save(photos / "cut.jpg")
    (photos / "words.mp4").unlink()
    out, _ = run("in")
    rows, record = table(tmp_path)
    assert "1 done" in out and len(rows) == 4
    assert record["failed"] == []


def test_video_rows(run, tmp_path, flat, write_video, photos):
    names = ("red", "red", "green", "green", "blue")
    write_video(tmp_path / "clip.mp4", [flat(name, 64, 64) for name in names])
    out, _ = run("clip.mp4", "in/red.png", "--every", 2)
    rows, record = table(tmp_path)
    assert [row["label"] for row in rows] == ["red", "red", "green", "blue"]
    assert [row["frame"] for row in rows] == ["", "0", "2", "4"]
    assert [float(row["time"]) for row in rows[1:]] == pytest.approx([0, 0.2, 0.4], abs=1e-3)
    assert record["predictions"][2]["frame"] == 2
    assert "clip.mp4: 3 frames" in out
    out, _ = run("clip.mp4", "in/red.png", "--every", 2)
    assert "2 finished before" in out and len(table(tmp_path)[0]) == 4


def test_a_damaged_video_is_done_again(run, tmp_path, flat, write_video, monkeypatch):
    from vlkd.infer.video import VideoFile

    write_video(tmp_path / "clip.mp4", [flat("red", 64, 64)] * 9)
    decoded = VideoFile._decoded

    def breaks(self):
        for index, frame in enumerate(decoded(self)):
            if index == 5:
                raise RuntimeError("bad packet")
            yield frame

    monkeypatch.setattr(VideoFile, "_decoded", breaks)
    _, err = run("clip.mp4", expect=1)
    rows, record = table(tmp_path)
    assert "damaged after frame 5" in err and len(rows) == 4 and len(record["failed"]) == 1
    monkeypatch.setattr(VideoFile, "_decoded", decoded)
    run("clip.mp4")
    rows, record = table(tmp_path)
    assert len(rows) == 9 and record["failed"] == []


def test_interrupt_keeps_what_is_done(run, photos, tmp_path, classes, monkeypatch):
    forward = classes.classifier.forward

    def interrupted(images):
        if classes.classifier.batches:
            raise KeyboardInterrupt
        return forward(images)

    monkeypatch.setattr(classes.classifier, "forward", interrupted)
    _, err = run("in", expect=130)
    assert "2 done, 1 left" in err and len(table(tmp_path)[0]) == 2
    monkeypatch.setattr(classes.classifier, "forward", forward)
    out, _ = run("in")
    assert "1 done" in out and "2 finished before" in out and len(table(tmp_path)[0]) == 3


def test_the_sheet_shows_what_is_there(run, photos, tmp_path):
    run("in", "--sheet")
    with Image.open(tmp_path / "out" / "sheet.jpg") as drawn:
        columns = [np.asarray(drawn)[100, x] for x in (88, 264, 440)]
    assert [int(c.argmax()) for c in columns] == [2, 1, 0]
    (photos / "red.png").unlink()
    run("in", "--sheet")
    with Image.open(tmp_path / "out" / "sheet.jpg") as drawn:
        assert drawn.width == 2 * 176
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_sheet_of_odd_images():
    shown = [
        (np.zeros((1, 400, 3), np.uint8), "a very long name " * 5, 0.0),
        (np.zeros((9, 2, 3), np.uint8), "空", 1),
    ]
    drawn = sheet(shown * 4, columns=3)
    assert drawn.shape[1] == 3 * 176 and drawn.dtype == np.uint8 and drawn.shape[0] % 3 == 0


@pytest.mark.parametrize(
    ("kind", "option", "says"),
    [
        ("classifier", ["--size", "64"], "--size: only for a segmentor; m holds: classifier"),
        ("classifier", ["--masks"], "--masks: only for a segmentor"),
        ("classifier", ["--templates", "vild"], "--templates: only for a segmentor"),
        ("segmentor", ["--sheet"], "--sheet: only for a classifier; m holds: segmentor"),
        ("segmentor", ["--top", "3"], "--top: only for a classifier"),
        ("clip", [], "'clip': expected a segmentor or a classifier"),
    ],
)
def test_options_of_the_other_kind_are_refused(monkeypatch, kind, option, says):
    monkeypatch.setattr("vlkd.engine.hub.resolve", lambda name: name)
    monkeypatch.setattr("vlkd.engine.bundle.read_card", lambda path: {"kind": kind})
    args = cli._parser().parse_args(["x.png", "--model", "m", *option])
    with pytest.raises(UserError, match=says):
        cli._predictor(args)


def test_the_kind_of_the_bundle_decides(monkeypatch):
    from vlkd.infer.classify import ClassPredictor

    monkeypatch.setattr("vlkd.engine.hub.resolve", lambda name: name)
    monkeypatch.setattr("vlkd.engine.bundle.read_card", lambda path: {"kind": "classifier"})
    made = lambda path, **options: SimpleNamespace(path=path, options=options)  # noqa: E731
    monkeypatch.setattr(ClassPredictor, "from_bundle", made)
    args = cli._parser().parse_args(["x.png", "--model", "m", "--device", "cuda"])
    assert cli._predictor(args) == SimpleNamespace(path="m", options={"device": "cuda"})
