from pathlib import Path

import pytest

from vlkd.errors import UserError
from vlkd.text.wordnet import WordNet

HEADER = "  1 WordNet 9.9 Copyright 2006 by nobody.  \n"
SYNSETS = {
    "car": "06 n 0a car 0 auto 0 automobile 0 machine 6 motorcar 0 a 0 b 0 c 0 d 0 e 0 000 | a",
    "rail": "06 n 02 railcar 0 Railway_car 0 000 | wheeled",
    "stair": "06 n 02 stair 0 step 2 000 | support",
    "stairs": "06 n 01 stairs 0 000 | flight",
    "goose": "05 n 01 goose 0 000 | bird",
    "church": "06 n 01 church 0 000 | building",
}


def write_wordnet(folder: Path) -> Path:
    data, offsets = HEADER, {}
    for key, rest in SYNSETS.items():
        offsets[key] = len(data)
        data += f"{len(data):08d} {rest}  \n"
    entries = {
        "car": ["car", "rail"],
        "railway_car": ["rail"],
        "stair": ["stair"],
        "stairs": ["stairs"],
        "goose": ["goose"],
        "church": ["church"],
    }
    lines = []
    for lemma, keys in entries.items():
        numbers = " ".join(f"{offsets[key]:08d}" for key in keys)
        lines.append(f"{lemma} n {len(keys)} 2 @ ~ {len(keys)} 1 {numbers}  \n")
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text(data)
    (folder / "index.noun").write_text(HEADER + "".join(lines))
    (folder / "noun.exc").write_text("geese goose\n")
    return folder


def test_senses_in_order_with_spaces(tmp_path: Path) -> None:
    wordnet = WordNet(write_wordnet(tmp_path / "dict"))
    assert wordnet.version == "9.9"
    car, rail = wordnet.senses("Car")
    assert (
        car[:5] == ["car", "auto", "automobile", "machine", "motorcar"] and len(car) == 10
    )  # 0a is hexadecimal
    assert rail == ["railcar", "Railway car"]
    assert wordnet.senses("railway_car") == wordnet.senses("railway car") == [rail]
    assert wordnet.senses("zeppelin") == []


def test_plurals_by_rule_and_by_exception(tmp_path: Path) -> None:
    wordnet = WordNet(write_wordnet(tmp_path / "dict"))
    assert wordnet.senses("geese") == [["goose"]]
    assert wordnet.senses("churches") == [["church"]]
    assert wordnet.senses("stairs") == [["stairs"], ["stair", "step"]]


@pytest.mark.parametrize("inside", [".", "corpora/wordnet", "dict"])
def test_finds_the_files_inside_usual_folders(tmp_path: Path, inside: str) -> None:
    folder = write_wordnet(tmp_path / "top" / inside) if inside != "." else write_wordnet(tmp_path / "top")
    assert WordNet(tmp_path / "top").folder == folder


def test_missing_folder_or_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index\.noun.*wordnet-base"):
        WordNet(tmp_path / "nowhere")


def test_damaged_files(tmp_path: Path) -> None:
    folder = write_wordnet(tmp_path / "dict")
    (folder / "data.noun").write_text("x" + (folder / "data.noun").read_text())
    with pytest.raises(UserError, match=r"data\.noun: no synset at byte"):
        WordNet(folder).senses("goose")
    (folder / "index.noun").write_text("goose n many\n")
    with pytest.raises(UserError, match=r'index\.noun: "goose n many"'):
        WordNet(folder).senses("goose")
