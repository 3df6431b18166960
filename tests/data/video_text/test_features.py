import json

import numpy as np
import pytest
from toy_video_text import write_features, write_index

from vlkd.data.video_text.features import FeatureFiles, open_kinds
from vlkd.errors import UserError


def test_kinds_of_plain_folders_and_of_an_index(tmp_path):
    write_features(tmp_path / "plain", {"a": 3})
    folder = tmp_path / "made"
    write_features(folder, {"a": 4}, 2, ".image.npy")
    write_features(folder, {"a": 6}, 3, ".video.npy")
    write_index(folder, {"image": 1.0, "video": 1.5})
    assert [(k.suffix, k.rate) for k in open_kinds([folder])] == [(".image.npy", 1.0), (".video.npy", 1.5)]
    assert [k.suffix for k in open_kinds([f"{folder}:video"])] == [".video.npy"]
    assert [(k.suffix, k.rate) for k in open_kinds([tmp_path / "plain"], [2.0])] == [(".npy", 2.0)]
    with pytest.raises(UserError, match="has no 'sound' features; it has image, video"):
        open_kinds([f"{folder}:sound"])
    with pytest.raises(UserError, match="no such folder"):
        open_kinds([tmp_path / "absent"])
    (folder / "index.json").write_text("{}")
    with pytest.raises(UserError, match="not the index"):
        open_kinds([folder])
    with pytest.raises(UserError, match="at least one folder"):
        open_kinds([])


def test_several_kinds_share_the_first_ones_line_of_time(tmp_path):
    folder = tmp_path / "f"
    write_features(folder, {"a": 4}, 2, ".image.npy")
    write_features(folder, {"a": 6}, 3, ".video.npy")
    write_index(folder, {"image": 1.0, "video": 1.5})
    files = FeatureFiles(open_kinds([folder]), ["a"])
    assert (files.width, files.widths, files.rows, files.rate) == (5, (2, 3), {"a": 4}, 1.0)
    found = files.read("a", np.array([0, 1, 2, 3]))
    # The middles 0.5, 1.5, 2.5, 3.5 s lie in rows 0, 2, 3, 5 of 1.5 rows a second.
    assert (
        found.dtype == np.float32
        and found[:, 0].tolist() == [0, 1, 2, 3]
        and found[:, 4].tolist() == [0, 2, 3, 5]
    )


def test_files_that_do_not_fit_are_left_out_with_a_line_each(tmp_path):
    folder = tmp_path / "f"
    write_features(folder, {"a": 4, "b": 5, "empty": 0})
    write_features(folder, {"wide": 4}, 6)
    np.save(folder / "flat.npy", np.zeros(4))
    (folder / "cut.npy").write_bytes((folder / "a.npy").read_bytes()[:140])
    np.save(folder / "objects.npy", np.array([{}]), allow_pickle=True)
    ids = ["a", "b", "wide", "absent", "flat", "cut", "empty", "objects"]
    files = FeatureFiles(open_kinds([folder]), ids)
    assert files.rows == {"a": 4, "b": 5} and files.missing == ["absent"]
    lines = {id: [p for p in files.problems if f"{id}.npy" in p] for id in ids[2:]}
    assert all(len(found) == 1 for found in lines.values()) and len(files.problems) == 6
    for id, says in {
        "wide": "features of width 6, expected 4 as in the others",
        "absent": "no such feature file",
        "flat": "shape (4,); expected numbers (T, C)",
        "cut": "not a whole .npy file",
        "empty": "has length 0",
        "objects": "not a whole .npy file",
    }.items():
        assert says in lines[id][0] and "\n" not in lines[id][0]
    assert FeatureFiles(open_kinds([folder]), ids, [6]).rows == {"wide": 4}
    with pytest.raises(UserError, match="expected 9"):
        FeatureFiles(open_kinds([folder]), ["a"], [9])


def test_changed_files_and_values_that_are_not_finite_are_refused(tmp_path):
    write_features(tmp_path, {"a": 4})
    files = FeatureFiles(open_kinds([tmp_path]), ["a"])
    np.save(tmp_path / "a.npy", np.full((4, 4), np.inf, np.float16))
    with pytest.raises(UserError, match="not finite"):
        files.read("a", np.array([0]))
    np.save(tmp_path / "a.npy", np.zeros((4, 3)))
    with pytest.raises(UserError, match="expected width 4; did it change"):
        files.read("a", np.array([0]))
    assert json.dumps(files.ids_on_disk()) == '["a"]'
