import json
from importlib import resources

import pytest

from vlkd.errors import UserError
from vlkd.text import class_list, class_lists, class_names, clean_name, clean_names


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("wall-other-merged", "wall"),
        ("tree-merged", "tree"),
        ("wall-brick", "wall brick"),
        ("door-stuff", "door"),
        ("window-blind", "window blind"),
        ("road, route", "road"),
        ("cupboard_or_showcase", "cupboard or showcase"),
        ("Giant_panda", "giant panda"),
        ("Vehical", "vehicle"),
        ("SignSymbol", "sign symbol"),
        ("iPod", "ipod"),
        ("t-shirt", "t-shirt"),
        ("pottedplant", "potted plant"),
        (" bed  ", "bed"),
    ],
)
def test_clean_name(raw: str, cleaned: str) -> None:
    assert clean_name(raw) == cleaned
    assert clean_name(cleaned) == cleaned


def test_colliding_first_alternatives_take_the_next_free_one() -> None:
    assert clean_names(["pot, flowerpot", "pot", "pipe, pipage", "pipe, tube"]) == [
        "flowerpot",
        "pot",
        "pipe",
        "tube",
    ]
    assert clean_names(["mouse", "mouse"]) == ["mouse", "mouse"]


def test_gkc_rule_on_coco_panoptic() -> None:
    for raw, name in zip(
        class_names("coco_panoptic_133", raw=True), class_names("coco_panoptic_133"), strict=True
    ):
        gkc = raw.replace("-merged", "").replace("-other", "").replace("-stuff", "").replace("-", " ")
        assert name.replace(" ", "") == gkc.replace(" ", "")
        assert "-" not in name


@pytest.mark.parametrize("dataset", class_lists())
def test_every_list_is_fit_for_a_text_encoder(dataset: str) -> None:
    entry = class_list(dataset)
    assert len(entry.names) == len(entry.raw) == int(dataset.rsplit("_", 1)[1])
    assert len(set(entry.names)) == len(entry.names)
    for name in entry.names:
        assert name == " ".join(name.lower().replace("_", " ").split())
    assert entry.source
    assert entry.ids is None or len(set(entry.ids)) == len(entry.names)


def test_stored_cleaning_is_what_the_code_does() -> None:
    for dataset in ("ade20k_847", "coco_stuff_171", "vipseg_124", "ovis_25", "lvis_1203", "camvid_11"):
        assert clean_names(class_names(dataset, raw=True)) == class_names(dataset)


def test_known_lists() -> None:
    assert {"ade20k_150", "coco_panoptic_133", "vspw_124", "imagenet_1000"} <= set(class_lists())
    assert class_names("camvid") == class_names("camvid_11")
    assert "unlabelled" not in class_names("camvid")
    assert class_names("ovis_25")[24] == "vehicle"
    assert class_names("ovis_25", raw=True)[24] == "Vehical"
    vipseg, coco = class_list("vipseg_124"), class_list("coco_panoptic_133")
    assert vipseg.isthing is not None and sum(vipseg.isthing) == 58
    assert coco.isthing is not None and sum(coco.isthing) == 80
    assert coco.ids is not None and coco.ids[-1] == 200
    assert class_list("cityscapes_19").isthing is None


def test_returned_list_may_be_changed_by_the_caller() -> None:
    class_names("ade20k_150").clear()
    assert len(class_names("ade20k_150")) == 150


def test_unknown_or_ambiguous_list() -> None:
    with pytest.raises(UserError, match=r'"ade20k_151".*nearest: "ade20k_150"'):
        class_names("ade20k_151")
    with pytest.raises(UserError, match=r"ambiguous.*ade20k_150, ade20k_847"):
        class_names("ade20k")


def test_files_hold_one_class_a_line() -> None:
    folder = resources.files("vlkd.text") / "assets" / "class_names"
    text = (folder / "vspw_124.json").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 124 + 5
    assert set(json.loads(text)["classes"][0]) == {"id", "name", "raw"}
