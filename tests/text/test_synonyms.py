import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from vlkd.data.world.names import BACKGROUNDS, OBJECTS
from vlkd.errors import UserError
from vlkd.text import class_names, synonyms
from vlkd.text.synonyms import synonym_table
from vlkd.text.wordnet import WordNet

ROOT = Path(__file__).resolve().parents[2]
ASSETS = resources.files("vlkd.text") / "assets"


class FakeWordNet(WordNet):
    def __init__(self, senses: dict[str, list[list[str]]]) -> None:
        self.table = senses

    def senses(self, name: str) -> list[list[str]]:
        return self.table.get(name, [])


def test_name_first_then_synonyms_of_all_senses() -> None:
    words = synonyms("car")
    assert words[0] == "car"
    assert {"automobile", "motorcar", "cable car"} <= set(words)
    assert synonyms("road") == ["road", "route"]
    assert "cable car" not in synonyms("car", senses="first")
    assert {"automobile", "motorcar"} <= set(synonyms("car", senses="first"))


def test_name_is_cleaned() -> None:
    assert synonyms("Giant_panda")[0] == "giant panda"
    assert synonyms("wall-other-merged") == synonyms("wall")
    assert synonyms("road, route") == synonyms("road")


def test_name_without_synset_is_alone() -> None:
    assert synonyms("wall-brick") == ["wall brick"]
    assert synonyms("no_such_thing") == ["no such thing"]


@pytest.mark.parametrize("dataset", ["coco_panoptic_133", "ade20k_847", "camvid_11", "vipseg_124", "ovis_25"])
def test_words_are_clean_and_distinct(dataset: str) -> None:
    found = [synonyms(name) for name in class_names(dataset)]
    for words in found:
        assert len({word.lower() for word in words}) == len(words)
        assert not any("_" in word or word != word.strip() for word in words)
    assert sum(len(words) > 1 for words in found) > 0.6 * len(found)


def test_callers_cannot_change_the_table() -> None:
    synonyms("car").clear()
    assert "automobile" in synonyms("car")


def test_every_world_name_has_its_synonyms_in_wordnet() -> None:
    for name, words in {**OBJECTS, **BACKGROUNDS}.items():
        known = {word.lower() for word in synonyms(name)}
        assert {word.lower() for word in words} <= known, name


def test_unknown_senses() -> None:
    with pytest.raises(UserError, match='"all" or "first"'):
        synonyms("car", senses="second")


def test_table_from_senses() -> None:
    wordnet = FakeWordNet(
        {
            "wall": [["wall"], ["rampart", "Wall", "bulwark"]],
            "cup": [["cup"]],
            "bottle": [["bottle", "flask"], ["nursing bottle"]],
        }
    )
    assert synonym_table(["wall-other", "cup", "bottle_or_cup", "ghost"], wordnet) == {
        "bottle or cup": {
            "all": ["bottle", "cup", "flask", "nursing bottle"],
            "first": ["bottle", "cup", "flask"],
        },
        "wall": {"all": ["rampart", "bulwark"], "first": []},
    }


def prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "datasets" / "prepare_synonyms.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})


def test_packaged_table_is_what_the_script_makes(tmp_path: Path) -> None:
    try:
        version = WordNet().version
    except UserError as error:
        pytest.skip(str(error))
    packaged = (ASSETS / "synonyms.json").read_text(encoding="utf-8")
    if version != json.loads(packaged)["wordnet"]:
        pytest.skip(f"the table is made of another WordNet than the {version} here")
    out = tmp_path / "table.json"
    done = prepare("--out", str(out))
    assert done.returncode == 0, done.stderr
    assert out.read_text(encoding="utf-8") == packaged, "run: python datasets/prepare_synonyms.py"
    assert list(tmp_path.iterdir()) == [out]


def test_script_names_what_is_wrong(tmp_path: Path) -> None:
    done = prepare("--wordnet", str(tmp_path), "--out", str(tmp_path / "table.json"))
    assert done.returncode == 2
    assert (
        done.stderr.startswith(f"error: {tmp_path}: no WordNet files") and len(done.stderr.splitlines()) == 1
    )
    assert not (tmp_path / "table.json").exists()


def test_licence_lies_beside_the_table() -> None:
    licence = json.loads((ASSETS / "synonyms.json").read_text(encoding="utf-8"))["licence"]
    text = (ASSETS / licence).read_text(encoding="utf-8")
    assert "Permission to use, copy, modify and distribute" in text
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text
