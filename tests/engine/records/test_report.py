import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlkd.engine.cli import main
from vlkd.engine.records.collect import collect

PAPER = {"accuracy": {"value": 0.75, "source": "Table 3 <KD>"}}


def write(folder: Path, seed: int, accuracy: float, **more: Any) -> Path:
    """A record as a run writes it; `lr` goes into its config."""
    record = {
        "method": more.pop("method", "nd"),
        "source": more.pop("source", "configs/nd/world.yaml"),
        "config": {"seed_everything": seed, "model": {"init_args": {"lr": more.pop("lr", 0.1)}}},
        "scores": {"accuracy": accuracy},
        "protocol": {"checkpoint": "last step", "labels": more.pop("labels", "used")},
        "seed": seed,
        "speed": {"images_per_second": 100.0 + seed, "minutes": 2.0},
        "machine": {"device": "x86_64", "cores": 2, "threads": 1, "torch": "2.6"},
        "paper": None,
    }
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record | more))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds of one config, one run of it with another rate, one of another config."""
    folder = tmp_path / "runs"
    for seed, accuracy in enumerate((0.70, 0.72, 0.74)):
        write(folder / "a" / f"seed{seed}", seed, accuracy, paper=PAPER)
    write(folder / "b", 0, 0.5, lr=0.2)
    write(folder / "c", 0, 0.61, method="kd", source="configs/kd/world.yaml", labels="not used")
    return folder


def test_table(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs), "--out", str(tmp_path / "out"), "--format", "md"]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines() if row[:1] == "|"
    ]
    table = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert table.keys() == {"kd/world", "nd/world model.lr=0.1", "nd/world model.lr=0.2"}
    three = table["nd/world model.lr=0.1"]
    assert three["seeds"] == "3" and three["accuracy"] == "0.7200 ± 0.0200"
    assert three["accuracy worst"] == "0.7000" and three["accuracy paper"] == "0.7500 [1]"
    assert three["images/s"] == "101" and three["minutes"] == "2"
    assert three["protocol"] == "labels: used" and table["kd/world"]["protocol"] == "labels: not used"
    assert table["nd/world model.lr=0.2"]["accuracy"] == "0.5000"
    assert table["nd/world model.lr=0.2"]["accuracy worst"] == "-"
    assert "[1] Table 3 <KD>" in text and "For all: checkpoint: last step." in text
    assert "x86_64, 2 cores, 1 threads, torch 2.6" in text
    assert "| nd/world model.lr=0.1 | 3 | 0.7200 ± 0.0200 |" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.md"]


def test_overrides_are_part_of_the_name(tmp_path: Path) -> None:
    write(
        tmp_path / "a", 0, 0.5, source="/x/configs/nd/cifar100/r8.yaml", overrides=["--trainer.max_epochs=3"]
    )
    write(tmp_path / "b", 0, 0.5, source="elsewhere/mine.yaml", lr=0.3)
    groups, _ = collect([str(tmp_path)])
    assert [group.name for group in groups] == ["elsewhere/mine", "nd/cifar100/r8 trainer.max_epochs=3"]


def test_names_tell_only_what_differs(tmp_path: Path) -> None:
    common = ["--data.root=/long/path", "--seed_everything=0", "--data.seed=0"]
    for k, rate in enumerate((0.1, 0.2)):
        write(tmp_path / str(k), 0, 0.5, lr=rate, overrides=[*common, f"--model.lr={rate}"])
    groups, _ = collect([str(tmp_path)])
    assert [group.name for group in groups] == ["nd/world model.lr=0.1", "nd/world model.lr=0.2"]


def test_page_and_picture(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["report", str(runs), "--out", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "<td>0.7200 ± 0.0200</td>" in page and "Table 3 &lt;KD&gt;" in page and 'src="report.png"' in page
    with_paper = colours(out / "report.png")
    assert (0xC8, 0x50, 0x2D) in with_paper and (0x8F, 0xB3, 0xD9) in with_paper
    assert main(["report", str(runs / "b"), "--out", str(out)]) == 0
    assert (0xC8, 0x50, 0x2D) not in colours(out / "report.png")
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.md", "report.png"]


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as picture:
        return {
            tuple(c) for c in np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).tolist()
        }


def test_what_is_left_out_is_named(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "d").mkdir()
    (runs / "d" / "record.json").write_text("{")
    (runs / "e").mkdir()
    (runs / "e" / "record.json").write_text(json.dumps({"weights": "x", "scores": {}}))  # of vlkd test
    (runs / "f").mkdir()
    (runs / "f" / "last.ckpt").touch()
    assert main(["report", str(runs), "--out", str(tmp_path), "--format=md"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert f"{runs / 'd' / 'record.json'}: damaged, not JSON" in out
    assert f"{runs / 'e' / 'record.json'}: not the record of a training run" in out
    assert f"{runs / 'f'}: not finished, no record.json" in out


def test_a_seed_counts_once(runs: Path) -> None:
    again = write(runs / "again", 2, 0.9) / "record.json"
    os.utime(runs / "a" / "seed2" / "record.json", (1, 1))
    groups, notes = collect([str(runs), str(runs / "a")])  # the same folder twice is no second run
    group = next(group for group in groups if len(group.records) == 3)
    assert group.scores["accuracy"]["values"] == {"0": 0.70, "1": 0.72, "2": 0.9}
    earlier = runs / "a" / "seed2" / "record.json"
    assert notes == [f"{earlier}: seed 2 was run again in {again.parent}; the later run counts"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}/nowhere"], "nowhere: no such file or folder"),
        (["{}"], "no record.json of a finished run"),
        (["{}", "--format=pdf"], "pdf is none of md,html,png"),
    ],
)
def test_wrong_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["report", *(word.format(tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_scores_that_only_some_have(tmp_path: Path) -> None:
    write(tmp_path / "a", 0, 0.5, scores={"mIoU": 0.3, "speed": float("nan")})
    write(tmp_path / "b", 0, 0.5, lr=0.3, paper={"top5": {"value": 0.9, "source": ""}})
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    header = next(row for row in (tmp_path / "out" / "report.md").read_text().splitlines() if row[:1] == "|")
    assert "| top5 | top5 paper |" in header and "| mIoU |" in header
