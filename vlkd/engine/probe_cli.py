"""`vlkd probe`: what a student of the lexicon knows of the objects that it read about, and its teacher."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlkd.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from vlkd.data import LexiconVideoData
    from vlkd.methods.vidlankd.probed import Probed

Likeness = Callable[["Tensor", "Tensor"], "Tensor"]
_SHOWN = 2  # clips under a token


def probe(argv: Sequence[str]) -> int:
    """Prints P1, P2 and P5 with chance beside them; writes probes.json and, with a teacher, sheet.html."""
    arguments = _parser().parse_args(argv)  # before torch is imported: --help answers at once
    from vlkd.data.lexicon.probing import chance
    from vlkd.engine.tables import Table

    if arguments.out and Path(arguments.out).is_file():
        raise UserError(f"--out {arguments.out}: is a file; give a folder")
    models = _models(arguments.student, arguments.teacher)
    first = next(iter(models.values()))
    data = _world(first)
    sentences = _sentences(arguments.sentences, data, models) if arguments.sentences else None
    bank: Any = _world(models["teacher"]) if "teacher" in models else None
    scores = {name: data.probe_scores(model.states) for name, model in models.items()}
    searching, notes = _searching(models, bank)
    for name, likeness in searching.items():
        scores[name] |= bank.clip_scores(likeness)
    by_chance = chance(data.lexicon, bank.clip_bank()[3] if bank and searching else None)
    rows = [
        {"probe": key, **{name: found.get(key) for name, found in scores.items()}, "chance": value}
        for key, value in by_chance.items()
    ]
    Table.of("", rows).show()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out = Path(arguments.out or Path("runs") / "probe" / first.path.stem / stamp)
    world = {"nouns": len(data.lexicon), "world_seed": data.lexicon.seed}
    world |= {"variant": bank.variant} if bank else {}
    found = {name: _facts(model) | {"scores": scores[name]} for name, model in models.items()}
    _write(out / "probes.json", {**found, "chance": by_chance, "world": world, "notes": notes})
    written = [out / "probes.json"]
    if searching:
        said = sentences or data.lexicon.examples()
        written.append(_sheet(out / "sheet.html", bank, searching, said))
    print("\n".join([*notes, f"done: {', '.join(map(str, written))}"]), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlkd probe",
        allow_abbrev=False,
        description="Asks a student of the lexicon what it knows of the objects that it read about "
        "(docs/lexicon.md): P1 linear probe, P2 zero-shot cosine; with its teacher also P5, which clip a "
        "word is most like, and a page of clips for each word of some sentences. Nouns and clips are those "
        "of the bundles' cards.",
    )
    add = parser.add_argument
    add("student", metavar="STUDENT", help="bundle or run folder of stage 2; of stage 1: that teacher alone")
    add("--teacher", metavar="TEACHER", help="bundle or run folder of the stage 1 that taught it")
    add("--out", metavar="DIR", help="folder of the results (default: runs/probe/<name>/<time>)")
    add("--sentences", metavar="FILE", help="text file, a sentence of the lexicon's words on each line")
    return parser


def _models(given: str, taught_by: str | None) -> dict[str, Probed]:
    """Student and teacher, those that are there. Raises UserError where they do not fit."""
    first = _probed(given)
    if not taught_by:
        return {"teacher" if first.teacher else "student": first}
    if first.teacher:
        raise UserError(
            f"{first.path}: is a teacher itself; give its student before --teacher, or no --teacher"
        )
    teacher = _probed(taught_by)
    first.check_taught_by(teacher)
    return {"student": first, "teacher": teacher}


def _probed(given: str) -> Probed:
    """A bundle, as its method lets it be asked."""
    from vlkd.engine.bundle import read_card
    from vlkd.engine.hub import resolve
    from vlkd.methods import list_methods, method_class

    path = resolve(given)
    card = read_card(path)
    name = card.get("method")
    probed: Any = getattr(method_class(name) if name in list_methods() else None, "probed", None)
    if probed is None:
        raise UserError(
            f"{path}: holds a {card['kind']}, expected a bundle of vidlankd: language (stage 2) or "
            "video_text (stage 1)"
        )
    return probed(path)


def _world(model: Probed) -> Any:
    """The data module that a bundle learned on. Raises UserError where it is not of the lexicon."""
    import vlkd.data

    section = (model.card.get("config") or {}).get("data") or {}
    name = str(section.get("class_path")).rpartition(".")[2]
    if name not in ("LexiconData", "LexiconVideoData"):
        raise UserError(
            f"{model.path}: learned on {section.get('class_path', 'data that its card does not name')}; the "
            "probes ask for words of the lexicon (LexiconData, LexiconVideoData)"
        )
    return getattr(vlkd.data, name)(**section.get("init_args", {}))


def _sentences(path: str, data: Any, models: dict[str, Probed]) -> list[str]:
    """Lines of a file. Raises UserError for what the models cannot read."""
    from vlkd.data.lexicon.words import read_sentences

    found = read_sentences(path, data.lexicon)
    room = min(model.language.positions for model in models.values()) - 2  # [CLS] and [SEP]
    longest = max(found, key=lambda line: len(line.split()))
    if len(longest.split()) > room:
        raise UserError(
            f"{path}: a sentence of {len(longest.split())} words, {longest[:40]!r}...; the models read {room}"
        )
    return found


def _searching(
    models: dict[str, Probed], bank: LexiconVideoData | None
) -> tuple[dict[str, Likeness], list[str]]:
    """Of each model that can search the bank of clips how it does, and notes on those that cannot."""
    if bank is None:
        return {}, ["no P5 and no sheet: they take the video tower of stage 1; give --teacher"]
    if bank.variant == "captions":
        return {}, ["no P5 and no sheet: this teacher saw captions alone (variant captions)"]
    student, teacher, notes = models.get("student"), models["teacher"], []
    taught = str(student.card.get("protocol", {}).get("teacher", "")) if student else ""
    if student and student.head and taught != teacher.card["name"]:
        notes.append(
            f"note: the student's card says that {taught} taught it, this teacher is {teacher.card['name']}"
        )
    if student and not student.head:
        notes.append(
            "no P5 of the student: no head of it reaches the videos (contrastive, hidden and crd have one)"
        )
    video, mask, _, _ = bank.clip_bank()
    vectors = teacher.videos(video, mask)
    return {name: model.likeness(*vectors) for name, model in models.items() if model.width}, notes


def _facts(model: Probed) -> dict[str, Any]:
    """Which bundle it was."""
    from vlkd.engine.download import sha256

    return {
        "bundle": str(model.path),
        "sha256": sha256(model.path),
        "name": model.card["name"],
        "head": model.head,
    }


def _write(path: Path, facts: dict[str, Any]) -> None:
    from vlkd.engine.run_folder import command_line, write_text

    write_text(path, json.dumps({**facts, "command": command_line()}, indent=2) + "\n")


def _sheet(
    path: Path, bank: LexiconVideoData, searching: dict[str, Likeness], sentences: Sequence[str]
) -> Path:
    """A row for each sentence and model: under each word the clips that it is most like."""
    from vlkd.data.lexicon.sheet import Found, write_sheet

    rows, names = [], []
    clips = bank.clip_bank()[2]
    for sentence in sentences:
        given = bank.encode_texts([sentence])
        words = bank.tokenizer.convert_ids_to_tokens(given["input_ids"][0])
        for name, likeness in searching.items():
            best = likeness(given["input_ids"], given["attention_mask"])[0].topk(_SHOWN).indices.tolist()
            found = [
                Found(word, tuple(places), bank.token_clips(word) or None)
                for word, places in zip(words, best, strict=True)
                if word not in bank.tokenizer.all_special_tokens
            ]
            rows.append(found)
            names.append(name)
    shown = 1 if bank.variant == "still" else 3  # a teacher of still clips saw the first frame

    def frames(place: int) -> NDArray[np.uint8]:
        return bank.clip_frames(int(clips[place]))

    return write_sheet(path, "What words look like", rows, frames, shown, names)
