"""VSPW, raw VIPSeg and CamVid-style folders, with their traps."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from PIL import Image
from toy_videos import SIZE, VIPSEG_CATEGORIES, frame, mask, save, vspw, write_json

from vlkd.data.video import check, open_dataset
from vlkd.errors import UserError


def test_vspw_labels(tmp_path):
    root = vspw(tmp_path / "VSPW_480p", {"b": [[0, 1, 124, 255, 2, 81]], "a": [[1], [3]]})
    for given in (root, tmp_path):
        dataset = open_dataset("vspw", given, "val")
        assert [record.id for record in dataset] == ["b", "a"]  # the list's order
        assert dataset[0].semantic(0)[0].tolist() == [255, 0, 123, 255, 1, 80]
    assert dataset.names[6] == "playground slide" and dataset.raw_names[6] == "Playground_slide"
    assert len(dataset.base) == 80 and dataset.novel == frozenset(range(80, 124))
    record = pickle.loads(pickle.dumps(dataset[1]))
    assert len(record) == 2 and record.size == SIZE and record.fps is None and record.video_id == "a"
    assert [image.shape for image in record.frames()] == [(*SIZE, 3)] * 2
    assert check("vspw", root, "val") == []


def test_last_line_of_a_list_may_lack_its_newline(tmp_path):
    vspw(tmp_path, {"1001_x_0": [[1]], "1002_y_1": [[1]]})
    assert not (tmp_path / "val.txt").read_text().endswith("\n")
    assert [record.id for record in open_dataset("vspw", tmp_path, "val")] == ["1001_x_0", "1002_y_1"]


def test_names_of_label_num_dic(tmp_path):
    vspw(tmp_path, {"a": [[0, 1, 2, 255]]})
    write_json(tmp_path / "label_num_dic_final.json", {"others": 0, "handrail_or_fence": 2, "my_wall": 1})
    dataset = open_dataset("vspw", tmp_path, "val")
    assert dataset.names == ("my wall", "handrail or fence") and not dataset.novel
    assert dataset[0].semantic(0)[0, :4].tolist() == [255, 0, 1, 255]
    write_json(tmp_path / "label_num_dic_final.json", {"wall": 1, "door": 3})
    with pytest.raises(UserError, match=r"label_num_dic_final\.json: expected class names with the values"):
        open_dataset("vspw", tmp_path, "val")


def damage_empty_frame(root):
    (root / "data/a/origin/00000001.jpg").write_bytes(b"")
    return r"video a, frame 1: .*00000001\.jpg: image cannot be read \(0 bytes\)", lambda r: r.frame(1)


def damage_empty_mask(root):
    (root / "data/a/mask/00000001.png").write_bytes(b"")
    return r"video a, frame 1: .*00000001\.png: label file cannot be read \(0 bytes\)", lambda r: r.semantic(
        1
    )


def damage_frame_size(root):
    frame(root / "data/a/origin/00000001.jpg", (4, 5))
    return r"video a: .*00000001\.jpg: 5x4 pixels, but its first frame has 6x4", lambda r: r.frame(1)


def damage_mask_size(root):
    save(root / "data/a/mask/00000001.png", np.ones((3, 6), np.uint8))
    return (
        r"video a: labels of .*00000001\.jpg: 6x3 pixels, but its first frame has 6x4",
        lambda r: r.semantic(1),
    )


def damage_missing_mask(root):
    (root / "data/a/mask/00000001.png").unlink()
    return "video a: 2 frames .* but 1 label files .*00000001 has no label file", lambda r: r.semantic(0)


def damage_missing_frame(root):
    (root / "data/a/origin/00000001.jpg").unlink()
    return "video a: 1 frames .* but 2 label files .*is a label file without a frame", lambda r: r.semantic(0)


def damage_value(root):
    save(root / "data/a/mask/00000001.png", mask([1, 200]))
    return r"video a, frame 1: .*00000001\.png: label value 200 has no class", lambda r: r.semantic(1)


def damage_no_frames(root):
    for path in (root / "data/a/origin").iterdir():
        path.unlink()
    return r"video a: .*origin: no frames there", len


@pytest.mark.parametrize("damage", [f for name, f in list(globals().items()) if name.startswith("damage_")])
def test_damage_is_one_line_with_file_and_video(tmp_path, damage):
    root = vspw(tmp_path, {"z": [[1]], "a": [[1], [1]]})
    expected, use = damage(root)
    record = open_dataset("vspw", root, "val")[1]
    with pytest.raises(UserError, match=expected) as caught:
        use(record)
    assert "\n" not in str(caught.value)
    assert check("vspw", root, "val") == [str(caught.value)]


def test_frames_are_checked_where_labels_do_not_pair(tmp_path):
    root = vspw(tmp_path, {"a": [[1], [1], [1]]})
    damage_empty_frame(root)
    (root / "data/a/mask/00000002.png").unlink()
    lines = check("vspw", root, "val")
    assert ["3 frames" in lines[0], "0 bytes" in lines[1], len(lines)] == [True, True, 2]


def test_check_finds_every_problem(tmp_path):
    root = vspw(tmp_path, {"a": [[1], [1], [1]], "b": [[1]]})
    damage_empty_frame(root)
    damage_value(root)
    save(root / "data/a/mask/00000002.png", np.ones((3, 6), np.uint8))
    (root / "val.txt").write_text("a\ngone\nb")
    lines = check("vspw", root, "val")
    assert lines[0] == f"video gone: named in val.txt, but not in {root / 'data'}"
    assert ["0 bytes" in lines[1], "value 200" in lines[2], "6x3" in lines[3], len(lines)] == [True] * 3 + [4]


def test_check_goes_on_after_a_damaged_first_frame(tmp_path):
    root = vspw(tmp_path, {"a": [[1], [1], [1]]})
    (root / "data/a/origin/00000000.jpg").write_bytes(b"")
    frame(root / "data/a/origin/00000002.jpg", (4, 5))
    lines = check("vspw", root, "val")
    assert ["0 bytes" in lines[0], "5x4 pixels" in lines[1], len(lines)] == [True, True, 2]


def test_list_that_names_missing_videos(tmp_path):
    vspw(tmp_path, {"a": [[1]]})
    (tmp_path / "val.txt").write_text("gone\na\nlost")
    with pytest.raises(UserError, match=r"video gone: named in val\.txt, but not in .*\(and 1 more"):
        open_dataset("vspw", tmp_path, "val")


def test_masks_withheld_and_masks_lost(tmp_path):
    root = vspw(tmp_path, {"a": [None, None], "b": [None]}, "test")
    record = open_dataset("vspw", root, "test")[0]
    assert not record.annotated and record.semantic(0) is None and record.frame(1).shape == (*SIZE, 3)
    vspw(root, {"b": [[1]]}, "other")
    with pytest.raises(UserError, match=r"video a: .*mask: no such folder, but other videos of the split"):
        open_dataset("vspw", root, "test")


def test_unknown_kind_root_and_split(tmp_path):
    vspw(tmp_path, {"a": [[1]]})
    with pytest.raises(UserError, match=r"video data set 'vspv' \(nearest: \"vspw\"\)"):
        open_dataset("vspv", tmp_path, "val")
    with pytest.raises(UserError, match="no such folder; expected a vspw data set"):
        open_dataset("vspw", tmp_path / "x", "val")
    with pytest.raises(UserError, match=r"no split 'vall' \(nearest: \"val\"\); there: val"):
        open_dataset("vspw", tmp_path, "vall")
    assert len(check("vspw", tmp_path, "vall")) == 1


def test_opening_reads_no_frame(tmp_path, monkeypatch):
    for number in range(1000):
        (tmp_path / "data" / f"{number}" / "origin").mkdir(parents=True)
    (tmp_path / "val.txt").write_text("\n".join(map(str, range(1000))))
    calls = {"stat": 0, "listdir": 0}

    def counted(name, real):
        def call(*args, **options):
            calls[name] += 1
            return real(*args, **options)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
    assert len(open_dataset("vspw", tmp_path, "val")) == 1000
    assert calls["stat"] < 1100 and calls["listdir"] < 5


def raw_vipseg(root, frames):
    for t, values in enumerate(frames):
        frame(root / "imgs" / "a" / f"{t:08d}.jpg")
        save(root / "panomasks" / "a" / f"{t:08d}.png", mask(values, np.uint16))
    (root / "val.txt").write_text("a")
    return root


def test_raw_vipseg_values(tmp_path):
    # class 1 wall, class 3 door (a thing) without an instance, its instances 0 and 7, class 124
    root = raw_vipseg(tmp_path, [[0, 1, 3, 300, 307, 124], [307, 12405, 0]])
    record = open_dataset("vipseg", root, "val")[0]
    assert record.semantic(0)[0].tolist() == [255, 0, 2, 2, 2, 123]
    ids, categories = record.panoptic(0)
    assert ids[0].tolist() == [0, 1, 3, 300, 307, 124]
    assert categories == {1: 0, 3: 2, 300: 2, 307: 2, 124: 123}
    assert [(t.id, t.category, t.times) for t in record.tracks if t.category == 2] == [
        (3, 2, (0,)),
        (300, 2, (0,)),
        (307, 2, (0, 1)),
    ]
    assert {record.names[i] for i in record.novel} >= {"trash can", "tyre"} and len(record.novel) == 12
    assert sum(record.vocabulary.isthing) == 58 and record.vocabulary.ids[0] == 0
    assert check("vipseg", root, "val") == []


def test_raw_vipseg_value_without_class(tmp_path):
    root = raw_vipseg(tmp_path, [[1, 12500]])
    expected = r"video a, frame 0: .*00000000\.png: value 12500 belongs to none of 124 classes"
    with pytest.raises(UserError, match=expected) as caught:
        open_dataset("vipseg", root, "val")[0].panoptic(0)
    assert check("vipseg", root, "val") == [str(caught.value)]


def test_raw_vipseg_own_categories(tmp_path):
    root = raw_vipseg(tmp_path, [[1, 300]])
    write_json(root / "panoVIPSeg_categories.json", VIPSEG_CATEGORIES)
    dataset = open_dataset("vipseg", root, "val")
    assert dataset.names == ("wall", "ceiling", "door") and dataset.isthing == (False, False, True)
    write_json(root / "panoVIPSeg_categories.json", [{"id": 0}])
    with pytest.raises(UserError, match=r"panoVIPSeg_categories\.json: not a list of id, name, isthing"):
        open_dataset("vipseg", root, "val")
    write_json(root / "panoVIPSeg_categories.json", {"id": 0})
    with pytest.raises(UserError, match=r"panoVIPSeg_categories\.json: expected a JSON file with a list"):
        open_dataset("vipseg", root, "val")


def test_camvid_style_folders(tmp_path):
    for key in ("0001TP_000030", "0001TP_000060", "0006R0_f00930", "clip/00001", "single"):
        frame(tmp_path / "images" / "val" / f"{key}.png")
        save(tmp_path / "labels" / "val" / f"{key}.png", mask([0, 10, 11]))
    dataset = open_dataset("camvid", tmp_path, "val")
    assert {record.id: len(record) for record in dataset} == {"0001TP": 2, "0006R0": 1, "clip": 1, "val": 1}
    assert dataset[0].semantic(1)[0, :3].tolist() == [0, 10, 255]
    assert dataset.names[6] == "sign symbol" and dataset.raw_names[6] == "SignSymbol"
    assert check("camvid", tmp_path, "val") == []
    with pytest.raises(UserError, match=r"no split 'train'.*there: val"):
        open_dataset("camvid", tmp_path, "train")


@pytest.mark.realdata
def test_real_camvid_val_is_one_video(tmp_path, shared_data):
    import tarfile

    with tarfile.open(shared_data / "camvid.tar") as content:
        wanted = [m for m in content.getmembers() if "/val" in m.name]
        content.extractall(tmp_path, wanted, filter="data")
    dataset = open_dataset("camvid", tmp_path / "camvid", "val")
    assert [(record.id, len(record), record.size) for record in dataset] == [("0016E5", 101, (360, 480))]
    labels = dataset[0].semantic(50)
    assert labels.shape == (360, 480) and set(np.unique(labels)) <= {*range(11), 255}
    assert [int(path.stem[-5:]) for path in dataset[0].frame_files] == list(range(7959, 8160, 2))
