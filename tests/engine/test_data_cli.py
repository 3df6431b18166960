from __future__ import annotations

import pytest

from vlkd.data.predictions import PredictionWriter
from vlkd.data.video import open_dataset
from vlkd.engine.cli import main


def run(capsys, *words):
    code = main(["data", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


@pytest.fixture
def lvvis(tmp_path, capsys):
    place = ("lvvis", tmp_path, "val")
    code, out, _ = run(capsys, "world", *place, "--videos", 2, "--frames", 3, "--size", 24, 32)
    assert code == 0 and out == [f"written: 2 videos of 3 frames below {tmp_path}"]
    return place


def test_list(capsys, lvvis):
    source = lvvis[1] / "val/val_instances.json"
    code, out, _ = run(capsys, "list", *lvvis, "--videos")
    assert code == 0 and out[:2] == [
        f"{source}: 2 videos, 6 frames, labels: tracks",
        "34 classes: 26 base, 8 novel, 34 may be predicted",
    ]
    assert out[2].startswith("base: car, truck,") and out[3].startswith("novel: bus, sailboat,")
    assert out[4:] == ["1000000: 3 frames", "1000001: 3 frames"]
    _, out, _ = run(capsys, "list", *lvvis, "--novel", "bus, hat", "--subset", "ignore")
    assert out[1] == "34 classes: 32 base, 2 novel, 32 may be predicted" and out[3] == "novel: bus, hat"
    _, out, _ = run(capsys, "list", "lvvis", lvvis[1], "val", "--base", "bus,")
    assert out[1].startswith("34 classes: 1 base, 33 novel")


def test_withheld_labels_and_no_split(capsys, tmp_path):
    run(capsys, "world", "vspw", tmp_path, "test", "--videos", 1, "--frames", 2, "--size", 24, 32)
    _, out, _ = run(capsys, "list", "vspw", tmp_path, "test")
    assert out == [
        f"{tmp_path}: 1 videos, 2 frames, labels withheld",
        "46 classes: 46 base, 0 novel, 46 may be predicted",
    ]


def test_check(capsys, lvvis):
    assert run(capsys, "check", *lvvis)[:2] == (0, ["nothing is wrong"])
    frame = lvvis[1] / "val/JPEGImages/1000001/00002.jpg"
    frame.write_bytes(b"")
    code, out, _ = run(capsys, "check", *lvvis)
    assert code == 1
    assert out == [f"video 1000001, frame 2: {frame}: image cannot be read (0 bytes); replace the file"]


def test_user_errors_are_one_line(capsys, lvvis):
    code, out, err = run(capsys, "list", "lvis", lvvis[1], "val")
    assert code == 2 and out == [] and err.startswith("error: unknown kind of video data set 'lvis' (nearest")
    code, _, err = run(capsys, "list", *lvvis, "--novel", "buss,")
    assert code == 2 and "novel class 'buss' is not a class" in err and err.count("\n") == 1


def test_check_and_submit_predictions(capsys, lvvis, tmp_path):
    dataset = open_dataset(*lvvis)
    out, sent = tmp_path / "out", tmp_path / "sent.zip"
    writer = PredictionWriter(out, {}, dataset, ["tracks"])
    for record in dataset:
        with writer.video(record) as sink:
            sink.tracks([])
    assert run(capsys, "check", *lvvis, "--predictions", out)[:2] == (0, ["nothing is wrong"])
    code, lines, _ = run(capsys, "submit", *lvvis, "--predictions", out, "--out", sent)
    assert code == 0 and lines == [f"written: 2 videos in {sent} (0.0 MiB)"] and sent.is_file()
    marker = out / "videos/1000001.json"
    marker.unlink()
    expected = f"video 1000001: {marker}: not found, so its prediction is not finished; continue it"
    assert run(capsys, "check", *lvvis, "--predictions", out)[:2] == (1, [expected])
    code, lines, err = run(capsys, "submit", *lvvis, "--predictions", out, "--out", sent)
    assert code == 2 and lines == [] and err == f"error: {expected}\n"
